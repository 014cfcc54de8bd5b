"""Distances between a batch's statistics and the running statistics of BatchNorm layers."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["batch_statistics", "gaussian_kl", "statistics_distance"]


class _BatchStatistics(Function):
    """Mean and variance by BatchNorm's own kernel, which reads an input once and copies nothing.

    On a CPU it takes a tenth of the time of `mean` and `var`, forth and back.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (C,) and variance (C,) of inputs (N, C, ...), float32 for shorter floats."""
        kind = torch.promote_types(inputs.dtype, torch.float32)
        unused = inputs.new_zeros(inputs.shape[1], dtype=kind)  # its type is that of the result
        mean, variance = torch.batch_norm_update_stats(inputs, unused, unused, 0.0)
        ctx.save_for_backward(inputs, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of the inputs: (g_mean + 2 (x - mean) g_variance) / values."""
        inputs, mean = ctx.saved_tensors
        of_mean, of_variance = (gradient * mean.numel() / inputs.numel() for gradient in gradients)
        offset, slope = of_mean - 2 * mean * of_variance, 2 * of_variance
        shape = (-1, *[1] * (inputs.dim() - 2))
        offset, slope = (one.to(inputs.dtype).view(shape) for one in (offset, slope))
        return torch.addcmul(offset, inputs, slope)


def batch_statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (C,) and biased variance (C,) per channel of a layer's input (N, C, ...)."""
    mean, variance = _BatchStatistics.apply(inputs)  # type: ignore[no-untyped-call]
    return mean, variance


def statistics_distance(
    mean: Tensor, variance: Tensor, batch_mean: Tensor, batch_variance: Tensor
) -> Tensor:
    """Return ||variance - batch variance||_2 + ||mean - batch mean||_2; all arguments are (C,).

    Yin et al. 2020 (DeepInversion), equation 4, for the running statistics of a BatchNorm layer.
    """
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
