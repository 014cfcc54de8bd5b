"""Base class of all methods."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from dreamstill.data.batch import Batch
from dreamstill.files.checkpoints import Stateful
from dreamstill.teacher import Teacher

__all__ = ["Method"]


class Method(Stateful, ABC):
    """Base class of methods, which synthesize images from a teacher.

    The same state of `rng` gives the same batches. The run saves the state of `rng`; the method's
    `state` does not include it.

    Args:
        teacher: network to synthesize images for.
        config: configuration of the method, with a field `batch_size`.
        rng: generator of all random numbers.

    """

    fresh_every: ClassVar[int] = 0
    """Default of `DistillConfig.fresh_every`: 1 if a batch takes about as long as a training step,
    0 if all images are made before the first step."""
    adversarial: ClassVar[bool] = False
    """Whether `next_batch` requires a student."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the teacher's `Capabilities` that the method requires."""
    repeat: int = 1
    """Number of student steps on each fresh batch."""
    warm_up: int = 0
    """Number of first batches that train the method and are not used to train the student."""

    def __init__(self, teacher: Teacher, config: Any, *, rng: torch.Generator) -> None:
        self.teacher, self.config, self.rng = teacher, config, rng

    @abstractmethod
    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Return the next batch; adversarial methods read the student as it is now."""

    def initial_batch(self, student: nn.Module | None = None) -> Batch:
        """Return a batch to begin a replay buffer with, that fresh ones follow: the next one."""
        return self.next_batch(student)

    def anneal_over(self, batches: int) -> None:
        """Schedule the method's own learning rate, if it has one, over this many batches."""
