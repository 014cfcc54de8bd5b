"""Image priors of DeepInversion (Yin et al. 2020), equation 3, on images (N, C, H, W)."""

from torch import Tensor

__all__ = ["l2_norm", "total_variation"]


def total_variation(images: Tensor) -> Tensor:
    """Sum of the Frobenius norms of the horizontal, vertical and two diagonal differences.

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
    """Mean over the batch of each image's l2 norm."""
    norms: Tensor = images.flatten(1).norm(dim=1)
    return norms.mean()
