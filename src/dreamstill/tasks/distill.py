"""Distill: train a student on what a synthesizer makes, and keep the one the judge chooses."""

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dreamstill.classes import class_counts, missing_classes
from dreamstill.errors import NonFiniteError, SettingsError
from dreamstill.judge import Judge
from dreamstill.pool import Augmentation, augment
from dreamstill.probe import batch_norm_layers
from dreamstill.settings import above, at_least, no_effect, settings_class, within
from dreamstill.synthesis.contract import Annealed, Batch, Synthesizer
from dreamstill.tasks.reconstruct import reconstruct
from dreamstill.tasks.transfer import Transfer, TransferLoss
from dreamstill.teacher import Teacher

__all__ = [
    "Distillation",
    "DistillSettings",
    "Optimizer",
    "Progress",
    "Replay",
    "Transfer",
    "start_kept",
]

log = logging.getLogger(__name__)


class Optimizer(StrEnum):
    """What changes the student's weights."""

    ADAM = "adam"
    SGD = "sgd"


@settings_class
class DistillSettings:
    """Settings of distillation."""

    steps: int = 2000
    """Student steps; at least 0: the student stays as it starts."""
    batch_size: int = 256
    """Images of a replayed batch; fresh ones have synthesis.batch_size. At least 2."""
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
    """Losses, summed. On logits: kl (Hinton's), reverse-kl, js, mse, l1; on feature maps: mimic,
    attention, boundary (a first stage that initializes the student); on the penultimate features:
    relational, similarity; on all layers of a student that was made from its teacher: layers."""
    transfer_weights: tuple[float, ...] | None = None
    """A weight for each loss; at least 0. Default: 1 on logits, the papers' on features."""
    boundary_share: float = 0.25
    """Share of the steps that a boundary stage takes, where there is one. 0 to 1."""
    temperature: float = 4.0
    """Of kl, reverse-kl and js; above 0. At 1 they are the plain divergences."""
    optimizer: Optimizer = Optimizer.ADAM
    """adam or sgd, of the student."""
    lr: float = 2e-3
    """Learning rate; above 0."""
    momentum: float = 0.9
    """Of sgd; in [0, 1]."""
    weight_decay: float = 0.0
    """At least 0."""
    anneal: bool = True
    """Bring the learning rate to 0 by a cosine over the steps."""
    drops: tuple[float, ...] = ()
    """Shares of the steps after which the learning rate falls to a tenth, in place of the cosine.
    In [0, 1]."""
    judge_every: int = 100
    """Steps between the judge's sittings; at least 1. The last step always has one."""
    held_out: int = 2048
    """Synthetic images held out for the judge; at least 2."""
    freeze_batch_norm: bool = False
    """Leave the student's BatchNorm running statistics as they are: for fine-tuning on images that
    would spoil them."""
    clip_gradient: float = 0.0
    """Largest norm of the student's gradient; 0: none."""

    def fresh_period(self, *, streams: bool) -> int:
        """Steps from one fresh batch to the next, where a method streams or not; 0: none."""
        default = 1 if streams else 0
        return default if self.fresh_every is None else self.fresh_every

    def __post_init__(self) -> None:
        at_least(self, 0, "steps")
        at_least(self, 1, "pool", "judge_every")
        at_least(self, 2, "batch_size", "held_out")
        above(self, 0, "temperature", "lr")
        at_least(self, 0, "prefill", "fresh_every", "clip_gradient", "transfer_weights")
        at_least(self, 0, "weight_decay")
        within(self, 0, 1, "boundary_share", "momentum", "drops")
        if self.optimizer is not Optimizer.SGD:
            no_effect(self, "without sgd", "momentum")
        if self.drops:
            no_effect(self, "beside drops", "anneal")
        if self.prefill == 0 and self.fresh_every == 0:
            raise SettingsError("prefill 0 and fresh_every 0 leave nothing to learn from")
        if not self.transfer:
            raise SettingsError(f"transfer must name at least one of {', '.join(Transfer)}")
        if len(set(self.transfer)) < len(self.transfer):
            raise SettingsError(f"transfer names a loss twice: {', '.join(self.transfer)}")
        if self.transfer == (Transfer.BOUNDARY,):
            raise SettingsError("boundary only initializes the student: name a loss beside it")
        if not {Transfer.KL, Transfer.REVERSE_KL, Transfer.JS} & {*self.transfer}:
            no_effect(self, "without kl, reverse-kl or js", "temperature")
        if Transfer.BOUNDARY not in self.transfer:
            no_effect(self, "without boundary", "boundary_share")
        weights = self.transfer_weights
        if weights is not None and len(weights) != len(self.transfer):
            raise SettingsError(
                f"transfer_weights must have {len(self.transfer)} values; got {weights}"
            )


def start_kept(steps: int) -> str:
    """Say that training was in vain, and what to do."""
    return (
        f"none of the {steps:,} steps improved on the start, which was kept: lower the learning "
        "rate, or leave the steps out"
    )


