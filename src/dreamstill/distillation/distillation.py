"""Distill a student on the images that a method makes."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.data.class_coverage import missing_classes
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation import layer_reconstruction
from dreamstill.distillation.batch_stream import BatchStream
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.model_selection import ModelSelector
from dreamstill.distillation.trainer import Trainer
from dreamstill.progress import Progress
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.validation_set import validation_set
from dreamstill.teacher import Teacher

__all__ = ["Distillation"]


class Distillation(Trainer):
    """A training on the images of a method, which can be resumed after any batch or step.

    Args:
        teacher, student, config, inherited, pretrained: see `Trainer`.
        method: makes the images.
        buffer: stores them.
        rng: draws from the buffer and augments; the method may share it.
        reconstruct: images, at most buffer_size, on which the layers of a student that inherits are
            reconstructed before the first step; 0: it starts as it is.

    """

    state = (*Trainer.state, "stream", "to_reconstruct")

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        method: Method,
        buffer: ReplayBuffer,
        config: DistillConfig,
        *,
        rng: torch.Generator,
        inherited: Mapping[str, Tensor] | None = None,
        reconstruct: int = 0,
        pretrained: bool = False,
    ) -> None:
        self.rng = rng
        self.inherited = inherited
        self.to_reconstruct = 0 if inherited is None else min(reconstruct, config.buffer_size)
        validation = validation_set(teacher, config.num_validation)
        selector = ModelSelector(validation, teacher.input_spec)
        self.stream = BatchStream(
            method, buffer, student, config, rng=rng, least=self.to_reconstruct
        )
        super().__init__(
            *(teacher, student, self.stream, selector, config),
            rng=rng,
            inherited=inherited,
            pretrained=pretrained,
        )

    def run(self) -> Iterator[Progress]:
        """Fill the buffer, then train; yield after every batch and step, when a stop is safe.

        Raises:
            NonFiniteError: a loss is not finite; before the update.

        """
        yield from self.stream.fill()
        if self.inherited is not None and self.to_reconstruct:
            images = self.stream.buffer.images(self.to_reconstruct).to(self.rng.device)
            inputs = self.teacher.input_spec.encode(images)
            layer_reconstruction.reconstruct(
                self.teacher.module, self.student, self.inherited, inputs, rng=self.rng
            )
            self.to_reconstruct = 0
        if not self.stream.fresh_every:  # all images are made
            self._check_classes()
        yield from super().run()
        self._check_classes()

    def before_validation(self) -> dict[str, float]:
        """Set the method back if it has collapsed."""
        return self.stream.check_method()

    def _check_classes(self) -> None:
        if found := missing_classes(self.stream.counts):
            self.warn(found)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resume needs beside the config and the buffer's file."""
        return super().state_dict() | {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, to the bit on a CPU."""
        super().load_state_dict(state)
        self.rng.set_state(state["rng"].cpu())  # a checkpoint is mapped to the run's device
