"""Distill a student on the images that a method makes."""

from collections.abc import Iterator, Mapping
from statistics import mean
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
from dreamstill.nn.graph_network import named_like
from dreamstill.output_spec import OutputKind
from dreamstill.process_group import gathered_states, state_of_this
from dreamstill.progress import Progress
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.batch_norm_statistics import measured_divergence
from dreamstill.synthesis.validation_set import validation_set
from dreamstill.teacher import Teacher

__all__ = ["Distillation"]

NUM_CHECKED = 256
"""Images that are compared with the teacher's BatchNorm statistics."""
MOST_DIVERGENCE = 4.0
"""Times the BNS divergence of drawn images that fit the teacher, above which images are unlike its
own. On LeNet-5 with BatchNorm (MNIST) noise has 8, structured noise 1; on ResNet-20 (CIFAR-10) 16
and 2."""


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
        selector = ModelSelector(validation, teacher.input_spec, teacher.output_kind)
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
            whole = named_like(self.teacher.module, self.student)
            layer_reconstruction.reconstruct(
                whole, self.student, self.inherited, inputs, rng=self.rng
            )
            self.to_reconstruct = 0
        if not self.stream.fresh_every:  # all images are made
            self._check_images()
        yield from super().run()
        self._check_images()

    def before_validation(self) -> dict[str, float]:
        """Set the method back if it has collapsed."""
        return self.stream.check_method()

    def _check_images(self) -> None:
        """Warn of classes without images, and of images that the teacher does not know."""
        wanted, buffer = self.selector.validation.divergence, self.stream.buffer
        kind = self.teacher.output_kind
        num = None if kind is OutputKind.CLASSES else buffer.added
        if found := missing_classes(self.stream.counts, kind=kind, num=num):
            self.warn(found)
        if wanted is None or not len(buffer):
            return
        inputs = self.teacher.input_spec.encode(buffer.images(NUM_CHECKED).to(self.rng.device))
        ratio = mean(measured_divergence(self.teacher, inputs)) / wanted
        if ratio > MOST_DIVERGENCE:
            self.warn(
                f"the images are unlike what the teacher was trained on: {ratio:.0f} times as far "
                "from its BatchNorm statistics as drawn ones that fit it; expect little of the "
                "student, and take others, such as those of the default method"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resume needs beside the config and the buffer's file.

        Every process has to call it, and the main one's is all that they need.
        """
        stream = self.stream
        own = {
            "method": stream.method.state_dict(),
            "healthy": stream.healthy,
            "newest": stream.newest,
            "rng": stream.method.rng.get_state(),
        }
        processes = gathered_states(own)
        return super().state_dict() | {"rng": self.rng.get_state(), "processes": processes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, to the bit on a CPU with as many processes as before."""
        super().load_state_dict(state)
        own = state_of_this(state["processes"], self.stream.method.rng)
        self.stream.method.load_state_dict(own["method"])
        self.stream.healthy, self.stream.newest = own["healthy"], own["newest"]
        self.rng.set_state(state["rng"].cpu())  # last, as a process alone has one `rng`
