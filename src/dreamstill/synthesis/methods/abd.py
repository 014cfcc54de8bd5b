"""Always Be Dreaming: a generator that matches a teacher's BatchNorm statistics.

Source: Smith et al., "Always Be Dreaming: A New Approach for Data-Free Class-Incremental
Learning", ICCV 2021, section 4.1, and the authors' code. `dreamstill.continual.learning` has the
paper's training loss. The generator is trained for `warm_up` batches and then frozen. Unlike the
authors' images, these are clipped to the teacher's valid range.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.data.batch import Batch
from dreamstill.errors import TeacherError
from dreamstill.losses.diversity import information_entropy
from dreamstill.losses.priors import gaussian_smoothness
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.batch_norm_statistics import batch_norm_divergence
from dreamstill.synthesis.config import AbdConfig
from dreamstill.synthesis.generator import LatentGenerator, LearnedFirst
from dreamstill.teacher import Teacher

__all__ = ["Abd", "AbdConfig"]


class Abd(Method):
    """Method with a generator that is trained for `warm_up` batches and then frozen."""

    config: AbdConfig
    fresh_every = 1
    needs = ("classes", "gradient", "batch_norm")
    state = ("stages",)

    def __init__(self, teacher: Teacher, config: AbdConfig, *, rng: torch.Generator) -> None:
        if min(teacher.input_spec.shape[1:]) < 3:
            size = "x".join(map(str, teacher.input_spec.shape[1:]))
            raise TeacherError(
                f"abd smooths images of at least 3x3 pixels; the teacher's are {size}"
            )
        super().__init__(teacher, config, rng=rng)
        self.warm_up = config.generator_steps
        self.generator = LatentGenerator(teacher, config, rng, eps=0.8)
        self.stages = LearnedFirst(self.generator, config.generator_steps, self._loss)

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Return a batch; while the generator is trained, it is drawn before its step."""
        return self.stages.next_batch(self.config.batch_size)

    def _loss(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, equations 3 to 6, and the teacher's logits (N, K)."""
        config = self.config
        divergence, logits = batch_norm_divergence(self.teacher, images)
        # in units of log K: -1 is a perfectly balanced batch
        balance = information_entropy(logits) / math.log(logits.shape[1])
        loss = (
            config.content * F.cross_entropy(logits / config.temperature, logits.argmax(1))
            + config.information_entropy * balance
            + config.batch_norm * divergence
            + config.prior * gaussian_smoothness(images)
        )
        return loss, logits
