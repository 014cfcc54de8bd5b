"""Batches of images that are given, in the place of a method's."""

import torch
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import NoiseConfig
from dreamstill.teacher import Teacher

__all__ = ["StoredImages"]


class StoredImages(Method):
    """Batches of a fixed set of images, uint8 (N, C, H, W), drawn with replacement."""

    fresh_every = 1

    def __init__(
        self, teacher: Teacher, images: Tensor, batch_size: int, *, rng: torch.Generator
    ) -> None:
        super().__init__(teacher, NoiseConfig(batch_size=batch_size), rng=rng)
        self.images = images

    @torch.no_grad()
    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Return a batch of the images, and the teacher's answers."""
        size, device = (self.config.batch_size,), self.rng.device
        index = torch.randint(len(self.images), size, generator=self.rng, device=device)
        chosen = self.images[index.to(self.images.device)].to(device)
        return answered(self.teacher, self.teacher.input_spec.encode(chosen))
