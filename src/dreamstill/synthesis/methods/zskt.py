"""ZSKT: a generator that raises KL(teacher || student), ten student steps to each of its own.

Source: Micaelli & Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS
2019, algorithm 1, and the authors' code. The generator's KL is the mean over batch and classes, as
in the code: `clip` is of its gradient. The student's attention transfer is the distillation loss
`attention` (weight 250); its clipped gradient and cosine are `distill.clip_gradient` 5 and
`distill.anneal`; the presets have all of it. Where this differs: images are clipped to the
teacher's valid range; the student's KL is the mean over the batch alone; the student is in eval
mode while the generator learns.
"""

import math

import torch
from torch import nn

from dreamstill.data.batch import Batch, answered
from dreamstill.errors import ConfigError
from dreamstill.losses.logits import kl_divergence
from dreamstill.nn.hooks import eval_mode
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import ZsktConfig
from dreamstill.synthesis.generator import LatentGenerator
from dreamstill.teacher import Teacher

__all__ = ["Zskt", "ZsktConfig"]


class Zskt(Method):
    """One generator step a batch, whose images are trained on `student_steps` times."""

    config: ZsktConfig
    streams = True
    adversarial = True
    needs = ("gradient",)
    state = ("generator", "batches")

    def __init__(self, teacher: Teacher, config: ZsktConfig, *, rng: torch.Generator) -> None:
        super().__init__(teacher, config, rng=rng)
        self.repeat = config.student_steps
        self.generator = LatentGenerator(teacher, config, rng, bounded=False)
        self.cosine_batches = config.cosine_batches or 0
        self.batches = 0

    def anneal_over(self, batches: int) -> None:
        """Let the generator's learning rate fall to 0 over so many batches."""
        if self.config.cosine_batches is None:
            self.cosine_batches = batches

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """(batch_size, C, H, W) of the z that the generator just learned on."""
        if student is None:
            raise ConfigError("zskt plays against a student: hand one to next_batch")
        config, generator = self.config, self.generator
        self._anneal()
        z = generator.draw(config.batch_size)
        images = generator.images(z)
        with eval_mode(student):
            rival = self.teacher.run(student, images)
        kl = kl_divergence(rival, self.teacher(images)) / self.teacher.num_classes
        generator.step(-kl, clip=config.clip)
        self.batches += 1
        with torch.no_grad():
            return answered(self.teacher, generator.images(z))

    def _anneal(self) -> None:
        if self.cosine_batches:
            share = 0.5 * (1 + math.cos(math.pi * min(1.0, self.batches / self.cosine_batches)))
            self.generator.optimizer.param_groups[0]["lr"] = self.config.lr * share
