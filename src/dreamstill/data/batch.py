"""A batch of synthetic images with the answers of the teacher."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamstill.teacher import Teacher

__all__ = ["Batch", "answered"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Synthetic images and what the teacher says of them, both detached."""

    images: Tensor
    """(N, C, H, W) in the teacher's input space, clipped to its valid range."""
    logits: Tensor
    """The teacher's answer (N, K)."""


@torch.no_grad()
def answered(teacher: Teacher, images: Tensor) -> Batch:
    """Images (N, C, H, W) and the teacher's answer, both detached."""
    images = images.detach()
    return Batch(images, teacher(images))
