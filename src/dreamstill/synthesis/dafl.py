"""DAFL: a generator that plays the data set to a fixed teacher.

Source: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, equations 2 to 6, and the
authors' code. Where this differs: images are clipped to the teacher's valid range, with the
gradient passed through the clip so that saturated pixels keep learning; the generator's widths are
a setting, because the paper's are 300 times the cost of LeNet-5.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.errors import NonFiniteError, SettingsError
from dreamstill.losses.diversity import information_entropy
from dreamstill.losses.features import activation
from dreamstill.nets.generators import Generator
from dreamstill.nets.seeded import seeded
from dreamstill.synthesis.contract import Batch
from dreamstill.teacher import Teacher

__all__ = ["CIFAR10", "CIFAR100", "MNIST", "Dafl", "DaflSettings", "dafl_loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DaflSettings:
    """Settings of DAFL; the defaults are the paper's for MNIST, but for the generator's size."""

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
        if self.batch_size < 2:
            raise SettingsError(f"batch_size must be at least 2; got {self.batch_size}")
        for name in ("latent", "widths"):
            values = getattr(self, name)
            if min(values if isinstance(values, tuple) else (values,)) < 1:
                raise SettingsError(f"{name} must be at least 1; got {values}")
        if not self.lr > 0:
            raise SettingsError(f"lr must be above 0; got {self.lr}")
        for name in ("one_hot", "information_entropy", "activation"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} must be at least 0; got {getattr(self, name)}")


MNIST = DaflSettings()
CIFAR10 = DaflSettings(
    batch_size=1024, latent=1000, lr=0.02, one_hot=0.05, information_entropy=5.0, activation=0.01
)
CIFAR100 = DaflSettings(
    batch_size=1024, latent=1000, lr=0.02, one_hot=0.5, information_entropy=20.0, activation=0.1
)


def dafl_loss(logits: Tensor, features: Tensor, settings: DaflSettings) -> Tensor:
    """Equation 6 on the teacher's logits (N, K) and penultimate features (N, D)."""
    return (
        settings.one_hot * F.cross_entropy(logits, logits.argmax(1))
        + settings.information_entropy * information_entropy(logits)
        + settings.activation * activation(features)
    )


class Dafl:
    """One generator step a batch; the student learns from the same images, as in the paper."""

    streams: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("gradient", "last_linear")

    def __init__(self, teacher: Teacher, settings: DaflSettings, *, rng: torch.Generator) -> None:
        self.teacher, self.settings, self.rng = teacher, settings, rng
        with seeded(rng):
            self.generator = Generator(settings.latent, teacher.spec.shape, settings.widths)
        self.generator.to(rng.device)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=settings.lr)

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Draw z, take one generator step, return the images drawn before the step."""
        size = (self.settings.batch_size, self.settings.latent)
        z = torch.randn(size, generator=self.rng, device=self.rng.device)
        raw = self.generator(z)
        images = raw + (self.teacher.spec.clip(raw) - raw).detach()
        logits, features = self.teacher.with_features(images)
        loss = dafl_loss(logits, features, self.settings)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the generator's loss became {loss.item()}; lower the lr")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Batch(images.detach(), logits.detach())

    def state_dict(self) -> dict[str, Any]:
        """Generator and optimizer."""
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up generator and optimizer."""
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
