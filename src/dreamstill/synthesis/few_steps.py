"""Base class of methods that optimize each batch by a few steps of a generator.

Source: Fang et al., "Up to 100x Faster Data-Free Knowledge Distillation", AAAI 2022, and the
authors' code.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.data.augmentation import shifted
from dreamstill.data.batch import Batch
from dreamstill.errors import ConfigError
from dreamstill.files.checkpoints import Stateful
from dreamstill.losses.logits import agreeing_kl
from dreamstill.losses.statistics import statistics_distance
from dreamstill.nn.hooks import eval_mode
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.batch_norm_statistics import Moments, batch_moments, norms_of
from dreamstill.synthesis.config import FewStepsConfig, ImageProgramsConfig
from dreamstill.synthesis.generator import LatentGenerator
from dreamstill.synthesis.methods.image_programs import ImagePrograms
from dreamstill.teacher import Teacher

__all__ = ["FewSteps", "RunningStatistics"]


class RunningStatistics(Stateful):
    """Distance of batches from a teacher's BatchNorm statistics, with a memory of earlier batches.

    What is compared with the running statistics of each layer is momentum * earlier batches +
    (1 - momentum) * this batch, so that one batch need not have the variety of a whole data set.

    Args:
        teacher: network with BatchNorm layers.
        momentum: share of the earlier batches; 0 to below 1.

    """

    state = ("earlier",)

    def __init__(self, teacher: Teacher, momentum: float) -> None:
        self.norms, self.momentum = norms_of(teacher), momentum
        self.earlier: Moments = {}

    def distance(self, moments: Moments) -> Tensor:
        """Return the sum over layers of the distances of mean and variance: a scalar."""
        blended = self._blend(moments)
        distances = []
        for name, layer in self.norms.items():
            assert layer.running_mean is not None
            assert layer.running_var is not None
            distances.append(
                statistics_distance(layer.running_mean, layer.running_var, *blended[name])
            )
        return torch.stack(distances).sum()

    def remember(self, moments: Moments) -> None:
        """Take a batch into the memory."""
        self.earlier = {
            name: (mean.detach(), variance.detach())
            for name, (mean, variance) in self._blend(moments).items()
        }

    def _blend(self, moments: Moments) -> Moments:
        if not self.earlier:  # the first batch counts in full
            return moments
        kept, new = self.momentum, 1 - self.momentum
        return {
            name: (
                kept * self.earlier[name][0] + new * mean,
                kept * self.earlier[name][1] + new * variance,
            )
            for name, (mean, variance) in moments.items()
        }


class FewSteps(Method):
    """Base of methods that optimize each batch by a few steps of a generator.

    A subclass sets `generator`, and calls `take_steps` in its `next_batch`.

    Args:
        teacher, config, rng: see `Method`.
        drawn: configuration of the image programs that a replay buffer begins with.

    """

    config: FewStepsConfig
    fresh_every = 10
    needs: ClassVar[tuple[str, ...]] = ("classes", "gradient", "batch_norm")
    state: ClassVar[tuple[str, ...]] = ("generator", "statistics", "batches", "programs")
    generator: LatentGenerator

    def __init__(
        self,
        teacher: Teacher,
        config: Any,
        *,
        rng: torch.Generator,
        drawn: ImageProgramsConfig | None = None,
    ) -> None:
        super().__init__(teacher, config, rng=rng)
        self.statistics = RunningStatistics(teacher, config.momentum)
        self.batches = 0
        usual = ImageProgramsConfig(batch_size=config.batch_size, memory=config.batch_size)
        self.programs = ImagePrograms(teacher, drawn or usual, rng=rng)

    def initial_batch(self, student: nn.Module | None = None) -> Batch:
        """Return image programs' images, or with no `drawn_start` what `next_batch` returns."""
        if not self.config.drawn_start:
            return self.next_batch(student)
        self.batches += 1
        return self.programs.next_batch()

    def loss(
        self, images: Tensor, classes: Tensor, student: nn.Module | None
    ) -> tuple[Tensor, Moments]:
        """Return the loss of images (N, C, H, W) for classes (N,), and the moments of the batch.

        Teacher and student are shown the images with the same shifts. Without a student there is
        no adversarial term.
        """
        config, teacher = self.config, self.teacher
        shown = shifted(images, config.shift, config.shift, flip=config.flip, rng=self.rng)
        with batch_moments(self.statistics.norms) as moments:
            logits = teacher(shown)
        loss = config.batch_norm * self.statistics.distance(moments)
        loss = loss + config.one_hot * F.cross_entropy(logits, classes)
        if student is not None:
            with eval_mode(student):
                rival = teacher.run(student, shown)
            loss = loss - config.adversarial * agreeing_kl(rival, logits)
        return loss, moments

    def rival(self, name: str, student: nn.Module | None) -> nn.Module | None:
        """Return the student that the next batch is made against: none before the warm-up's end.

        Raises ConfigError if the method, which is called `name`, is given none.
        """
        if not self.config.adversarial:
            return None
        if student is None:
            raise ConfigError(
                f"{name} plays against a student: hand one to next_batch, or set adversarial to 0"
            )
        return student if self.batches >= self.config.warm_up else None

    def take_steps(
        self,
        generator: LatentGenerator,
        inputs: Tensor,
        classes: Tensor,
        student: nn.Module | None,
        after_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Take the steps of a batch, and count it.

        Args:
            generator: its optimizer's steps are taken, in place.
            inputs: (N, ...) of the generator.
            classes: that the images are for, (N,).
            student: what they are made against, or None.
            after_step: called after each step, when `.grad` is that of the step.

        Returns:
            Images (N, C, H, W) of the lowest loss, before the step that was taken on it.

        """
        kept, lowest = torch.empty(0), float("inf")
        for _ in range(self.config.generator_steps):
            images = generator.images(inputs)
            loss, moments = self.loss(images, classes, student)
            generator.step(loss)
            after_step()
            if loss.item() < lowest:
                kept, lowest = images.detach(), loss.item()
        self.statistics.remember(moments)
        self.batches += 1
        return kept
