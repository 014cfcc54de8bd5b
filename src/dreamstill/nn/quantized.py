"""Layers with simulated quantization of weights and inputs, whose step sizes can be learned.

Source: Esser et al., "Learned Step Size Quantization" (LSQ), ICLR 2020. Differences: the logarithm
of a step size is learned, and its gradient is not scaled.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Logarithm",
    "QuantizedLayer",
    "best_step",
    "fake_quantize",
    "input_grid",
    "quantized_bytes",
]


def round_through(values: Tensor) -> Tensor:
    """Round with a straight-through gradient."""
    return values + (values.round() - values).detach()


def fake_quantize(values: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Round values to the grid step * {low, ..., high}, with LSQ's gradients for both tensors."""
    return round_through(torch.clamp(values / step, low, high)) * step


def best_step(weight: Tensor, bits: int, *, per_channel: bool) -> Tensor:
    """Return the symmetric step size of least squared error, by grid search over the range.

    Returns:
        (O, 1, ...), one per output channel, or (1, 1, ...) for the whole weight.

    """
    high = 2 ** (bits - 1) - 1
    rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
    largest = rows.abs().amax(1, keepdim=True).clamp_min(1e-8)
    best = largest / high
    best_error = torch.full_like(largest, torch.inf)
    for share in torch.linspace(0.2, 1.0, 81).tolist():
        step = share * largest / high
        error = (fake_quantize(rows, step, -high - 1, high) - rows).pow(2).sum(1, keepdim=True)
        better = error < best_error
        best, best_error = torch.where(better, step, best), torch.where(better, error, best_error)
    shaped: Tensor = best.view(-1, *[1] * (weight.ndim - 1))
    return shaped


def input_grid(low: float, high: float, bits: int) -> tuple[float, int]:
    """Return the step and the zero point of the grid of 2^bits levels from low to high and 0.

    The zero point, the level that stands for 0, is an integer: so zero, as in padding, is on the
    grid.
    """
    low, high, levels = min(low, 0.0), max(high, 1e-6), 2**bits - 1
    return (high - low) / levels, round(-low / (high - low) * levels)


class QuantizedLayer(nn.Module):
    """Convolution or linear layer with simulated quantization of its weight and input.

    Args:
        layer: layer whose weight and bias are used.
        weight_bits, activation_bits: 2 to 8.
        low, high: range of the input, spanned by a grid of 2^bits values that includes 0.
        per_channel: whether each output channel has its own step size.

    """

    def __init__(
        self,
        layer: nn.Conv1d | nn.Conv2d | nn.Linear,
        weight_bits: int,
        activation_bits: int,
        low: float,
        high: float,
        *,
        per_channel: bool,
    ) -> None:
        super().__init__()
        self.layer, self.weight_bits, self.activation_bits = layer, weight_bits, activation_bits
        step = best_step(layer.weight.detach(), weight_bits, per_channel=per_channel)
        self.weight_step = nn.Parameter(step)
        self.weight_only = False  # if True, the input is not quantized
        input_step, self.zero_point = input_grid(low, high, activation_bits)
        self.input_step = nn.Parameter(torch.tensor(input_step, device=step.device))

    @torch.no_grad()
    def plain(self) -> nn.Conv1d | nn.Conv2d | nn.Linear:
        """Return a plain layer with the quantized weight, without quantization of the input."""
        layer = copy.deepcopy(self.layer)
        layer.weight.copy_(self.quantized_weight())
        return layer

    def quantized_weight(self) -> Tensor:
        """Return the weight rounded to its grid."""
        high = 2 ** (self.weight_bits - 1) - 1
        return fake_quantize(self.layer.weight, self.weight_step, -high - 1, high)

    @property
    def weight(self) -> Tensor:
        """Return the quantized weight, for code that reads a layer's weight directly."""
        return self.quantized_weight()

    @property
    def bias(self) -> Tensor | None:
        """Return the layer's bias."""
        return self.layer.bias

    def quantized_input(self, inputs: Tensor) -> Tensor:
        """Return the input rounded to its grid."""
        levels = 2**self.activation_bits - 1
        return fake_quantize(inputs, self.input_step, -self.zero_point, levels - self.zero_point)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the layer's output from the quantized weight and input."""
        if not self.weight_only:
            inputs = self.quantized_input(inputs)
        return self.with_weight(inputs, self.quantized_weight())

    def with_weight(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Compute the layer's output from an input and a weight as they are."""
        if isinstance(self.layer, nn.Linear):
            return F.linear(inputs, weight, self.layer.bias)
        output: Tensor = self.layer._conv_forward(inputs, weight, self.layer.bias)
        return output


def quantized_bytes(model: nn.Module) -> int:
    """Return the size of a quantized network in bytes: weights at their bits, the rest as stored.

    A weight that layers share is counted once per grid.
    """
    modules = model.named_modules(remove_duplicate=False)  # all names in the state dict
    layers = {n: m for n, m in modules if isinstance(m, QuantizedLayer)}
    codes: dict[Any, int] = {}
    for layer in layers.values():
        grid = layer.weight_bits, tuple(layer.weight_step.flatten().tolist())
        weight = layer.layer.weight
        codes[weight.data_ptr(), grid] = layer.weight_bits * weight.numel()
    on_grids = {f"{name}.layer.weight".removeprefix(".") for name in layers}
    rest: dict[Any, int] = {
        (value.data_ptr() or id(value), value.shape): value.numel() * value.element_size()
        for name, value in model.state_dict().items()
        if name not in on_grids
    }
    bits: int = sum(codes.values())
    return -(-bits // 8) + sum(rest.values())


class Logarithm(nn.Module):
    """Parametrization of a step size by its logarithm: it stays positive, updates are relative."""

    def forward(self, logarithm: Tensor) -> Tensor:
        """Return the step size."""
        return logarithm.exp()

    def right_inverse(self, step: Tensor) -> Tensor:
        """Return the logarithm, which is the learned parameter."""
        return step.log()
