"""Batches of images with the teacher's logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamstill.teacher import Teacher

__all__ = ["Batch", "TrainingBatch", "answered"]

TrainingBatch = tuple[Tensor, Tensor | None]
"""Images (N, C, H, W) in the teacher's input space, and the teacher's logits (N, K) if known."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Synthetic images and the teacher's logits, both detached."""

    images: Tensor
    """(N, C, H, W) in the teacher's input space, clipped to its valid range."""
    logits: Tensor
    """Logits of the teacher, (N, K)."""


@torch.no_grad()
def answered(teacher: Teacher, images: Tensor) -> Batch:
    """Return images (N, C, H, W) with the teacher's logits, both detached."""
    images = images.detach()
    return Batch(images, teacher(images))
