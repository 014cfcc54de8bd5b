"""Train a student toward its teacher on batches of images, wherever they come from."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dreamstill.data.batch import TrainingBatch
from dreamstill.distillation.config import FinetuneConfig
from dreamstill.distillation.distillation_losses import DistillationLoss, Networks
from dreamstill.distillation.model_selection import ModelSelector
from dreamstill.distillation.optimizers import optimizer_of, schedule_of
from dreamstill.errors import ConfigError, DataError, NonFiniteError
from dreamstill.files.checkpoints import Stateful
from dreamstill.nn.hooks import batch_norm_layers
from dreamstill.process_group import (
    is_main,
    mean_over_processes,
    parallel,
    share_of,
    sum_over_processes,
    synchronized,
    world_size,
)
from dreamstill.progress import Progress, start_kept
from dreamstill.teacher import Teacher

__all__ = ["Trainer"]

log = logging.getLogger(__name__)


class _Losses(nn.Module):
    """The distillation losses as a module, which holds all that is trained."""

    def __init__(self, loss: DistillationLoss, *, initialize: bool) -> None:
        super().__init__()
        self.loss, self.student, self.connectors = loss, loss.student, loss.connectors
        self.initialize = initialize

    def forward(self, images: Tensor, logits: Tensor | None) -> Tensor:
        return self.loss.initialize(images) if self.initialize else self.loss(images, logits)


class Trainer(Stateful):
    """The training of a student on any batches, which can be stopped and resumed after any step.

    Args:
        teacher: frozen; asked for what the batches do not say.
        student: trained in place; in train mode for each step.
        batches: one for each step that is left.
        selector: holds the validation images, and the best student so far.
        config: losses, optimizer and steps.
        rng: initializes the layers that some losses train.
        inherited: by layer, which of the teacher's output channels the student has, where it was
            made from the teacher: see `inherit`.
        pretrained: the student is no random network. As one that inherits, it is validated before
            its first step, and its start is selected where no step improves on it.

    Raises:
        ConfigError: the two networks have no layers that one of the losses can compare, or the
            batches are too small for so many processes.

    """

    state: ClassVar[tuple[str, ...]] = ("step", "visits", "student", "optimizer", "schedule")

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        batches: Iterable[TrainingBatch],
        selector: ModelSelector,
        config: FinetuneConfig,
        *,
        rng: torch.Generator,
        inherited: Mapping[str, Tensor] | None = None,
        pretrained: bool = False,
    ) -> None:
        self.teacher, self.student, self.batches = teacher, student, batches
        self.selector, self.config = selector, config
        self.pretrained = pretrained or inherited is not None
        networks = Networks(teacher, student, config.temperature, rng, inherited or {})
        self.loss = DistillationLoss(networks, config.losses, config.loss_weights)
        parameters = [*student.parameters(), *self.loss.connectors.parameters()]
        self.optimizer = optimizer_of(parameters, config)
        self.schedule = schedule_of(self.optimizer, config)
        boundary = any(part.before_relu for part in self.loss.parts.values())
        self.boundary_steps = int(config.boundary_share * config.steps) if boundary else 0
        self.parallel: dict[bool, nn.Module] = {}
        """The losses of this phase, by whether it initializes the student."""
        if config.batch_size < 2 * world_size():
            raise ConfigError(
                f"batches of {config.batch_size} are too small for {world_size()} processes: each "
                "takes 2 images or more"
            )
        self.step = self.visits = 0  # images trained on, each as often as it was
        self.warnings: list[str] = []
        """Warnings logged in this process: all that the run may give."""

    def run(self) -> Iterator[Progress]:
        """Take the steps that are left; yield after each one, when a stop is safe.

        Raises:
            DataError: there are fewer batches than steps.
            NonFiniteError: a loss is not finite; before the update.

        """
        steps = self.config.steps
        if self.pretrained and self.step == 0:
            self.selector.validate(self.student, 0)
        for _, (images, logits) in zip(range(self.step, steps), self.batches, strict=False):
            record = {"loss": self._train_step(images, logits)}
            if self.step % self.config.validate_every == 0 or self.step == steps:
                record |= self.before_validation()
                record |= asdict(self.selector.validate(self.student, self.step))
            if self.step == steps:
                record["chosen_at_step"] = float(self.selector.best_step)
            yield Progress("distill", self.step, steps, {"step": float(self.step)} | record)
        if self.step < steps:
            raise DataError(
                f"the batches ended after {self.step} of {steps} steps: give one a step"
            )
        if steps and self.selector.best_step == 0:
            self.warn(start_kept(steps))

    def before_validation(self) -> dict[str, float]:
        """Prepare a validation; return what is to be recorded with it."""
        return {}

    def warn(self, text: str) -> None:
        """Log a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)
            log.warning("%s", text)

    def _train_step(self, images: Tensor, logits: Tensor | None) -> float:
        config = self.config
        self.student.train()
        if config.freeze_batch_norm:
            for layer in batch_norm_layers(self.student).values():
                layer.eval()
        initialize = self.step < self.boundary_steps
        if (
            initialize not in self.parallel
        ):  # made late, as it sends the weights, also after a resume
            self.parallel = {initialize: parallel(_Losses(self.loss, initialize=initialize))}
        with synchronized():
            shown, known = share_of(images), None if logits is None else share_of(logits)
            loss = self.parallel[initialize](shown, known)
            loss = loss * (len(shown) * world_size() / len(images))  # shares may be uneven
        value = mean_over_processes(loss).item()
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the student's loss became {value} at step {self.step}; lower its lr"
            )
        self.optimizer.zero_grad()
        loss.backward()
        if config.clip_gradient:
            nn.utils.clip_grad_norm_(self.student.parameters(), config.clip_gradient)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.visits += len(images)
        return value

    @property
    def chosen(self) -> nn.Module:
        """The best student, in eval mode; before the first validation the live one."""
        return (self.selector.best or self.student).eval()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resume needs beside the config."""
        return super().state_dict() | {
            "queries": sum_over_processes(self.teacher.queries),
            "connectors": self.loss.connectors.state_dict(),
            "selector": self.selector.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        super().load_state_dict(state)
        self.teacher.queries = state["queries"] if is_main() else 0
        self.loss.connectors.load_state_dict(state["connectors"])
        self.selector.load_state_dict(state["selector"], self.student)
