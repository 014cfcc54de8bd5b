"""Distill a student on the images of a method: the batch stream and the trainer together."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.batch_stream import BatchStream
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.layer_reconstruction import reconstruct as reconstruct_layers
from dreamstill.distillation.model_selection import ModelSelector
from dreamstill.distillation.trainer import Trainer
from dreamstill.progress import Progress, start_kept
from dreamstill.synthesis.base import Method
from dreamstill.teacher import Teacher

__all__ = ["Distillation"]

log = logging.getLogger(__name__)


class Distillation:
    """A distillation that can be stopped and resumed after any batch or step.

    Args:
        teacher, student, config: see `Trainer`.
        method: makes the images.
        buffer: stores them.
        rng: draws from the buffer and augments; the method may share it.
        inherited, pretrained: how the student starts; see `Trainer`.
        reconstruct: images, at most buffer_size, on which the layers of a student that inherits are
            reconstructed before the first step; 0: it starts as it is.

    """

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
        self.reconstruct = 0 if inherited is None else min(reconstruct, config.buffer_size)
        self.inherited = inherited if reconstruct else None  # until the layers are reconstructed
        self.warnings: list[str] = []
        """Warnings logged in this process: all that the run may give."""
        selector = ModelSelector(config.num_validation, teacher.spec)
        self.trainer = Trainer(
            teacher, student, selector, config, rng=rng, inherited=inherited, pretrained=pretrained
        )
        self.stream = BatchStream(
            method, buffer, selector, student, config, rng=rng, least=self.reconstruct
        )

    def run(self) -> Iterator[Progress]:
        """Fill the buffer, then train; yield after every batch and step, when a stop is safe.

        Raises:
            NonFiniteError: a loss is not finite; before the update.

        """
        stream, trainer = self.stream, self.trainer
        yield from stream.fill()
        if self.inherited is not None:
            images = stream.buffer.images(self.reconstruct).to(self.rng.device)
            inputs = trainer.teacher.spec.encode(images)
            whole, narrow = trainer.teacher.module, trainer.student
            reconstruct_layers(whole, narrow, self.inherited, inputs, rng=self.rng)
            self.inherited = None
        if not stream.fresh_every:  # all images are made
            self._warn(stream.missing_classes())
        yield from trainer.run(stream, stream.renew_validation)
        self._warn(stream.missing_classes())
        if trainer.kept_start:
            self._warn(start_kept(trainer.step))

    def _warn(self, text: str | None) -> None:
        if text and text not in self.warnings:
            self.warnings.append(text)
            log.warning("%s", text)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resume needs beside the config and the buffer's file."""
        return {
            "reconstructed": self.inherited is None,
            "trainer": self.trainer.state_dict(),
            "stream": self.stream.state_dict(),
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, to the bit on a CPU."""
        self.inherited = None if state["reconstructed"] else self.inherited
        self.trainer.load_state_dict(state["trainer"])
        self.stream.load_state_dict(state["stream"])
        self.rng.set_state(state["rng"].cpu())  # a checkpoint is mapped to the run's device
