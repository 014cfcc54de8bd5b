"""Clipped Gaussian noise, the noise baseline.

Source: DAFL (Chen et al. 2019), table 1, row "Normal distribution"; clipped to the valid range.
"""

import torch
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import NoiseConfig

__all__ = ["Noise", "NoiseConfig"]


class Noise(Method):
    """Method that draws N(0, 1) in the teacher's input space, clipped to the valid range."""

    config: NoiseConfig
    fresh_every = 1

    @torch.no_grad()
    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Return a batch of clipped Gaussian noise."""
        shape = (self.config.batch_size, *self.teacher.input_spec.shape)
        noise: Tensor = torch.randn(shape, generator=self.rng, device=self.rng.device)
        return answered(
            self.teacher, self.teacher.input_spec.clip(self.teacher.input_spec.from_unit(noise))
        )
