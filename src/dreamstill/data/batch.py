"""A batch of images with the answer of the teacher."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamstill.teacher import Teacher

__all__ = ["Batch", "TrainingBatch", "answered"]

TrainingBatch = tuple[Tensor, Tensor | None]
"""Images (N, C, H, W) in the teacher's input space, and the teacher's answer (N, K) if known."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Synthetic images and the teacher's answer, both detached."""

    images: Tensor
    """(N, C, H, W) in the teacher's input space, clipped to its valid range."""
    logits: Tensor
    """The teacher's answer, (N, K)."""


@torch.no_grad()
def answered(teacher: Teacher, images: Tensor) -> Batch:
    """Ask the teacher about images (N, C, H, W); return both, detached."""
    images = images.detach()
    return Batch(images, teacher(images))
