"""BNS divergence: distance of images from a teacher's BatchNorm statistics."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.losses.statistics import batch_statistics, gaussian_kl
from dreamstill.nn.hooks import batch_norm_layers, probed_at_once, watched
from dreamstill.teacher import Teacher

__all__ = [
    "Moments",
    "batch_moments",
    "batch_norm_divergence",
    "divergence_of",
    "measured_divergence",
    "norms_of",
]

Moments = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance (C,) of the input of each BatchNorm layer, by name."""


@contextmanager
def batch_moments(norms: Mapping[str, _BatchNorm]) -> Iterator[Moments]:
    """Collect the moments of what enters BatchNorm layers; the last call of a layer counts."""
    moments: Moments = {}

    def look(name: str, given: Tensor, _: Tensor) -> None:
        moments[name] = batch_statistics(given)

    with watched(norms, look):
        yield moments


def batch_norm_divergence(teacher: Teacher, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the BNS divergence, a scalar, and the logits (N, K) of inputs (N, C, H, W)."""
    norms = norms_of(teacher)
    with batch_moments(norms) as moments:
        logits = teacher(images)
    return divergence_of(moments, norms), logits


@torch.no_grad()
def measured_divergence(teacher: Teacher, images: Tensor) -> list[float]:
    """Return the BNS divergence of each part of inputs (N, C, H, W), such as a batch.

    The list is empty without BatchNorm. The teacher's count of queries stays.
    """
    norms, divergences = norms_of(teacher), list[float]()
    for part in images.split(max(32, probed_at_once(teacher.input_spec.shape))) if norms else ():
        with batch_moments(norms) as moments:
            teacher.run(teacher.module, part)
        divergences.append(divergence_of(moments, norms).item())
    return divergences


def norms_of(teacher: Teacher) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers with running statistics, by name."""
    layers = batch_norm_layers(teacher.module)
    return {name: layers[name] for name in teacher.capabilities.batch_norm}


def divergence_of(moments: Moments, norms: Mapping[str, _BatchNorm]) -> Tensor:
    """Return the mean over layers of the KL from running to batch statistics."""
    divergences = []
    for name, layer in norms.items():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, variance = moments[name]
        divergences.append(
            gaussian_kl(
                layer.running_mean, layer.running_var + layer.eps, mean, variance + layer.eps
            )
        )
    return torch.stack(divergences).mean()
