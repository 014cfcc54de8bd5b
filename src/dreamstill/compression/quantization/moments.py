"""Propagate mean, variance and bounds of activations without data, operation by operation.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019, equation 19, for the mean after a ReLU; the rest is ours. The terms that a trained layer sums
are correlated: assuming independence gives ranges up to 14 times too small, assuming full
correlation gives ranges that grow from layer to layer. After a layer without BatchNorm and after an
average pool, the standard deviation is therefore interpolated on a logarithmic scale, one third of
the way from independence to full correlation. On networks of 4 to 8 layers for MNIST and CIFAR-10,
no range was then too small; one half made the last ranges up to 50 times too large. The two terms
of a residual sum and the values in a max pool are assumed independent.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Moments", "PARTS", "relu_moments", "window_sizes"]

REACH = 6.0
"""Half-width of a data-free range in standard deviations, as in the authors' code."""
STEPS = 100
"""Number of steps of the integral for a max pool."""
TOGETHER = 1 / 3
"""Position between independence (0) and full correlation (1) of summed terms, on a log scale."""
PARTS = ("mean", "variance", "low", "high")
Change = Callable[[Tensor], Tensor]


def relu_moments(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of max(0, x) for x ~ N(mean, std^2): equation 19, and its square.

    >>> mean, variance = relu_moments(torch.zeros(1), torch.ones(1))
    >>> round(float(mean), 4), round(float(variance), 4)  # 1/sqrt(2 pi), 1/2 - 1/(2 pi)
    (0.3989, 0.3408)
    """
    safe = std.clamp_min(1e-12)
    ratio = mean / safe
    density = torch.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
    above = 0.5 * (1 + torch.erf(ratio / math.sqrt(2)))
    first = mean * above + safe * density
    second = (mean**2 + safe**2) * above + mean * safe * density
    return first, (second - first**2).clamp_min(0)


def before_relu(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and std of the normal distribution that has these moments after a ReLU.

    Bisection finds the ratio mean / std in [-5, 50].
    """
    wanted = mean**2 / (mean**2 + variance).clamp_min(1e-30)
    low, high = torch.full_like(mean, -5.0), torch.full_like(mean, 50.0)
    for _ in range(30):
        ratio = (low + high) / 2
        first, spread = relu_moments(ratio, torch.ones_like(ratio))
        below = first**2 / (first**2 + spread) < wanted
        low, high = torch.where(below, ratio, low), torch.where(below, high, ratio)
    std = mean / first
    return ratio * std, std


def window_sizes(pool: Change, like: Tensor) -> Tensor:
    """Return the number of values of a map (..., H, W) in each window (H', W') of a pool."""
    rows, columns = _windows(pool, like)
    return rows.sum(1, keepdim=True) * columns.sum(0, keepdim=True)


def _windows(pool: Change, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return 0/1 masks of the rows (H', H) and columns (W, W') in a pool's windows."""
    height, width = like.shape[-2:]
    rows = torch.eye(height).view(-1, 1, height, 1).expand(-1, 1, -1, width)
    columns = torch.eye(width).view(-1, 1, 1, width).expand(-1, 1, height, -1)
    held = pool(rows.to(like))[:, 0, :, 0].T, pool(columns.to(like))[:, 0, 0, :]
    return (held[0] > 0).to(like), (held[1] > 0).to(like)


def _of_sum(independent: Tensor, together: Tensor) -> Tensor:
    """Return the variance of a sum, interpolated between independence and full correlation.

    Args:
        independent: variance for independent terms: the sum of their variances.
        together: standard deviation for fully correlated terms: the sum of theirs.

    """
    return independent ** (1 - TOGETHER) * together ** (2 * TOGETHER)


def _without_bias(layer: nn.Conv2d | nn.Linear, inputs: Tensor, weight: Tensor) -> Tensor:
    """Return a layer's output for another weight and no bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(inputs, weight)
    output: Tensor = layer._conv_forward(inputs, weight, None)
    return output


@dataclass(frozen=True)
class Moments:
    """Expected mean, variance and bounds of an activation (1, C, ...)."""

    mean: Tensor
    variance: Tensor
    low: Tensor
    """Lower bound; values below it are rare."""
    high: Tensor

    @classmethod
    def normal(cls, mean: Tensor, variance: Tensor) -> "Moments":
        """Return a normal distribution with bounds REACH standard deviations from the mean."""
        reach = REACH * variance.sqrt()
        return cls(mean, variance, mean - reach, mean + reach)

    @classmethod
    def mixture(cls, parts: Sequence["Moments"]) -> "Moments":
        """Return the moments of an even mixture of distributions of equal shape."""
        mean, variance, low, high = (torch.stack([getattr(p, of) for p in parts]) for of in PARTS)
        spread = mean.var(0, correction=0)
        return cls(mean.mean(0), variance.mean(0) + spread, low.amin(0), high.amax(0))

    @classmethod
    def of_parts(cls, parts: Sequence[Any]) -> Any:
        """Join PARTS into moments, or a list of moments for chunk and split.

        Results that are not tensors, such as sizes, are equal in all parts: return the first.
        """
        if isinstance(parts[0], Tensor):
            return cls(*parts)
        if isinstance(parts[0], tuple | list) and isinstance(parts[0][0], Tensor):
            return [cls(*piece) for piece in zip(*parts, strict=True)]
        return parts[0]

    def each(self, move: Callable[[Tensor], Any]) -> Any:
        """Return the moments after an operation that only moves values."""
        return self.of_parts([move(getattr(self, part)) for part in PARTS])

    def relu(self) -> "Moments":
        """Return the moments after a ReLU."""
        mean, variance = relu_moments(self.mean, self.variance.sqrt())
        return Moments(mean, variance, self.low.relu(), self.high.relu())

    def relu6(self) -> "Moments":
        """Return the moments after a ReLU6, which is relu(x) - relu(x - 6)."""
        std = self.variance.sqrt()
        (mean, variance), (above, its_variance) = (
            relu_moments(self.mean - end, std) for end in (0, 6)
        )
        # E[min(relu(x), 6)^2] = E[relu(x)^2] - E[y^2] - 12 E[y], y = relu(x - 6)
        second = variance + mean**2 - its_variance - above**2 - 12 * above
        mean = mean - above
        variance = (second - mean**2).clamp_min(0)
        return Moments(mean, variance, self.low.clamp(0, 6), self.high.clamp(0, 6))

    def layer(self, layer: nn.Conv2d | nn.Linear) -> "Moments":
        """Return the moments after a convolution or linear layer, assumed normal."""
        independent = _without_bias(layer, self.variance, layer.weight**2)
        together = _without_bias(layer, self.variance.sqrt(), layer.weight.abs())
        return Moments.normal(layer(self.mean), _of_sum(independent, together))

    def average(self, pool: Change, count: Tensor | float) -> "Moments":
        """Return the moments after an average pool or mean over `count` values."""
        mean, together, low, high = (
            pool(part) for part in (self.mean, self.variance.sqrt(), self.low, self.high)
        )
        weight = pool(torch.ones_like(self.mean)) / count  # factor of each value in the average
        return Moments(mean, _of_sum(weight * pool(self.variance), together), low, high)

    def largest(self, pool: Change) -> "Moments":
        """Return the moments after a max pool of independent values, normal or rectified normal.

        F is the product of the distribution functions in a window and `low` its lower bound. The
        mean is low + the integral of 1 - F(x); E[(x - low)^2] is that of 2 (x - low) (1 - F(x)).
        """
        rows, columns = (part.double() for part in _windows(pool, self.mean))
        mean, variance = self.mean.double(), self.variance.double()
        normal, behind = (mean, variance.sqrt()), before_relu(mean, variance)
        mean, std = (torch.where(self.low < 0, *of) for of in zip(normal, behind, strict=True))
        start, end = self.low.amin((-2, -1), True).double(), self.high.amax((-2, -1), True)
        step = (end - start) / STEPS
        first = second = torch.zeros_like(start)
        for index in range(STEPS):
            x = start + (index + 0.5) * step
            log = torch.special.log_ndtr((x - mean) / std.clamp_min(1e-12)).clamp_min(-1e9)
            log = torch.where(x < self.low, -1e9, torch.where(x > self.high, 0.0, log))
            above = 1 - (rows @ log @ columns).exp()
            first = first + above * step
            second = second + 2 * (x - start) * above * step
        spread = (second - first**2).clamp_min(0)
        return Moments(
            (start + first).to(self.mean),
            spread.to(self.mean),
            pool(self.low),
            pool(self.high),
        )

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*(getattr(self, part) + getattr(other, part) for part in PARTS))