def optimizer_of(
    parameters: Iterable[nn.Parameter], settings: DistillSettings
) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum."""
    lr, decay = settings.lr, settings.weight_decay
    if settings.optimizer is Optimizer.ADAM:
        return torch.optim.Adam(parameters, lr, weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, lr, settings.momentum, weight_decay=decay, fused=True)


def schedule_of(
    optimizer: torch.optim.Optimizer, settings: DistillSettings
) -> torch.optim.lr_scheduler.LRScheduler:
    """Of the learning rate: steps down, a cosine to 0, or none."""
    if settings.drops:
        milestones = [round(share * settings.steps) for share in settings.drops]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    if settings.anneal:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


@dataclass(frozen=True, slots=True)
class Progress:
    """What happened: one synthesized batch before the first step, or one student step."""

    stage: str
    """"warm up", "synthesize", "reconstruct" or "distill"."""
    done: int
    total: int
    record: dict[str, float]
    """Of a student step: step, loss and, after a sitting, agreement, kl and kept; of the last one
    chosen_at_step, the step whose student was chosen: 0 is the start."""


class Replay(Protocol):
    """Images to train on again: a pool on disk, or in memory."""

    @property
    def added(self) -> int:
        """How many images were ever added."""

    def add(self, batch: Batch) -> None:
        """Store the batch's images, rounded to uint8."""

    def images(self, most: int | None = None) -> Tensor:
        """All images, or at most so many, uint8 (N, C, H, W)."""

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw `num` images in the teacher's input space, on the rng's device."""

    def commit(self) -> None:
        """Write what was added to the file, where there is one."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""


