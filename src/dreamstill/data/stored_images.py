"""Serve stored images as a synthesizer would."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.teacher import Teacher

__all__ = ["StoredImages"]


class StoredImages:
    """A fixed set of images as a synthesizer: what tasks that are handed images train on.

    Args:
        teacher: answers for them.
        images: uint8 (N, C, H, W).
        batch_size: drawn with replacement.
        rng: draws.

    """

    streams: ClassVar[bool] = True
    adversarial: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    repeat: ClassVar[int] = 1
    warm_up: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, teacher: Teacher, images: Tensor, batch_size: int, *, rng: torch.Generator
    ) -> None:
        self.teacher, self.images, self.batch_size, self.rng = teacher, images, batch_size, rng

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Random images of the set with the teacher's answers."""
        index = torch.randint(
            len(self.images), (self.batch_size,), generator=self.rng, device=self.rng.device
        )
        chosen = self.images[index.to(self.images.device)].to(self.rng.device)
        return answered(self.teacher, self.teacher.input_spec.encode(chosen))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: draws are the rng's."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""
