"""Distances between a batch's statistics and the running statistics of BatchNorm layers."""

import torch
from torch import Tensor

__all__ = ["batch_statistics", "batch_statistics_distance", "gaussian_kl", "statistics_distance"]


def batch_statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (C,) and biased variance (C,) per channel of a layer's input (N, C, ...)."""
    flat = inputs.transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1, correction=0)


def batch_statistics_distance(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return ||variance - batch variance||_2 + ||mean - batch mean||_2 for a BatchNorm layer.

    Yin et al. 2020 (DeepInversion), equation 4.

    Args:
        inputs: input of the layer, (N, C, ...).
        mean, variance: running statistics of the layer, (C,).

    """
    return statistics_distance(mean, variance, *batch_statistics(inputs))


def statistics_distance(
    mean: Tensor, variance: Tensor, batch_mean: Tensor, batch_variance: Tensor
) -> Tensor:
    """Return ||variance - batch variance||_2 + ||mean - batch mean||_2; all arguments are (C,)."""
    distance: Tensor = (variance - batch_variance).norm() + (mean - batch_mean).norm()
    return distance


def gaussian_kl(
    mean: Tensor, variance: Tensor, batch_mean: Tensor, batch_variance: Tensor
) -> Tensor:
    """Return KL(N(mean, variance) || N(batch mean, batch variance)), averaged over channels.

    This is the BNS measure of Haroush et al. 2020 (The Knowledge Within). All arguments are (C,);
    variances must be above 0.

    >>> import torch
    >>> one, zero = torch.ones(1), torch.zeros(1)
    >>> round(float(gaussian_kl(zero, one, one, one)), 4), float(gaussian_kl(zero, one, zero, one))
    (0.5, 0.0)
    """
    ratio = (variance + (mean - batch_mean) ** 2) / batch_variance
    kl: Tensor = 0.5 * (torch.log(batch_variance / variance) - 1 + ratio)
    return kl.mean()
