"""Distill: train a student on what a synthesizer makes, and keep the one the judge chooses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.errors import NonFiniteError, SettingsError
from dreamstill.judge import Judge
from dreamstill.losses import logits as transfer_losses
from dreamstill.pool import Augmentation, Pool, augment
from dreamstill.synthesis.contract import Batch, Synthesizer
from dreamstill.teacher import Teacher

__all__ = ["Distillation", "DistillSettings", "Progress", "Transfer"]


class Transfer(StrEnum):
    """Losses that may be summed; see `dreamstill.losses.logits`."""

    KL = "kl"
    L1 = "l1"


LOSSES: dict[Transfer, Callable[[Tensor, Tensor, float], Tensor]] = {
    Transfer.KL: transfer_losses.kl_divergence,
    Transfer.L1: transfer_losses.l1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """Settings of distillation."""

    steps: int = 2000
    """Student steps; at least 1."""
    batch_size: int = 256
    """Images of a replayed batch; fresh batches have the synthesizer's size. At least 2."""
    prefill: int | None = None
    """Images put into the pool before the first step; default: 0 for methods that stream, else
    the pool's capacity."""
    fresh_every: int | None = None
    """A fresh batch every so many steps, replay in between; 0: never. Default: 1 for methods that
    stream, else 0."""
    pool: int = 20_000
    """Capacity of the pool in images; at least 1."""
    augment: Augmentation = field(default_factory=Augmentation)
    """Changes of replayed images."""
    transfer: tuple[Transfer, ...] = (Transfer.KL, Transfer.L1)
    """Losses on the logits, summed: kl (Hinton's, at `temperature`), l1."""
    temperature: float = 4.0
    """Of the kl loss; above 0. At 1 it is the plain forward KL."""
    lr: float = 2e-3
    """Learning rate of the student's Adam; above 0."""
    anneal: bool = True
    """Bring the learning rate to 0 by a cosine over the steps."""
    judge_every: int = 100
    """Steps between the judge's sittings; at least 1. The last step always has one."""
    held_out: int = 2048
    """Synthetic images held out for the judge; at least 2."""
    clip_gradient: float = 0.0
    """Largest norm of the student's gradient; 0: none."""

    def __post_init__(self) -> None:
        for name in ("steps", "pool", "judge_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("batch_size", "held_out"):
            if getattr(self, name) < 2:
                raise SettingsError(f"{name} must be at least 2; got {getattr(self, name)}")
        for name in ("temperature", "lr"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be above 0; got {getattr(self, name)}")
        for name in ("prefill", "fresh_every", "clip_gradient"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise SettingsError(f"{name} must be at least 0; got {value}")
        if self.prefill == 0 and self.fresh_every == 0:
            raise SettingsError("prefill 0 and fresh_every 0 leave nothing to learn from")
        if not self.transfer:
            raise SettingsError("transfer must name at least one loss: kl, l1")


@dataclass(frozen=True, slots=True)
class Progress:
    """What happened: one synthesized batch of the prefill, or one student step."""

    stage: str
    """"synthesize" or "distill"."""
    done: int
    total: int
    record: dict[str, float]
    """Of a student step: step, loss and, after a sitting, agreement, kl and kept."""


class Distillation:
    """A distillation that can be stopped and taken up at any step.

    Args:
        teacher: frozen; asked anew for augmented images.
        student: trained in place; in train mode for each step.
        synthesizer: any method; this class does not know which.
        pool: where its batches are kept.
        settings: see DistillSettings.
        rng: for replay and augmentation; the synthesizer may share it.

    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        synthesizer: Synthesizer,
        pool: Pool,
        settings: DistillSettings,
        *,
        rng: torch.Generator,
    ) -> None:
        self.teacher, self.student, self.synthesizer = teacher, student, synthesizer
        self.pool, self.settings, self.rng = pool, settings, rng
        streams = synthesizer.streams
        default_prefill = 0 if streams else settings.pool
        self.prefill = default_prefill if settings.prefill is None else settings.prefill
        default_fresh = 1 if streams else 0
        self.fresh_every = default_fresh if settings.fresh_every is None else settings.fresh_every
        if self.prefill == 0 and self.fresh_every == 0:
            raise SettingsError("prefill 0 and fresh_every 0 leave nothing to learn from")
        self.judge = Judge(settings.held_out)
        self.optimizer = torch.optim.Adam(student.parameters(), lr=settings.lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, settings.steps)
        self.step = 0

    def run(self) -> Iterator[Progress]:
        """Fill the pool, then train; yields after every batch and step, when a stop is safe."""
        while len(self.judge.images) < self.settings.held_out or self.pool.added < self.prefill:
            self._synthesize()
            total = self.prefill + self.settings.held_out
            have = min(self.pool.added + len(self.judge.images), total)
            yield Progress("synthesize", have, total, {})
        while self.step < self.settings.steps:
            record = self._train_step()
            yield Progress("distill", self.step, self.settings.steps, record)

    def _synthesize(self) -> Batch:
        """A fresh batch; until the judge has enough, it goes to the judge."""
        batch = self.synthesizer.next_batch(self.student)
        if len(self.judge.images) < self.settings.held_out:
            self.judge.hold_out(batch)
        else:
            self.pool.add(batch)
        return batch

    def _next_batch(self) -> Batch:
        if self.fresh_every and self.step % self.fresh_every == 0:
            return self._synthesize()
        images = self.pool.sample(self.settings.batch_size, self.rng)
        images = augment(images, self.teacher.spec, self.settings.augment, self.rng)
        with torch.no_grad():
            return Batch(images, self.teacher(images))

    def _train_step(self) -> dict[str, float]:
        settings = self.settings
        batch = self._next_batch()
        self.student.train()
        output = self.student(batch.images)
        loss = torch.stack(
            [LOSSES[name](output, batch.logits, settings.temperature) for name in settings.transfer]
        ).sum()
        value = loss.item()
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the student's loss became {value} at step {self.step}; lower distill.lr"
            )
        self.optimizer.zero_grad()
        loss.backward()
        if settings.clip_gradient:
            nn.utils.clip_grad_norm_(self.student.parameters(), settings.clip_gradient)
        self.optimizer.step()
        if settings.anneal:
            self.schedule.step()
        self.step += 1
        record = {"step": float(self.step), "loss": value}
        if self.step % settings.judge_every == 0 or self.step == settings.steps:
            # the stream may have moved on since the last sitting: refresh an eighth of the ring
            if self.fresh_every:
                self.judge.hold_out(self.synthesizer.next_batch(self.student))
            verdict = self.judge.sit(self.student, self.step)
            record |= {"agreement": verdict.agreement, "kl": verdict.kl, "kept": verdict.kept}
        return record

    @property
    def chosen(self) -> nn.Module:
        """The student the judge keeps, in eval mode; before the first sitting the live one."""
        return (self.judge.champion or self.student).eval()

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs beside the settings and the pool's file."""
        return {
            "step": self.step,
            "queries": self.teacher.queries,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "synthesizer": self.synthesizer.state_dict(),
            "judge": self.judge.state_dict(),
            "pool": self.pool.state_dict(),
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, to the bit on a CPU."""
        self.step = state["step"]
        self.teacher.queries = state["queries"]
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.synthesizer.load_state_dict(state["synthesizer"])
        self.judge.load_state_dict(state["judge"], self.student)
        self.pool.load_state_dict(state["pool"])
        self.rng.set_state(state["rng"])
