"""RDSKD: a generator trained for authentic, class-diverse and mutually different images.

Source: Han et al., "Robustness and Diversity Seeking Data-Free Knowledge Distillation", ICASSP
2021, and the authors' code. The generator is trained for `warm_up` batches and then frozen. Unlike
the authors' images, these are clipped to the teacher's valid range.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.data.batch import Batch
from dreamstill.losses.diversity import information_entropy, sample_diversity
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import RdskdConfig
from dreamstill.synthesis.generator import LatentGenerator, LearnedFirst
from dreamstill.teacher import Teacher

__all__ = ["Rdskd", "RdskdConfig"]


class Rdskd(Method):
    """Method with a generator that is trained for `warm_up` batches and then frozen."""

    config: RdskdConfig
    fresh_every = 1
    needs = (
        "classes",
        "gradient",
    )
    state = ("stages", "base")

    def __init__(self, teacher: Teacher, config: RdskdConfig, *, rng: torch.Generator) -> None:
        super().__init__(teacher, config, rng=rng)
        self.warm_up = config.generator_steps
        self.generator = LatentGenerator(teacher, config, rng, eps=0.8)
        self.stages = LearnedFirst(self.generator, config.generator_steps, self._loss)
        self.base = torch.zeros(2, device=rng.device)

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Return a batch; while the generator is trained, it is drawn before its step."""
        return self.stages.next_batch(self.config.batch_size)

    def _loss(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, with the terms exp(loss - base), and the teacher's logits (N, K)."""
        config = self.config
        logits = self.teacher(images)
        authenticity = F.cross_entropy(logits, logits.argmax(1))
        losses = torch.stack([authenticity, information_entropy(logits)])
        rise = (losses - self.base).exp()
        if self.stages.step % config.refresh_every == 0:
            self.base = losses.detach()
        loss = (
            config.one_hot * rise[0]
            + config.information_entropy * rise[1]
            + config.diversity * sample_diversity(images, logits.softmax(1))
        )
        return loss, logits
