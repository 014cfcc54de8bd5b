"""Image priors on images (N, C, H, W)."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gaussian_smoothness", "l2_norm", "smoothness", "total_variation"]


def total_variation(images: Tensor) -> Tensor:
    """Sum of the Frobenius norms of the horizontal, vertical and two diagonal differences.

    Yin et al. 2020 (DeepInversion), equation 3.

    Taken over the whole batch and not normalized, as in the authors' code: their weights (2.5e-5
    to 1e-3) belong to it.
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
    """Mean over the batch of each image's l2 norm: Yin et al. 2020, equation 3."""
    norms: Tensor = images.flatten(1).norm(dim=1)
    return norms.mean()


def smoothness(images: Tensor) -> Tensor:
    """Mean squared difference between images and their 3x3 blur, edges repeated.

    After the image prior of Haroush et al. 2020 (The Knowledge Within), a distance to a smoothed
    copy; that the copy is a 3x3 mean is ours.
    """
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return F.mse_loss(images, blurred)


def gaussian_smoothness(images: Tensor) -> Tensor:
    """Mean squared difference between images and their 5x5 Gaussian blur, edges reflected.

    The image prior of Smith et al. 2021 (Always Be Dreaming), as in the authors' code: a standard
    deviation of the square root of 2. H and W must be at least 3.
    """
    channels = images.shape[1]
    offsets = torch.arange(-2, 3, dtype=images.dtype, device=images.device)
    bell = (-(offsets**2) / 4).exp()
    bell = bell / bell.sum()
    kernel = (bell[:, None] * bell).expand(channels, 1, 5, 5)
    blurred = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)
    return F.mse_loss(images, blurred)
