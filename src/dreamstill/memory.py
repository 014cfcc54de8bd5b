"""Images in memory to train on, where a run has a pool on disk."""

from typing import Any

import torch
from torch import Tensor

from dreamstill.synthesis.contract import Batch
from dreamstill.teacher import InputSpec

__all__ = ["MemoryPool"]


class MemoryPool:
    """A set of images that is replayed, and never written to disk.

    Args:
        spec: the teacher's input.
        images: uint8 (N, C, H, W).

    """

    def __init__(self, spec: InputSpec, images: Tensor) -> None:
        self.spec, self._images = spec, images

    @property
    def added(self) -> int:
        """How many images there are."""
        return len(self._images)

    def add(self, batch: Batch) -> None:
        """Store the batch's images too, rounded to uint8."""
        self._images = torch.cat([self._images, self.spec.decode(batch.images).cpu()])

    def images(self, most: int | None = None) -> Tensor:
        """All images, or at most so many, uint8 (N, C, H, W)."""
        return self._images[:most]

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw `num` images with replacement, in the teacher's input space, on the rng's device."""
        index = torch.randint(self.added, (num,), generator=rng, device=rng.device).cpu()
        return self.spec.encode(self._images[index].to(rng.device))

    def commit(self) -> None:
        """Nothing: there is no file."""

    def state_dict(self) -> dict[str, Any]:
        """The images."""
        return {"images": self._images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the images."""
        self._images = state["images"].cpu()
