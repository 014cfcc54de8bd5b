"""ZSKT: a generator trained to maximize KL(teacher || student), ten student steps per step.

Source: Micaelli & Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS
2019, algorithm 1, and the authors' code. The generator's KL is a mean over batch and classes, as in
the code. The presets set the student's attention loss (weight 250), gradient clipping at 5 and
cosine. Differences: images are clipped to the teacher's valid range, the student's KL is a mean
over the batch, and the student is in eval mode in generator steps.
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
    """Method with one generator step per batch, followed by `student_steps` student steps."""

    config: ZsktConfig
    fresh_every = 1
    adversarial = True
    needs = ("classes", "gradient")
    state = ("generator", "batches")

    def __init__(self, teacher: Teacher, config: ZsktConfig, *, rng: torch.Generator) -> None:
        super().__init__(teacher, config, rng=rng)
        self.repeat = config.student_steps
        self.generator = LatentGenerator(teacher, config, rng, bounded=False)
        self.cosine_batches = config.cosine_batches or 0
        self.batches = 0

    def anneal_over(self, batches: int) -> None:
        """Anneal the generator's learning rate to 0 over this many batches, unless configured."""
        if self.config.cosine_batches is None:
            self.cosine_batches = batches

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Take a generator step, and return the images of the same z after it."""
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
