"""Clipped Gaussian noise: the noise baseline that every method has to beat.

Source: DAFL (Chen et al. 2019), table 1, row "Normal distribution"; clipped to the valid range.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.synthesis.config import NoiseConfig
from dreamstill.teacher import Teacher

__all__ = ["Noise", "NoiseConfig"]


class Noise:
    """N(0, 1) in the teacher's normalized input space, clipped to its valid range."""

    streams: ClassVar[bool] = True
    adversarial: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    repeat: ClassVar[int] = 1
    warm_up: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, teacher: Teacher, config: NoiseConfig, *, rng: torch.Generator) -> None:
        self.teacher, self.config, self.rng = teacher, config, rng

    @torch.no_grad()
    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """(batch_size, C, H, W) of clipped Gaussian noise."""
        shape = (self.config.batch_size, *self.teacher.input_spec.shape)
        noise: Tensor = torch.randn(shape, generator=self.rng, device=self.rng.device)
        return answered(
            self.teacher, self.teacher.input_spec.clip(self.teacher.input_spec.from_unit(noise))
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every batch is drawn afresh."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""