class Distillation:
    """A distillation that can be stopped and taken up at any step.

    Args:
        teacher: frozen; asked anew for augmented images.
        student: trained in place; in train mode for each step.
        synthesizer: any method; this class does not know which.
        pool: where its batches are kept.
        settings: see DistillSettings.
        rng: for replay and augmentation; the synthesizer may share it.
        inherited: by layer, which of the teacher's channels the student has, where it was made from
            the teacher: what `inherit` returned.
        reconstruct: images, at most the pool's capacity, on which the layers of such a student are
            solved before the first step; 0: it starts as it was cut.
        pretrained: the student is no random network. As one that inherits, it is judged before its
            first step, and its start is what is chosen where no step improves on it.

    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        synthesizer: Synthesizer,
        pool: Replay,
        settings: DistillSettings,
        *,
        rng: torch.Generator,
        inherited: Mapping[str, Tensor] | None = None,
        reconstruct: int = 0,
        pretrained: bool = False,
    ) -> None:
        self.pretrained = pretrained or inherited is not None
        self.reconstruct = min(reconstruct, settings.pool)
        self.inherited = inherited if reconstruct else None
        self.teacher, self.student, self.synthesizer = teacher, student, synthesizer
        self.pool, self.settings, self.rng = pool, settings, rng
        streams = synthesizer.streams
        default_prefill = 0 if streams else settings.pool
        self.prefill = default_prefill if settings.prefill is None else settings.prefill
        self.fresh_every = settings.fresh_period(streams=streams)
        if self.prefill == 0 and self.fresh_every == 0:
            raise SettingsError("prefill 0 and fresh_every 0 leave nothing to learn from")
        if self.fresh_every == 1 and settings.augment != Augmentation():
            raise SettingsError(
                "augment changes replayed images, and with a fresh batch at every step none is: "
                "set distill.fresh_every, or leave augment alone"
            )
        if settings.steps == 0:  # the rest would be looked at by nobody
            self.prefill = min(self.prefill, self.reconstruct)
        self.judge = Judge(settings.held_out, teacher.spec)
        self.counts = torch.zeros(teacher.num_classes, dtype=torch.int64)
        self.warnings: list[str] = []  # logged in this process, of all that a run may warn of
        self.loss = TransferLoss(
            teacher,
            student,
            settings.transfer,
            weights=settings.transfer_weights,
            temperature=settings.temperature,
            rng=rng,
            kept=inherited,
        )
        parameters = [*student.parameters(), *self.loss.connectors.parameters()]
        self.optimizer = optimizer_of(parameters, settings)
        boundary = Transfer.BOUNDARY in settings.transfer
        self.boundary_steps = int(settings.boundary_share * settings.steps) if boundary else 0
        self.warmed_up = 0
        self._start_from(synthesizer)
        self.repeated: Batch | None = None  # the fresh batch that is trained on again
        self.repeats_left = 0
        self.schedule = schedule_of(self.optimizer, settings)
        self.step = 0

        if isinstance(synthesizer, Annealed):
            synthesizer.anneal_over(self._num_batches(synthesizer.batch_size))

    def _start_from(self, synthesizer: Synthesizer) -> None:
        """Take what the synthesizer is now for healthy, and for the judge's own memory."""
        self.healthy = copy.deepcopy(synthesizer.state_dict())
        self.aside = copy.deepcopy(self.healthy) if synthesizer.remembers else None

    def _num_batches(self, size: int) -> int:
        """Of `size` images, that the synthesizer is asked for from now to the last step."""
        settings = self.settings
        pool = max(self.prefill, 0 if self.inherited is None else self.reconstruct)
        num = math.ceil(settings.held_out / size) + math.ceil(pool / size)
        if self.fresh_every:
            period = math.ceil(self.synthesizer.repeat / self.fresh_every) * self.fresh_every
            num += math.ceil(settings.steps / period)
            num += math.ceil(settings.steps / settings.judge_every)
        return num

    def run(self) -> Iterator[Progress]:
        """Fill the pool, then train; yields after every batch and step, when a stop is safe."""
        while self.warmed_up < self.synthesizer.warm_up:
            self.synthesizer.next_batch(self.student)
            self.warmed_up += 1
            if self.warmed_up == self.synthesizer.warm_up:
                self._start_from(self.synthesizer)
            yield Progress("warm up", self.warmed_up, self.synthesizer.warm_up, {})
        while len(self.judge.images) < self.settings.held_out or self.pool.added < self.prefill:
            self._synthesize()
            total = self.prefill + self.settings.held_out
            have = min(self.pool.added + len(self.judge.images), total)
            yield Progress("synthesize", have, total, {})
        if self.inherited is not None:
            while self.pool.added < self.reconstruct:
                self._synthesize()
                have = min(self.pool.added, self.reconstruct)
                yield Progress("reconstruct", have, self.reconstruct, {})
            images = self.pool.images(self.reconstruct).to(self.rng.device)
            inputs = self.teacher.spec.encode(images)
            reconstruct(self.teacher.module, self.student, self.inherited, inputs, rng=self.rng)
            self.inherited = None
        if self.pretrained and self.step == 0:
            self.judge.sit(self.student, 0)
        if not self.fresh_every:
            self._look_at_classes()
        while self.step < self.settings.steps:
            record = self._train_step()
            yield Progress("distill", self.step, self.settings.steps, record)
        if self.fresh_every:
            self._look_at_classes()
        if self.kept_start:
            self._warn(start_kept(self.settings.steps))

    @property
    def kept_start(self) -> bool:
        """Steps were taken, and none was an improvement on the start."""
        judged = self.judge.champion is not None and self.judge.champion_step == 0
        return judged and 0 < self.settings.steps == self.step

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
        if len(self.judge.images) < self.settings.held_out:
            batch = self._held_out_batch()
            self.judge.hold_out(batch)
        else:
            batch = self.synthesizer.next_batch(self.student)
            self.pool.add(batch)
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
        images = self.pool.sample(self.settings.batch_size, self.rng)
        return augment(images, self.teacher.spec, self.settings.augment, self.rng), None

    def _train_step(self) -> dict[str, float]:
        settings = self.settings
        images, logits = self._next_batch()
        self.student.train()
        if settings.freeze_batch_norm:
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
        if settings.clip_gradient:
            nn.utils.clip_grad_norm_(self.student.parameters(), settings.clip_gradient)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        record = {"step": float(self.step), "loss": value}
        if self.step % settings.judge_every == 0 or self.step == settings.steps:
            if self.fresh_every:
                record["collapsed"] = float(self._refresh_judge())
            verdict = self.judge.sit(self.student, self.step)
            record |= {"agreement": verdict.agreement, "kl": verdict.kl, "kept": verdict.kept}
        if self.step == settings.steps:
            record["chosen_at_step"] = float(self.judge.champion_step)
        return record

    def _refresh_judge(self) -> bool:
        """Hold out a newer batch, for the stream may have moved on; roll a collapsed one back."""
        batch = self._held_out_batch()
        if collapsed := self.judge.is_collapse(batch):
            self.synthesizer.load_state_dict(copy.deepcopy(self.healthy))
        else:
            self.judge.hold_out(batch)
            self.healthy = copy.deepcopy(self.synthesizer.state_dict())
        return collapsed

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
            "connectors": self.loss.connectors.state_dict(),
            "warmed_up": self.warmed_up,
            "reconstructed": self.inherited is None,
            "repeats_left": self.repeats_left,
            "repeated": (self.repeated.images, self.repeated.logits) if self.repeated else None,
            "synthesizer": self.synthesizer.state_dict(),
            "healthy": self.healthy,
            "aside": self.aside,
            "judge": self.judge.state_dict(),
            "counts": self.counts,
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
        self.loss.connectors.load_state_dict(state["connectors"])
        self.warmed_up, self.repeats_left = state["warmed_up"], state["repeats_left"]
        self.inherited = None if state["reconstructed"] else self.inherited
        self.repeated = Batch(*state["repeated"]) if state["repeated"] else None
        self.synthesizer.load_state_dict(state["synthesizer"])
        self.healthy, self.aside = state["healthy"], state["aside"]
        self.judge.load_state_dict(state["judge"], self.student)
        self.counts = state["counts"].cpu()
        self.pool.load_state_dict(state["pool"])
        self.rng.set_state(state["rng"].cpu())  # a checkpoint is mapped to the run's device
