"""The BNS measure: how far images are from what a teacher's BatchNorm layers were fed."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.losses.statistics import batch_statistics, gaussian_kl
from dreamstill.nn.hooks import Probe, batch_norm_layers
from dreamstill.teacher import Teacher

__all__ = ["batch_norm_divergence", "divergence_of", "norms_of"]


def batch_norm_divergence(teacher: Teacher, images: Tensor) -> tuple[Tensor, Tensor]:
    """The BNS measure, mean over layers, and the logits (N, K) of (N, C, H, W) inputs."""
    norms = norms_of(teacher)
    with Probe(norms) as probe:
        logits = teacher(images)
    moments = {name: batch_statistics(probe.inputs[name]) for name in norms}
    return divergence_of(moments, norms), logits


def norms_of(teacher: Teacher) -> dict[str, _BatchNorm]:
    """The BatchNorm layers with running statistics, by name."""
    layers = batch_norm_layers(teacher.module)
    return {name: layers[name] for name in teacher.capabilities.batch_norm}


def divergence_of(
    moments: Mapping[str, tuple[Tensor, Tensor]], norms: Mapping[str, _BatchNorm]
) -> Tensor:
    """The BNS measure of mean and variance (C,) of what enters each layer."""
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
