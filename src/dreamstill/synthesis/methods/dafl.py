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

from dreamstill.config import above, at_least, config_class
from dreamstill.data.batch import Batch
from dreamstill.losses.diversity import information_entropy
from dreamstill.losses.features import activation
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.generator import LatentGenerator
from dreamstill.teacher import Teacher

__all__ = ["CIFAR10", "CIFAR100", "Dafl", "DaflConfig", "MNIST", "dafl_loss"]


@config_class
class DaflConfig:
    """Settings of DAFL; the defaults are the paper's for MNIST."""

    batch_size: int = 512
    """Images a batch; at least 2 (BatchNorm)."""
    latent: int = 100
    """Length of the generator's input; at least 1."""
    widths: tuple[int, int] = (128, 64)
    """Channels of the generator's two inner convolutions."""
    lr: float = 0.2
    """Learning rate of the generator's Adam; above 0."""
    one_hot: float = 1.0
    """Weight of the one-hot loss; at least 0."""
    information_entropy: float = 5.0
    """Weight of the information entropy loss; at least 0."""
    activation: float = 0.1
    """Weight of the activation loss; at least 0."""

    def __post_init__(self) -> None:
        at_least(self, 2, "batch_size")
        at_least(self, 1, "latent", "widths")
        above(self, 0, "lr")
        at_least(self, 0, "one_hot", "information_entropy", "activation")


MNIST = DaflConfig()
CIFAR10 = DaflConfig(
    batch_size=1024, latent=1000, lr=0.02, one_hot=0.05, information_entropy=5.0, activation=0.01
)
CIFAR100 = DaflConfig(
    batch_size=1024, latent=1000, lr=0.02, one_hot=0.5, information_entropy=20.0, activation=0.1
)


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
