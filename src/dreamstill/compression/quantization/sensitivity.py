"""How many bits each layer needs: what its rounding alone does to the answers.

Source: Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020: the sensitivity of
a layer is KL(whole precision || that layer alone at low bits). Where this differs: a size is met by
lowering, one step at a time, the layer whose KL rises least for each bit saved; what the last step
saved beyond it is given back, where it lowers a KL most.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dreamstill.errors import ConfigError
from dreamstill.evaluation import predict
from dreamstill.input_spec import InputSpec
from dreamstill.losses.logits import kl_divergence
from dreamstill.nn.hooks import some_of
from dreamstill.nn.quantized import best_step, fake_quantize

__all__ = ["mixed_bits", "sensitivities"]


@torch.no_grad()
def sensitivities(
    model: nn.Module,
    spec: InputSpec,
    images: Tensor,
    names: Iterable[str],
    candidates: tuple[int, ...] = (2, 3, 4, 6, 8),
    *,
    per_channel: bool,
) -> dict[str, dict[int, float]]:
    """By layer and bits, mean KL(model || model with this layer's weight alone at these bits).

    Args:
        model: its layers `names` are changed one at a time, and brought back.
        spec: its input.
        images: uint8 (N, C, H, W); 512 of them are shown.
        names: of layers.
        candidates: bits.
        per_channel: a step for each output channel; else one for all.

    """
    shown = some_of(images, 512)
    whole = predict(model, spec, shown)
    table: dict[str, dict[int, float]] = {}
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
        weight = layer.weight.detach().clone()
        table[name] = {}
        for bits in candidates:
            high = 2 ** (bits - 1) - 1
            step = best_step(weight, bits, per_channel=per_channel)
            layer.weight.copy_(fake_quantize(weight, step, -high - 1, high))
            table[name][bits] = kl_divergence(predict(model, spec, shown), whole).item()
        layer.weight.copy_(weight)
    return table


def mixed_bits(
    table: dict[str, dict[int, float]], sizes: dict[str, int], share: float
) -> dict[str, int]:
    """Bits of each layer: from the most, lower the one whose KL rises least for each bit saved.

    Then raise, within the size, those whose KL falls most.

    Args:
        table: of `sensitivities`.
        sizes: weights of each layer.
        share: of the size at 8 bits, at most.

    Raises:
        ConfigError: the fewest bits are still too many.

    """
    bits = {name: max(choices) for name, choices in table.items()}
    budget = share * 8 * sum(sizes.values())
    while sum(sizes[name] * b for name, b in bits.items()) > budget:
        steps = []
        for name, now in bits.items():
            lower = [b for b in table[name] if b < now]
            if lower:
                bits_below = max(lower)
                rise = table[name][bits_below] - table[name][now]
                steps.append((rise / (sizes[name] * (now - bits_below)), name, bits_below))
        if not steps:
            least = sum(sizes[name] * b for name, b in bits.items()) / (8 * sum(sizes.values()))
            raise ConfigError(
                f"size {share} cannot be met: with the fewest bits, and first_last_bits where they "
                f"count, it is {least:.3f}"
            )
        _, name, lower_bits = min(steps)
        bits[name] = lower_bits
    while True:
        room = budget - sum(sizes[name] * b for name, b in bits.items())
        falls = [
            (table[name][now] - kl, name, more)
            for name, now in bits.items()
            for more, kl in table[name].items()
            if 0 < sizes[name] * (more - now) <= room and kl < table[name][now]
        ]
        if not falls:
            return bits
        _, name, more_bits = max(falls)
        bits[name] = more_bits
