"""Losses on the teacher's features."""

from torch import Tensor

__all__ = ["activation"]


def activation(features: Tensor) -> Tensor:
    """Minus the mean magnitude of the penultimate features (N, D).

    Chen et al. 2019 (DAFL), equation 3: real images excite the teacher's features.
    """
    return -features.abs().mean()
