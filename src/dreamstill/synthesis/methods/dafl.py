"""DAFL: a generator trained so that a fixed teacher responds as to its training data.

Source: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, equations 2 to 6, and the
authors' code. Differences: images are clipped to the teacher's valid range, and the generator's
widths are configurable, because the paper's generator takes 300 times the compute of LeNet-5.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.data.batch import Batch
from dreamstill.losses.diversity import information_entropy
from dreamstill.losses.features import activation
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import DaflConfig
from dreamstill.synthesis.generator import LatentGenerator
from dreamstill.teacher import Teacher

__all__ = ["Dafl", "DaflConfig", "dafl_loss"]


def dafl_loss(logits: Tensor, features: Tensor, config: DaflConfig) -> Tensor:
    """Return equation 6 for the teacher's logits (N, K) and penultimate features (N, D)."""
    balance = information_entropy(logits) / math.log(10)  # as in the authors' code
    return (
        config.one_hot * F.cross_entropy(logits, logits.argmax(1))
        + config.information_entropy * balance
        + config.activation * activation(features)
    )


class Dafl(Method):
    """Method with one generator step per batch; the student is trained on the same images."""

    config: DaflConfig
    fresh_every = 1
    needs = ("classes", "gradient", "last_linear")
    state = ("generator",)

    def __init__(self, teacher: Teacher, config: DaflConfig, *, rng: torch.Generator) -> None:
        super().__init__(teacher, config, rng=rng)
        self.generator = LatentGenerator(teacher, config, rng, eps=0.8)

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Take a generator step, and return the images generated before it."""
        images = self.generator.images(self.generator.draw(self.config.batch_size))
        logits, features = self.teacher.with_features(images)
        self.generator.step(dafl_loss(logits, features, self.config))
        return Batch(images.detach(), logits.detach())
