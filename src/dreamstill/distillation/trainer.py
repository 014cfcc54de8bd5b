"""Distill: train a student on what a synthesizer makes, and keep the one the judge chooses."""

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.data.augmentation import augment
from dreamstill.data.batch import Batch
from dreamstill.data.class_coverage import class_counts, missing_classes
from dreamstill.data.config import Augmentation
from dreamstill.data.replay_buffer import Replay
from dreamstill.distillation.config import DistillConfig, LossName
from dreamstill.distillation.distillation_losses import DistillationLoss
from dreamstill.distillation.layer_reconstruction import reconstruct
from dreamstill.distillation.model_selection import ModelSelector
from dreamstill.distillation.optimizers import optimizer_of, schedule_of
from dreamstill.errors import ConfigError, NonFiniteError
from dreamstill.nn.hooks import batch_norm_layers
from dreamstill.progress import Progress, start_kept
from dreamstill.synthesis.base import Annealed, Synthesizer
from dreamstill.teacher import Teacher

__all__ = ["Distillation"]

log = logging.getLogger(__name__)


class Distillation:
    """A distillation that can be stopped and taken up at any step.

    Args:
        teacher: frozen; asked anew for augmented images.
        student: trained in place; in train mode for each step.
        synthesizer: any method; this class does not know which.
        buffer: where its batches are kept.
        config: see DistillConfig.
        rng: for replay and augmentation; the synthesizer may share it.
        inherited: by layer, which of the teacher's channels the student has, where it was made from
            the teacher: what `inherit` returned.
        reconstruct: images, at most buffer_size, on which the layers of such a student are solved
            before the first step; 0: it starts as it was cut.
        pretrained: the student is no random network. As one that inherits, it is judged before its
            first step, and its start is what is chosen where no step improves on it.

    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        synthesizer: Synthesizer,
        buffer: Replay,
        config: DistillConfig,
        *,
        rng: torch.Generator,
        inherited: Mapping[str, Tensor] | None = None,
        reconstruct: int = 0,
        pretrained: bool = False,
    ) -> None:
        self.pretrained = pretrained or inherited is not None
        self.reconstruct = min(reconstruct, config.buffer_size)
        self.inherited = inherited if reconstruct else None
        self.teacher, self.student, self.synthesizer = teacher, student, synthesizer
        self.buffer, self.config, self.rng = buffer, config, rng
        streams = synthesizer.streams
        default_prefill = 0 if streams else config.buffer_size
        self.prefill = default_prefill if config.prefill is None else config.prefill
        self.fresh_every = config.fresh_period(streams=streams)
        if self.prefill == 0 and self.fresh_every == 0:
            raise ConfigError("prefill 0 and fresh_every 0 leave nothing to learn from")
        if self.fresh_every == 1 and config.augment != Augmentation():
            raise ConfigError(
                "augment changes replayed images, and with a fresh batch at every step none is: "
                "set distill.fresh_every, or leave augment alone"
            )
        if config.steps == 0:  # the rest would be looked at by nobody
            self.prefill = min(self.prefill, self.reconstruct)
        self.selector = ModelSelector(config.num_validation, teacher.input_spec)
        self.counts = torch.zeros(teacher.num_classes, dtype=torch.int64)
        self.warnings: list[str] = []  # logged in this process, of all that a run may warn of
        self.loss = DistillationLoss(
            teacher,
            student,
            config.losses,
            weights=config.loss_weights,
            temperature=config.temperature,
            rng=rng,
            kept=inherited,
        )
        parameters = [*student.parameters(), *self.loss.connectors.parameters()]
        self.optimizer = optimizer_of(parameters, config)
        boundary = LossName.BOUNDARY in config.losses
        self.boundary_steps = int(config.boundary_share * config.steps) if boundary else 0
        self.warmed_up = 0
        self._start_from(synthesizer)
        self.repeated: Batch | None = None  # the fresh batch that is trained on again
        self.repeats_left = 0
        self.schedule = schedule_of(self.optimizer, config)
        self.step = 0

        if isinstance(synthesizer, Annealed):
            synthesizer.anneal_over(self._num_batches(synthesizer.batch_size))

    def _start_from(self, synthesizer: Synthesizer) -> None:
        """Take what the synthesizer is now for healthy, and for the judge's own memory."""
        self.healthy = copy.deepcopy(synthesizer.state_dict())
        self.aside = copy.deepcopy(self.healthy) if synthesizer.remembers else None

    def _num_batches(self, size: int) -> int:
        """Of `size` images, that the synthesizer is asked for from now to the last step."""
        config = self.config
        buffer = max(self.prefill, 0 if self.inherited is None else self.reconstruct)
        num = math.ceil(config.num_validation / size) + math.ceil(buffer / size)
        if self.fresh_every:
            period = math.ceil(self.synthesizer.repeat / self.fresh_every) * self.fresh_every
            num += math.ceil(config.steps / period)
            num += math.ceil(config.steps / config.validate_every)
        return num

    def run(self) -> Iterator[Progress]:
        """Fill the buffer, then train; yields after every batch and step, when a stop is safe."""
        while self.warmed_up < self.synthesizer.warm_up:
            self.synthesizer.next_batch(self.student)
            self.warmed_up += 1
            if self.warmed_up == self.synthesizer.warm_up:
                self._start_from(self.synthesizer)
            yield Progress("warm up", self.warmed_up, self.synthesizer.warm_up, {})
        while (
            len(self.selector.images) < self.config.num_validation
            or self.buffer.added < self.prefill
        ):
            self._synthesize()
            total = self.prefill + self.config.num_validation
            have = min(self.buffer.added + len(self.selector.images), total)
            yield Progress("synthesize", have, total, {})
        if self.inherited is not None:
            while self.buffer.added < self.reconstruct:
                self._synthesize()
                have = min(self.buffer.added, self.reconstruct)
                yield Progress("reconstruct", have, self.reconstruct, {})
            images = self.buffer.images(self.reconstruct).to(self.rng.device)
            inputs = self.teacher.input_spec.encode(images)
            reconstruct(self.teacher.module, self.student, self.inherited, inputs, rng=self.rng)
            self.inherited = None
        if self.pretrained and self.step == 0:
            self.selector.sit(self.student, 0)
        if not self.fresh_every:
            self._look_at_classes()
        while self.step < self.config.steps:
            record = self._train_step()
            yield Progress("distill", self.step, self.config.steps, record)
        if self.fresh_every:
            self._look_at_classes()
        if self.kept_start:
            self._warn(start_kept(self.config.steps))

    @property
    def kept_start(self) -> bool:
        """Steps were taken, and none was an improvement on the start."""
        judged = self.selector.best is not None and self.selector.best_step == 0
        return judged and 0 < self.config.steps == self.step

    def _look_at_classes(self) -> None:
        """Warn, where the teacher gives the images made here too few classes."""
        if found := missing_classes(self.counts):
            self._warn(found)

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            log.warning("%s", text)

    def _synthesize(self) -> Batch:
        """A fresh batch; until the judge has enough, it goes to the judge."""
        if len(self.selector.images) < self.config.num_validation:
            batch = self._held_out_batch()
            self.selector.hold_out(batch)
        else:
            batch = self.synthesizer.next_batch(self.student)
            self.buffer.add(batch)
        self.counts += class_counts(batch.logits)
        return batch

    def _held_out_batch(self) -> Batch:
        """A batch for the judge; what is remembered of it, or for it, is its alone."""
        if self.aside is None:
            return self.synthesizer.next_batch(self.student)
        training = self.synthesizer.state_dict()
        self.synthesizer.load_state_dict(self.aside)
        batch = self.synthesizer.next_batch(self.student)
        self.aside = self.synthesizer.state_dict()
        self.synthesizer.load_state_dict(training)
        return batch

    def _next_batch(self) -> tuple[Tensor, Tensor | None]:
        """Images, and the teacher's answer where it has been asked for one."""
        if self.repeats_left:
            self.repeats_left -= 1
            assert self.repeated is not None
            return self.repeated.images, self.repeated.logits
        if self.fresh_every and self.step % self.fresh_every == 0:
            batch, self.repeats_left = self._synthesize(), self.synthesizer.repeat - 1
            self.repeated = batch if self.repeats_left else None
            return batch.images, batch.logits
        images = self.buffer.sample(self.config.batch_size, self.rng)
        return augment(images, self.teacher.input_spec, self.config.augment, self.rng), None

    def _train_step(self) -> dict[str, float]:
        config = self.config
        images, logits = self._next_batch()
        self.student.train()
        if config.freeze_batch_norm:
            for layer in batch_norm_layers(self.student).values():
                layer.eval()
        if self.step < self.boundary_steps:
            loss = self.loss.initialize(images)
        else:
            loss = self.loss(images, logits)
        value = loss.item()
        if not torch.isfinite(loss):
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
        record = {"step": float(self.step), "loss": value}
        if self.step % config.validate_every == 0 or self.step == config.steps:
            if self.fresh_every:
                record["collapsed"] = float(self._refresh_judge())
            verdict = self.selector.sit(self.student, self.step)
            record |= {"agreement": verdict.agreement, "kl": verdict.kl, "kept": verdict.kept}
        if self.step == config.steps:
            record["chosen_at_step"] = float(self.selector.best_step)
        return record

    def _refresh_judge(self) -> bool:
        """Hold out a newer batch, for the stream may have moved on; roll a collapsed one back."""
        batch = self._held_out_batch()
        if collapsed := self.selector.is_collapse(batch):
            self.synthesizer.load_state_dict(copy.deepcopy(self.healthy))
        else:
            self.selector.hold_out(batch)
            self.healthy = copy.deepcopy(self.synthesizer.state_dict())
        return collapsed

    @property
    def chosen(self) -> nn.Module:
        """The student the judge keeps, in eval mode; before the first sitting the live one."""
        return (self.selector.best or self.student).eval()

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs beside the settings and the buffer's file."""
        return {
            "step": self.step,
            "queries": self.teacher.queries,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "connectors": self.loss.connectors.state_dict(),
            "warmed_up": self.warmed_up,
            "reconstructed": self.inherited is None,
            "repeats_left": self.repeats_left,
            "repeated": (self.repeated.images, self.repeated.logits) if self.repeated else None,
            "synthesizer": self.synthesizer.state_dict(),
            "healthy": self.healthy,
            "aside": self.aside,
            "selector": self.selector.state_dict(),
            "counts": self.counts,
            "buffer": self.buffer.state_dict(),
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, to the bit on a CPU."""
        self.step = state["step"]
        self.teacher.queries = state["queries"]
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.loss.connectors.load_state_dict(state["connectors"])
        self.warmed_up, self.repeats_left = state["warmed_up"], state["repeats_left"]
        self.inherited = None if state["reconstructed"] else self.inherited
        self.repeated = Batch(*state["repeated"]) if state["repeated"] else None
        self.synthesizer.load_state_dict(state["synthesizer"])
        self.healthy, self.aside = state["healthy"], state["aside"]
        self.selector.load_state_dict(state["selector"], self.student)
        self.counts = state["counts"].cpu()
        self.buffer.load_state_dict(state["buffer"])
        self.rng.set_state(state["rng"].cpu())  # a checkpoint is mapped to the run's device
