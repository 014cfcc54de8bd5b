"""Summarize weights and the inputs of quantized layers for the report of a pipeline."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.evaluation import device_of
from dreamstill.input_spec import InputSpec
from dreamstill.nn.hooks import probed_at_once, watched
from dreamstill.nn.quantized import QuantizedLayer

__all__ = ["entering_quantized", "weights_in"]

BINS = 41
"""Number of bins of a histogram."""


def entering_quantized(model: nn.Module, spec: InputSpec, images: Tensor) -> dict[str, Tensor]:
    """Return the inputs of each quantized layer, flattened over all calls, by name.

    Shows the model the first images of a uint8 (N, C, H, W); empty if there are none.
    """
    layers = {n: layer for n, layer in model.named_modules() if isinstance(layer, QuantizedLayer)}
    if not layers or not len(images):
        return {}
    entered: dict[str, list[Tensor]] = {name: [] for name in layers}

    def look(name: str, values: Tensor, output: Tensor) -> None:
        entered[name].append(values.flatten())

    with watched(layers, look), torch.no_grad():
        model(spec.encode(images[: probed_at_once(spec.shape)].to(device_of(model))))
    return {name: torch.cat(values) for name, values in entered.items() if values}


def weights_in(
    model: nn.Module, entering: Mapping[str, Tensor] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the number of outputs, share of zeros and weight histogram of every layer, by name.

    For layers in `entering`, the entry `inputs` holds the range of the inputs, the range that the
    grid covers, and histograms before and after quantization.
    """
    layers: dict[str, dict[str, Any]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLayer):
            weight = layer.quantized_weight().detach()
        elif isinstance(layer, nn.Conv2d | nn.Linear) and name.removesuffix(".layer") not in layers:
            weight = layer.weight.detach()
        else:
            continue
        limit = weight.abs().max().item() or 1.0
        layers[name] = {
            "outputs": len(weight),
            "zeros": (weight == 0).float().mean().item(),
            "limit": limit,
            "histogram": torch.histc(weight.float(), BINS, -limit, limit).int().tolist(),
        }
        if entering and name in entering:
            layers[name]["inputs"] = _inputs_of(layer, entering[name])
    return layers


def _inputs_of(layer: QuantizedLayer, values: Tensor) -> dict[str, Any]:
    rounded = layer.quantized_input(values).detach()
    ends = layer.quantized_input(values.new_tensor([-torch.inf, torch.inf])).detach()
    low = min(values.min().item(), rounded.min().item())
    high = max(values.max().item(), rounded.max().item(), low + 1e-6)
    return {
        "seen": [value.item() for value in values.aminmax()],
        "kept": ends.tolist(),
        "limits": [low, high],
        "before": torch.histc(values, BINS, low, high).int().tolist(),
        "after": torch.histc(rounded, BINS, low, high).int().tolist(),
    }
