"""Structured noise: random shapes, no optimization, balanced over the classes by the teacher.

Source: ours; the shapes are those of `random_shapes`. Of a large draw the images are selected whose
classes are spread most evenly. It is a strong baseline and a good start for any method.
"""

import math
from dataclasses import field

import torch
import torch.nn.functional as F
from torch import nn

from dreamstill.config import at_least, config_class
from dreamstill.data.batch import Batch
from dreamstill.errors import ConfigError
from dreamstill.nn.hooks import eval_mode
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.class_balance import ClassMemory, balanced, rank_in_class
from dreamstill.synthesis.random_shapes import RandomShapes, structured_images
from dreamstill.teacher import Teacher

__all__ = ["StructuredNoise", "StructuredNoiseConfig"]

MEMORY_BYTES = 2**26
"""Checkpoints hold what is remembered three times over."""


@config_class
class StructuredNoiseConfig:
    """Settings of structured noise."""

    batch_size: int = 256
    """Images a batch; at least 1."""
    oversample: int = 2
    """Images drawn for each one selected, to balance the classes; at least 1."""
    memory: int = 5000
    """Images remembered, evenly over the classes, to fill up classes rare in a draw; at least 1. Of
    large images no more than 64 MiB."""
    mine: bool = False
    """Of a draw prefer what the live student gets most wrong, by KL: adversarial without a step."""
    shapes: RandomShapes = field(default_factory=RandomShapes)
    """What the shapes look like."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "oversample", "memory")

    @property
    def adversarial(self) -> bool:
        """Mining cannot do without a student."""
        return self.mine


def hardest_first(batch: Batch, teacher: Teacher, student: nn.Module) -> Batch:
    """Order a batch by KL(teacher || student), the largest first."""
    with eval_mode(student):
        log_student = F.log_softmax(teacher.run(student, batch.images), dim=1)
    log_teacher = F.log_softmax(batch.logits, dim=1)
    kl = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
    order = kl.argsort(descending=True, stable=True)
    return Batch(batch.images[order], batch.logits[order])


class StructuredNoise(Method):
    """Fresh class-balanced structured noise for ever."""

    config: StructuredNoiseConfig
    streams = True
    remembers = True
    state = ("memory",)

    def __init__(
        self, teacher: Teacher, config: StructuredNoiseConfig, *, rng: torch.Generator
    ) -> None:
        super().__init__(teacher, config, rng=rng)
        most = min(config.memory, MEMORY_BYTES // math.prod(teacher.spec.shape))
        self.memory = ClassMemory(most, teacher.num_classes, teacher.spec.shape, rng.device)

    @torch.no_grad()
    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """(batch_size, C, H, W) images of even classes, as far as every class was ever seen."""
        config, teacher = self.config, self.teacher
        if config.mine and student is None:
            raise ConfigError("structured_noise mines a student's mistakes: hand one to next_batch")
        num = config.batch_size * config.oversample
        images = teacher.spec.normalize(
            structured_images(num, teacher.spec, config.shapes, self.rng)
        )
        drawn = Batch(images, teacher(images))
        if config.mine and student is not None:
            drawn = hardest_first(drawn, teacher, student)
        share = -(-config.batch_size // teacher.num_classes)
        rank = rank_in_class(drawn.logits.argmax(1), teacher.num_classes)
        fresh, beyond = (
            Batch(drawn.images[of], drawn.logits[of]) for of in (rank < share, rank >= share)
        )
        recalled = self.memory.draw(share, self.rng)
        self.memory.remember(Batch(teacher.spec.decode(fresh.images), fresh.logits))
        # fresh images come first, then remembered ones, then what the draw has beyond its share
        parts = (fresh, Batch(teacher.spec.encode(recalled.images), recalled.logits), beyond)
        images, logits = (torch.cat([getattr(p, k) for p in parts]) for k in ("images", "logits"))
        kept = balanced(logits.argmax(1), config.batch_size, teacher.num_classes)
        return Batch(images[kept], logits[kept])
