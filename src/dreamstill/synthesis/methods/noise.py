"""Clipped Gaussian noise: the noise baseline that every method has to beat.

Source: DAFL (Chen et al. 2019), table 1, row "Normal distribution"; clipped to the valid range.
"""

import torch
from torch import Tensor, nn

from dreamstill.config import at_least, config_class
from dreamstill.data.batch import Batch, answered
from dreamstill.synthesis.base import Method

__all__ = ["Noise", "NoiseConfig"]


@config_class
class NoiseConfig:
    """Settings of Gaussian noise."""

    batch_size: int = 256
    """Images a batch; at least 1."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")


class Noise(Method):
    """N(0, 1) in the teacher's normalized input space, clipped to its valid range."""

    config: NoiseConfig
    streams = True

    @torch.no_grad()
    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """(batch_size, C, H, W) of clipped Gaussian noise."""
        shape = (self.config.batch_size, *self.teacher.spec.shape)
        noise: Tensor = torch.randn(shape, generator=self.rng, device=self.rng.device)
        return answered(self.teacher, self.teacher.spec.clip(self.teacher.spec.from_unit(noise)))
