"""DAFL: a generator that plays the data set to a fixed teacher.

Source: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, equations 2 to 6, and the
authors' code. Where this differs: images are clipped to the teacher's valid range, with the
gradient passed through the clip so that saturated pixels keep learning; the generator's widths are
a setting, because the paper's are 300 times the cost of LeNet-5.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.data.batch import Batch
from dreamstill.losses.diversity import information_entropy
from dreamstill.losses.features import activation
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


class Dafl:
    """One generator step a batch; the student learns from the same images, as in the paper."""

    streams: ClassVar[bool] = True
    adversarial: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    repeat: ClassVar[int] = 1
    warm_up: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ("gradient", "last_linear")

    def __init__(self, teacher: Teacher, config: DaflConfig, *, rng: torch.Generator) -> None:
        self.teacher, self.config = teacher, config
        self.generator = LatentGenerator(
            teacher, config.latent, config.widths, config.lr, rng, eps=0.8
        )

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Draw z, take one generator step, return the images drawn before the step."""
        images = self.generator.images(self.generator.draw(self.config.batch_size))
        logits, features = self.teacher.with_features(images)
        self.generator.step(dafl_loss(logits, features, self.config))
        return Batch(images.detach(), logits.detach())

    def state_dict(self) -> dict[str, Any]:
        """Generator and optimizer."""
        return self.generator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up generator and optimizer."""
        self.generator.load_state_dict(state)
