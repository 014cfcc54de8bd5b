"""What is known of an activation without data: mean, variance and bounds, operation by operation.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019, equation 19, for the mean behind a ReLU. The rest is ours. What trained layers add goes
together more than it does by chance: as if it were independent, ranges come out up to 14 times too
small, and as if it all went together, larger from layer to layer. Behind a layer without BatchNorm,
and behind an average pool, the standard deviation is a third of the way from the one to the other,
on a logarithmic scale: chosen on networks of 4 to 8 layers for MNIST and CIFAR-10, where no range
came out too small and halfway the last ones came out up to 50 times too large. The two parts of a
sum, and what a max pool looks at, are taken as independent.
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
"""Standard deviations to either side that a data-free range spans, as in the authors' code."""
STEPS = 100
"""Of the integral over the values behind a max pool."""
TOGETHER = 1 / 3
"""How far, on a logarithmic scale, what is added is from independent to going all together."""
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
    """Return mean and std of the normal that has these moments behind a ReLU.

    Their ratio is found by bisection in [-5, 50], the std from the mean.
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
    """Return how many values of a map (..., H, W) each window (H', W') of a pool holds."""
    rows, columns = _windows(pool, like)
    return rows.sum(1, keepdim=True) * columns.sum(0, keepdim=True)


def _windows(pool: Change, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return which rows (H', H) and which columns (W, W') a pool's windows hold, as 0 and 1."""
    height, width = like.shape[-2:]
    rows = torch.eye(height).view(-1, 1, height, 1).expand(-1, 1, -1, width)
    columns = torch.eye(width).view(-1, 1, 1, width).expand(-1, 1, height, -1)
    held = pool(rows.to(like))[:, 0, :, 0].T, pool(columns.to(like))[:, 0, 0, :]
    return (held[0] > 0).to(like), (held[1] > 0).to(like)


def _of_sum(independent: Tensor, together: Tensor) -> Tensor:
    """Return the variance of a sum of which only the two ends are known.

    Args:
        independent: the variance of parts that are independent: the sum of theirs.
        together: the standard deviation of parts that go together: the sum of theirs.

    """
    return independent ** (1 - TOGETHER) * together ** (2 * TOGETHER)


def _without_bias(layer: nn.Conv2d | nn.Linear, inputs: Tensor, weight: Tensor) -> Tensor:
    """Return what a layer makes of inputs with another weight and no bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(inputs, weight)
    output: Tensor = layer._conv_forward(inputs, weight, None)
    return output


@dataclass(frozen=True)
class Moments:
    """What is known of an activation (1, C, ...) without data."""

    mean: Tensor
    variance: Tensor
    low: Tensor
    """Below which it hardly ever is."""
    high: Tensor

    @classmethod
    def normal(cls, mean: Tensor, variance: Tensor) -> "Moments":
        """Return a normal distribution with bounds REACH deviations away."""
        reach = REACH * variance.sqrt()
        return cls(mean, variance, mean - reach, mean + reach)

    @classmethod
    def mixture(cls, parts: Sequence["Moments"]) -> "Moments":
        """Return the moments of what is as often the one as the other of parts of one shape."""
        mean, variance, low, high = (torch.stack([getattr(p, of) for p in parts]) for of in PARTS)
        spread = mean.var(0, correction=0)
        return cls(mean.mean(0), variance.mean(0) + spread, low.amin(0), high.amax(0))

    @classmethod
    def of_parts(cls, parts: Sequence[Any]) -> Any:
        """Return moments of their PARTS, which chunk and split give in pieces; else the first."""
        if isinstance(parts[0], Tensor):
            return cls(*parts)
        if isinstance(parts[0], tuple | list) and isinstance(parts[0][0], Tensor):
            return [cls(*piece) for piece in zip(*parts, strict=True)]
        return parts[0]

    def each(self, move: Callable[[Tensor], Any]) -> Any:
        """Return the moments behind an operation that moves values around."""
        return self.of_parts([move(getattr(self, part)) for part in PARTS])

    def relu(self) -> "Moments":
        """Return the moments behind a ReLU."""
        mean, variance = relu_moments(self.mean, self.variance.sqrt())
        return Moments(mean, variance, self.low.relu(), self.high.relu())

    def relu6(self) -> "Moments":
        """Return the moments behind a ReLU that ends at 6: the ReLU less what is above."""
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
        """Return the moments behind a convolution or linear layer, as of a normal distribution."""
        independent = _without_bias(layer, self.variance, layer.weight**2)
        together = _without_bias(layer, self.variance.sqrt(), layer.weight.abs())
        return Moments.normal(layer(self.mean), _of_sum(independent, together))

    def average(self, pool: Change, count: Tensor | float) -> "Moments":
        """Return the moments behind an average pool, or a mean, of `count` values at a time."""
        mean, together, low, high = (
            pool(part) for part in (self.mean, self.variance.sqrt(), self.low, self.high)
        )
        weight = pool(torch.ones_like(self.mean)) / count  # of each value
        return Moments(mean, _of_sum(weight * pool(self.variance), together), low, high)

    def largest(self, pool: Change) -> "Moments":
        """Return the moments behind a max pool of independent values, normal or behind a ReLU.

        Where F is the product of the distributions in a window, and `low` its end, the mean is
        low + the integral of 1 - F(x), and E[(x - low)^2] that of 2 (x - low) (1 - F(x)).
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
