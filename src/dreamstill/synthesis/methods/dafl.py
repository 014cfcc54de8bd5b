"""DAFL: a generator that plays the data set to a fixed teacher.

Source: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, equations 2 to 6, and the
authors' code. Where this differs: images are clipped to the teacher's valid range, with the
gradient passed through the clip so that saturated pixels keep learning; the generator's widths are
a setting, because the paper's are 300 times the cost of LeNet-5.
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
    """Equation 6 on the teacher's logits (N, K) and penultimate features (N, D)."""
    balance = information_entropy(logits) / math.log(10)  # as in the authors' code
    return (
        config.one_hot * F.cross_entropy(logits, logits.argmax(1))
        + config.information_entropy * balance
        + config.activation * activation(features)
    )


class Dafl(Method):
    """One generator step a batch; the student learns from the same images, as in the paper."""

    config: DaflConfig
    streams = True
    needs = ("gradient", "last_linear")
    state = ("generator",)

    def __init__(self, teacher: Teacher, config: DaflConfig, *, rng: torch.Generator) -> None:
        super().__init__(teacher, config, rng=rng)
        self.generator = LatentGenerator(teacher, config, rng, eps=0.8)

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Draw z, take one generator step, return the images drawn before the step."""
        images = self.generator.images(self.generator.draw(self.config.batch_size))
        logits, features = self.teacher.with_features(images)
        self.generator.step(dafl_loss(logits, features, self.config))
        return Batch(images.detach(), logits.detach())
