"""Distances between a batch's statistics and the running statistics of BatchNorm layers."""

from torch import Tensor

__all__ = ["batch_statistics", "batch_statistics_distance"]


def batch_statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel mean and biased variance of a layer's input (N, C, ...), each (C,)."""
    flat = inputs.transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1, correction=0)


def batch_statistics_distance(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """||variance - batch variance||_2 + ||mean - batch mean||_2 for one BatchNorm layer.

    Yin et al. 2020 (DeepInversion), equation 4.

    Args:
        inputs: what enters the layer, (N, C, ...).
        mean, variance: its running statistics, (C,).

    """
    batch_mean, batch_variance = batch_statistics(inputs)
    distance: Tensor = (variance - batch_variance).norm() + (mean - batch_mean).norm()
    return distance
