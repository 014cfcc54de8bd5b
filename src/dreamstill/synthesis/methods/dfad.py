"""DFAD: a generator trained to maximize the difference between student and teacher.

Source: Fang et al., "Data-Free Adversarial Distillation", 2019, algorithm 1, and the authors'
code. Differences: images are clipped to the teacher's valid range, and the student is in eval mode
in generator steps, so that its running statistics come from its own training batches alone.
"""

import torch
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.errors import ConfigError
from dreamstill.losses.logits import l1
from dreamstill.nn.hooks import eval_mode
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import DfadConfig
from dreamstill.synthesis.generator import LatentGenerator
from dreamstill.teacher import Teacher

__all__ = ["Dfad", "DfadConfig", "dfad_loss"]


def dfad_loss(student: Tensor, teacher: Tensor, *, log_loss: bool) -> Tensor:
    """Return equation 4 for logits (N, K): -L1, or -log(1 + L1) with `log_loss`."""
    difference = l1(student, teacher)
    return -torch.log1p(difference) if log_loss else -difference


class Dfad(Method):
    """Method with `student_steps` fresh batches after each generator step."""

    config: DfadConfig
    fresh_every = 1
    adversarial = True
    needs = ("gradient",)
    state = ("generator", "batches")

    def __init__(self, teacher: Teacher, config: DfadConfig, *, rng: torch.Generator) -> None:
        super().__init__(teacher, config, rng=rng)
        self.generator = LatentGenerator(teacher, config, rng)
        self.batches = 0
        self.milestones: list[float] = []

    def anneal_over(self, batches: int) -> None:
        """Schedule the drops of the generator's learning rate over this many batches."""
        self.milestones = [share * batches for share in self.config.drops]

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Return a fresh batch, after a generator step in every `student_steps`-th call."""
        if student is None:
            raise ConfigError("dfad plays against a student: hand one to next_batch")
        generator, size = self.generator, self.config.batch_size
        if self.batches % self.config.student_steps == 0:
            drops = sum(self.batches >= milestone for milestone in self.milestones)
            generator.optimizer.param_groups[0]["lr"] = self.config.lr * 0.1**drops
            images = generator.images(generator.draw(size))
            with eval_mode(student):
                rival = self.teacher.run(student, images)
            generator.step(dfad_loss(rival, self.teacher(images), log_loss=self.config.log_loss))
        self.batches += 1
        with torch.no_grad():
            return answered(self.teacher, generator.images(generator.draw(size)))
