"""Fit the shares of image programs to a teacher, from its own answers.

Source: ours. The statistics of a mixture are linear in the shares of its parts: the first and
second moments of what enters each BatchNorm layer, and the frequency of each class. So one forward
pass for each part suffices to find the mixture that is nearest to what the teacher was trained on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamstill.nn.hooks import Probe
from dreamstill.synthesis.batch_norm_statistics import norms_of
from dreamstill.teacher import Teacher

__all__ = ["PartStatistics", "fit_shares", "measure_part", "mixture_distance"]

VARIETY = 0.1
"""Weight of the divergence from equal shares: variety teaches, beyond what these measures see."""
STEPS, LR = 300, 0.05


@dataclass(frozen=True)
class PartStatistics:
    """A teacher's answers to the images of one part of a mixture."""

    classes: Tensor
    """Frequency of each class, (K,)."""
    means: Tensor
    """Mean input per channel, of all BatchNorm layers one after another; empty without any."""
    squares: Tensor
    """Mean squared input per channel."""


@torch.no_grad()
def measure_part(teacher: Teacher, images: Tensor) -> PartStatistics:
    """Measure a teacher's answers to inputs (N, C, H, W)."""
    norms = norms_of(teacher)
    with Probe(norms) as probe:
        logits = teacher(images)
    flat = [probe.inputs[name].transpose(0, 1).flatten(1).double() for name in norms]
    empty = logits.new_zeros(0, dtype=torch.float64)
    return PartStatistics(
        classes=logits.double().softmax(1).mean(0),
        means=torch.cat([part.mean(1) for part in flat]) if flat else empty,
        squares=torch.cat([part.square().mean(1) for part in flat]) if flat else empty,
    )


def mixture_distance(teacher: Teacher, parts: Sequence[PartStatistics]) -> Callable[[Tensor], Tensor]:
    """Return a function of shares (P,): how far a mixture of P parts is from the teacher's data.

    It is the share of class entropy that is missing, in [0, 1], plus the divergence of the mixture
    from the running statistics, KL(running || mixture) averaged over the channels of a layer and
    over layers.
    """
    classes, means, squares = (
        torch.stack([getattr(part, name) for part in parts])
        for name in ("classes", "means", "squares")
    )
    norms = list(norms_of(teacher).values())
    statistics = [(norm.running_mean, norm.running_var, norm.eps) for norm in norms]
    mean = torch.cat([m.double() for m, _, _ in statistics if m is not None]) if norms else None
    variance = (
        torch.cat([v.double() + eps for _, v, eps in statistics if v is not None])
        if norms
        else None
    )
    weights = [1 / (len(norms) * norm.num_features) for norm in norms for _ in range(norm.num_features)]
    weight = torch.tensor(weights, dtype=torch.float64, device=classes.device)

    def distance(shares: Tensor) -> Tensor:
        frequency = shares @ classes
        entropy = -(frequency * frequency.clamp_min(1e-12).log()).sum()
        missing = 1 - entropy / math.log(len(frequency))
        if mean is None or variance is None:
            return missing
        center = shares @ means
        spread = (shares @ squares - center**2).clamp_min(1e-8)
        kl = 0.5 * ((spread / variance).log() - 1 + (variance + (mean - center) ** 2) / spread)
        return missing + (weight * kl).sum()

    return distance


def fit_shares(teacher: Teacher, parts: Sequence[PartStatistics]) -> Tensor:
    """Return the shares (P,) of the parts that bring a mixture nearest to the teacher's data.

    A weight on equal shares keeps every part in the mixture.
    """
    distance = mixture_distance(teacher, parts)
    scores = torch.zeros(len(parts), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([scores], LR)
    with torch.enable_grad():
        for _ in range(STEPS):
            shares = scores.softmax(0)
            uneven = (shares * (shares * len(parts)).clamp_min(1e-12).log()).sum()
            loss = distance(shares) + VARIETY * uneven
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return scores.detach().softmax(0).float()
