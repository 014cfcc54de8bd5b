"""Base class of methods that draw many images and keep those that balance the classes."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from dreamstill.config import no_effect
from dreamstill.data.batch import Batch, answered
from dreamstill.errors import ConfigError
from dreamstill.nn.hooks import eval_mode
from dreamstill.output_spec import OutputKind, decisions
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.class_balance import ClassMemory, balanced, rank_in_class
from dreamstill.teacher import Teacher

__all__ = ["BalancedDraws"]

MEMORY_BYTES = 2**26
"""Maximum bytes of remembered images: a checkpoint contains them three times."""


def hardest_first(batch: Batch, teacher: Teacher, student: nn.Module) -> Batch:
    """Sort a batch by KL(teacher || student), the largest first; logits are of whole images."""
    with eval_mode(student):
        rival = teacher.output_spec.whole(teacher.run(student, batch.images))
    kind = teacher.output_kind
    if kind is OutputKind.VALUES:
        kl = (rival - batch.logits).square().mean(1)
    else:
        answers = (rival, batch.logits)
        if kind is OutputKind.LABELS:
            answers = (decisions(rival, kind), decisions(batch.logits, kind))
        log_student, log_teacher = (F.log_softmax(of, dim=1) for of in answers)
        kl = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
        kl = kl.view(len(rival), -1).mean(1)  # over the decisions of each image
    order = kl.argsort(descending=True, stable=True)
    return Batch(batch.images[order], batch.logits[order])


class BalancedDraws(Method):
    """Base of methods that draw images without a gradient and balance them over the classes.

    `config` has `batch_size`, `oversample`, `memory` and `mine`; see StructuredNoiseConfig. Of a
    teacher with a budget all images are kept as they are drawn.
    """

    fresh_every = 1
    state: ClassVar[tuple[str, ...]] = ("memory",)

    def __init__(self, teacher: Teacher, config: Any, *, rng: torch.Generator) -> None:
        super().__init__(teacher, config, rng=rng)
        if teacher.capabilities.budget is not None:
            where = "on a black box, which is asked about each image once"
            no_effect(config, where, "oversample", "memory", "mine", "fit")
        most = min(config.memory, MEMORY_BYTES // math.prod(teacher.input_spec.shape))
        shape = teacher.input_spec.shape
        self.memory = ClassMemory(most, teacher.output_spec, shape, rng.device)

    @abstractmethod
    def draw(self, num: int) -> Batch:
        """Draw images, and ask the teacher about them."""

    @torch.no_grad()
    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Return a batch that is balanced over the classes seen so far."""
        config, teacher = self.config, self.teacher
        if config.mine and student is None:
            raise ConfigError("mine prefers a student's mistakes: hand one to next_batch")
        if teacher.capabilities.budget is not None:  # every answer is worth keeping
            return self.draw(config.batch_size)
        outputs, num = teacher.output_spec, len(teacher.output_spec.groups)
        drawn = self.draw(config.batch_size * config.oversample)
        drawn = Batch(drawn.images, outputs.whole(drawn.logits))
        if config.mine and student is not None:
            drawn = hardest_first(drawn, teacher, student)
        share = -(-config.batch_size // num)
        rank = rank_in_class(outputs.group(drawn.logits), num)
        fresh, beyond = (
            Batch(drawn.images[of], drawn.logits[of]) for of in (rank < share, rank >= share)
        )
        recalled = self.memory.draw(share, self.rng)
        self.memory.remember(Batch(teacher.input_spec.decode(fresh.images), fresh.logits))
        # preferred first: fresh images, remembered ones, fresh ones beyond their class's share
        parts = (fresh, Batch(teacher.input_spec.encode(recalled.images), recalled.logits), beyond)
        images, logits = (torch.cat([getattr(p, k) for p in parts]) for k in ("images", "logits"))
        kept = balanced(outputs.group(logits), config.batch_size, num)
        if outputs.size:  # of dense outputs only those for whole images were kept
            return answered(teacher, images[kept])
        return Batch(images[kept], logits[kept])
