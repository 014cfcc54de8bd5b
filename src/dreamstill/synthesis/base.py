"""The base class of every method: what a synthesizer takes, what it gives, and the defaults."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from dreamstill.data.batch import Batch
from dreamstill.teacher import Teacher

__all__ = ["Method"]


class Method(ABC):
    """A method that makes inputs from a teacher alone; a subclass states where it differs.

    The same rng gives the same batches, and `load_state_dict` of a `state_dict` continues as if
    the run had never been interrupted; the state of the rng itself belongs to the run.

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
    state: ClassVar[tuple[str, ...]] = ()
    """Attributes that a resume needs: parts with a `state_dict` of their own, numbers, tensors."""
    repeat: int = 1
    """Student steps on each fresh batch."""
    warm_up: int = 0
    """Batches that the method first learns on and that are not meant for training."""

    def __init__(self, teacher: Teacher, config: Any, *, rng: torch.Generator) -> None:
        self.teacher, self.config, self.rng = teacher, config, rng

    @abstractmethod
    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Return the next batch; adversarial methods read the live student."""

    def anneal_over(self, batches: int) -> None:  # noqa: B027
        """Plan the method's own learning rate over this many batches, where it has one."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resume needs: what `state` names."""
        parts = {name: getattr(self, name) for name in self.state}
        return {n: p.state_dict() if hasattr(p, "state_dict") else p for n, p in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        for name in self.state:
            part = getattr(self, name)
            if hasattr(part, "load_state_dict"):
                part.load_state_dict(state[name])
            else:
                setattr(self, name, state[name])
