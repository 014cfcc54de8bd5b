"""Layers that compute on a grid: steps of weights and inputs, which may be learned.

Source: Esser et al., "Learned Step Size Quantization", ICLR 2020. Where this differs: steps learn
as logarithms, without the scaling of their gradients.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Logarithm", "QuantizedLayer", "best_step", "fake_quantize", "quantized_bytes"]


def round_through(values: Tensor) -> Tensor:
    """Round; the gradient passes as if it had not."""
    return values + (values.round() - values).detach()


def fake_quantize(values: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Values on the grid step * {low, ..., high}; gradients to values and step: LSQ."""
    return round_through(torch.clamp(values / step, low, high)) * step


def best_step(weight: Tensor, bits: int, *, per_channel: bool) -> Tensor:
    """The symmetric step of least squared error: of 80 shares of the largest magnitude.

    Returns:
        (O, 1, ...) for each output channel, or a scalar's shape for all.

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


class QuantizedLayer(nn.Module):
    """A convolution or linear layer that computes with quantized weight and input.

    Args:
        layer: its weight and bias are taken over.
        weight_bits, activation_bits: 2 to 8.
        low, high: the range of its input; a grid of 2^bits values spans it, 0 among them.
        per_channel: see QuantizeConfig.

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
        low, high = min(low, 0.0), max(high, 1e-6)
        self.weight_only = False  # else the input is left as it comes
        levels = 2**activation_bits - 1
        self.input_step = nn.Parameter(torch.tensor((high - low) / levels, device=step.device))
        # whole steps below zero, so that zero, which padding puts in, is on the grid
        self.zero_point = round(-low / (high - low) * levels)

    @torch.no_grad()
    def plain(self) -> nn.Conv1d | nn.Conv2d | nn.Linear:
        """A layer with the weight on its grid, whose input is left as it comes."""
        layer = copy.deepcopy(self.layer)
        layer.weight.copy_(self.quantized_weight())
        return layer

    def quantized_weight(self) -> Tensor:
        """The weight on its grid."""
        high = 2 ** (self.weight_bits - 1) - 1
        return fake_quantize(self.layer.weight, self.weight_step, -high - 1, high)

    @property
    def weight(self) -> Tensor:
        """The weight on its grid, for code that reads a layer's weight itself."""
        return self.quantized_weight()

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.layer.bias

    def quantized_input(self, inputs: Tensor) -> Tensor:
        """What enters, on its grid."""
        levels = 2**self.activation_bits - 1
        return fake_quantize(inputs, self.input_step, -self.zero_point, levels - self.zero_point)

    def forward(self, inputs: Tensor) -> Tensor:
        """As the layer, on the grids."""
        if not self.weight_only:
            inputs = self.quantized_input(inputs)
        layer, weight = self.layer, self.quantized_weight()
        if isinstance(layer, nn.Linear):
            return F.linear(inputs, weight, layer.bias)
        output: Tensor = layer._conv_forward(inputs, weight, layer.bias)
        return output


def quantized_bytes(model: nn.Module) -> int:
    """Bytes of a quantized network: weights at their bits, steps and all the rest as float32.

    A weight that layers share is counted once for each grid that it is put on.
    """
    modules = model.named_modules(remove_duplicate=False)  # as the state dict names them
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
    """Learn a step as its logarithm: it stays above 0, and Adam changes it by a share of itself."""

    def forward(self, logarithm: Tensor) -> Tensor:
        """The step."""
        return logarithm.exp()

    def right_inverse(self, step: Tensor) -> Tensor:
        """What is learned."""
        return step.log()
