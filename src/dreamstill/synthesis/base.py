"""The one contract: what every synthesizer takes and gives."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import nn

from dreamstill.data.batch import Batch
from dreamstill.teacher import Teacher

__all__ = ["Annealed", "Synthesizer"]


class Synthesizer(Protocol):
    """A method that makes inputs from a teacher alone.

    Same rng, same batches; `load_state_dict` of `state_dict` continues as if never interrupted
    (the rng's own state is the run's).
    """

    streams: ClassVar[bool]
    """A batch costs about as much as a training step, so every step can have a fresh one."""
    adversarial: ClassVar[bool]
    """`next_batch` plays against a student and cannot do without one."""
    remembers: ClassVar[bool]
    """A batch may hold images of earlier ones: the judge is given a memory of its own."""
    needs: ClassVar[tuple[str, ...]]
    """Names of `Capabilities` that the method cannot do without."""

    def __init__(self, teacher: Teacher, config: Any, *, rng: torch.Generator) -> None: ...

    @property
    def repeat(self) -> int:
        """Student steps on each fresh batch; 1 for most."""

    @property
    def warm_up(self) -> int:
        """Batches that are made while the method learns to make them, not to be trained on."""

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """The next batch; adversarial methods read the live student."""

    def state_dict(self) -> dict[str, Any]:
        """Generator, optimizer, memory: everything that a resume needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""


@runtime_checkable
class Annealed(Protocol):
    """A synthesizer whose own learning rate may fall over a run."""

    batch_size: int

    def anneal_over(self, batches: int) -> None:
        """Set its course, as the settings have it, over so many batches."""
