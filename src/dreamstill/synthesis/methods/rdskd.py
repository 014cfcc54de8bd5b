"""RDSKD: authentic, class-diverse and mutually different images, with no weights to tune.

Source: Han et al., "Robustness and Diversity Seeking Data-Free Knowledge Distillation", ICASSP
2021, and the authors' code. Two stages: the generator learns alone for `warm_up` batches and is
then frozen. Where this differs: images are clipped to the teacher's valid range.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.config import above, at_least, config_class
from dreamstill.data.batch import Batch
from dreamstill.errors import ConfigError
from dreamstill.losses.diversity import information_entropy, sample_diversity
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.generator import LatentGenerator, LearnedFirst
from dreamstill.teacher import Teacher

__all__ = ["COLOR", "MNIST", "Rdskd", "RdskdConfig"]


@config_class
class RdskdConfig:
    """Settings of RDSKD; the defaults are the authors' for MNIST."""

    batch_size: int = 512
    """Images a batch, half of them compared with the other half; even and at least 4."""
    latent: int = 100
    """Length of the generator's input; at least 1."""
    widths: tuple[int, int] = (128, 64)
    """Channels of the generator's two inner convolutions."""
    lr: float = 1e-3
    """Learning rate of the generator's Adam; above 0."""
    generator_steps: int = 2400
    """Steps of the first stage; at least 1."""
    refresh_every: int = 120
    """Steps after which the exponential penalties take the present losses as their base."""
    one_hot: float = 1.0
    """Weight of authenticity; at least 0. The paper has 1: that none is needed is its point."""
    information_entropy: float = 1.0
    """Weight of class diversity; at least 0."""
    diversity: float = 1.0
    """Weight of inter-sample diversity; at least 0."""

    def __post_init__(self) -> None:
        at_least(self, 4, "batch_size")
        if self.batch_size % 2:
            raise ConfigError(f"batch_size must be even; got {self.batch_size}")
        at_least(self, 1, "latent", "widths", "generator_steps", "refresh_every")
        above(self, 0, "lr")
        at_least(self, 0, "one_hot", "information_entropy", "diversity")


MNIST = RdskdConfig()
COLOR = RdskdConfig(latent=1000)
"""The authors' for SVHN and CIFAR-10."""


class Rdskd(Method):
    """The generator learns for `warm_up` batches; from then on it is frozen and only draws."""

    config: RdskdConfig
    streams = True
    needs = ("gradient",)
    state = ("stages", "base")

    def __init__(self, teacher: Teacher, config: RdskdConfig, *, rng: torch.Generator) -> None:
        super().__init__(teacher, config, rng=rng)
        self.warm_up = config.generator_steps
        self.generator = LatentGenerator(teacher, config, rng, eps=0.8)
        self.stages = LearnedFirst(self.generator, config.generator_steps, self._loss)
        self.base = torch.zeros(2, device=rng.device)

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """(batch_size, C, H, W), drawn before the step while the generator still learns."""
        return self.stages.next_batch(self.config.batch_size)

    def _loss(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Each loss enters by the exponential of its rise over its base; and the logits."""
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
