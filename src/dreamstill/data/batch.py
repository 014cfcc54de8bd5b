"""Batches of images with the teacher's logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamstill.evaluation import predict
from dreamstill.teacher import Teacher

__all__ = ["Batch", "TrainingBatch", "answered", "answers_for_whole"]

TOGETHER = 500
"""Images whose dense answers are held at once."""
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


def answers_for_whole(teacher: Teacher, images: Tensor) -> Tensor:
    """Return the teacher's answers (N, K) for uint8 images (N, C, H, W), on the CPU.

    Dense ones are those for whole images, see `OutputSpec.whole`, and a part of the images is held
    at once.
    """
    parts = (predict(teacher.module, teacher.input_spec, part) for part in images.split(TOGETHER))
    return torch.cat([teacher.output_spec.whole(part) for part in parts])
