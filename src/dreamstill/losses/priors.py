"""Image priors: losses on images (N, C, H, W) that return a scalar."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gaussian_smoothness", "l2_norm", "smoothness", "total_variation"]


def total_variation(images: Tensor) -> Tensor:
    """Return the sum of the norms of horizontal, vertical and two diagonal pixel differences.

    Yin et al. 2020 (DeepInversion), equation 3. The Frobenius norms are over the whole batch and
    not normalized, as in the authors' code, so that their weights (2.5e-5 to 1e-3) apply.
    """
    differences = (
        images[:, :, :, :-1] - images[:, :, :, 1:],
        images[:, :, :-1, :] - images[:, :, 1:, :],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
    )
    total = images.new_zeros(())
    for difference in differences:
        total = total + difference.norm()
    return total


def l2_norm(images: Tensor) -> Tensor:
    """Return the l2 norm of an image, averaged over the batch: Yin et al. 2020, equation 3."""
    norms: Tensor = images.flatten(1).norm(dim=1)
    return norms.mean()


def smoothness(images: Tensor) -> Tensor:
    """Return the mean squared error between images and their 3x3 mean blur, with repeated edges.

    Haroush et al. 2020 (The Knowledge Within) penalize the distance to a smoothed copy; the 3x3
    mean is our choice.
    """
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return F.mse_loss(images, blurred)


def gaussian_smoothness(images: Tensor) -> Tensor:
    """Return the mean squared error between images and their 5x5 Gaussian blur, edges reflected.

    Smith et al. 2021 (Always Be Dreaming), with a standard deviation of sqrt(2) pixels as in the
    authors' code. H and W must be at least 3.
    """
    channels = images.shape[1]
    offsets = torch.arange(-2, 3, dtype=images.dtype, device=images.device)
    bell = (-(offsets**2) / 4).exp()
    bell = bell / bell.sum()
    kernel = (bell[:, None] * bell).expand(channels, 1, 5, 5)
    blurred = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)
    return F.mse_loss(images, blurred)
