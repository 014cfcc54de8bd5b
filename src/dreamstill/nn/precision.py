"""Decide whether a network computes faster in bfloat16."""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dreamstill.nn.hooks import Probe, eval_mode

__all__ = ["gains_from_bfloat16", "has_bfloat16"]

WIDE = 16
"""Input and output channels from which a layer gains: the rows of a matrix unit."""


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a processor multiplies matrices in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able: bool = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cpu" and able


@torch.no_grad()
def gains_from_bfloat16(module: nn.Module, inputs: Tensor) -> bool:
    """Tell whether bfloat16 is faster for a network: measured ratios are in benchmarks/README.md.

    It is where the processor multiplies in bfloat16 and most multiply-accumulates are in wide
    layers. Nothing is timed, so that the same machine always decides alike.

    Args:
        module: network.
        inputs: (N, C, H, W) in its input space.

    """
    if not has_bfloat16(inputs.device):
        return False
    layers = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _ConvNd | nn.Linear) and "parametrizations" not in name.split(".")
    }
    with eval_mode(module), Probe(layers) as probe:
        module(inputs)
    wide = total = 0
    for name, output in probe.outputs.items():
        weight = layers[name].weight
        macs = output.numel() * weight[0].numel()  # a transposed convolution's about
        total += macs
        wide += macs * (min(weight.shape[:2]) >= WIDE)
    return 2 * wide > total
