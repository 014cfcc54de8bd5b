"""The base class of every method: what a synthesizer takes, what it gives, and the defaults."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from dreamstill.data.batch import Batch
from dreamstill.files.checkpoints import Stateful
from dreamstill.teacher import Teacher

__all__ = ["Method"]


class Method(Stateful, ABC):
    """A method that makes inputs from a teacher alone; a subclass states where it differs.

    The same rng gives the same batches. `state` names what a resume needs, less the state of the
    rng, which belongs to the run.

    Args:
        teacher: the network whose inputs are made.
        config: the settings of the method; `config.batch_size` is the images in a batch.
        rng: draws everything that is random.

    """

    streams: ClassVar[bool] = False
    """A batch costs about as much as a training step, so every step can have a fresh one."""
    adversarial: ClassVar[bool] = False
    """`next_batch` plays against a student and cannot do without one."""
    remembers: ClassVar[bool] = False
    """A batch may hold images of earlier ones: validation images need a memory of their own."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the teacher's `Capabilities` that the method cannot do without."""
    repeat: int = 1
    """Student steps on each fresh batch."""
    warm_up: int = 0
    """Batches that the method first learns on and that are not meant for training."""

    def __init__(self, teacher: Teacher, config: Any, *, rng: torch.Generator) -> None:
        self.teacher, self.config, self.rng = teacher, config, rng

    @abstractmethod
    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Return the next batch; adversarial methods read the live student."""

    def anneal_over(self, batches: int) -> None:
        """Plan the method's own learning rate over this many batches, where it has one."""
