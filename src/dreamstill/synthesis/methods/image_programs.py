"""Image programs: many kinds of drawn images, in shares that fit the teacher.

Source: ours. That images of many simple programs teach more than curated ones is the finding of
Baradad et al. 2022 ("Procedural image programs for representation learning"). The share of each
program is fitted to the teacher's own answers, see `program_shares`; the images of a batch are
balanced over the classes. It needs no optimization of pixels and no gradient of the teacher.
"""

import torch
from torch import Tensor

from dreamstill.synthesis.balanced_draws import BalancedDraws
from dreamstill.synthesis.config import ImageProgramsConfig
from dreamstill.synthesis.program_shares import fit_shares, measure_part
from dreamstill.synthesis.programs.registry import open_programs
from dreamstill.teacher import Teacher

__all__ = ["ImagePrograms", "ImageProgramsConfig"]

NUM_MEASURED = 128
"""Images of each program that its share is fitted on."""


class ImagePrograms(BalancedDraws):
    """Method that draws with many programs, in shares fitted to the teacher."""

    config: ImageProgramsConfig
    state = (*BalancedDraws.state, "shares")

    def __init__(
        self, teacher: Teacher, config: ImageProgramsConfig, *, rng: torch.Generator
    ) -> None:
        super().__init__(teacher, config, rng=rng)
        self.programs = open_programs(config.programs)
        self.shares = torch.zeros(0)
        """Share of each program; empty before the first batch."""

    def draw(self, num: int) -> Tensor:
        """Draw images of the programs, in random order of the programs' shares."""
        if not len(self.shares):
            self.shares = self._fitted() if self.config.fit else self._equal()
        index = torch.multinomial(
            self.shares.to(self.rng.device), num, replacement=True, generator=self.rng
        )
        counts = index.bincount(minlength=len(self.programs)).tolist()
        shape = self.teacher.input_spec.shape
        parts = [
            program(count, shape, self.rng)
            for program, count in zip(self.programs.values(), counts, strict=True)
            if count
        ]
        images = torch.cat(parts)
        return images[torch.randperm(num, generator=self.rng, device=self.rng.device)]

    def _equal(self) -> Tensor:
        return torch.full((len(self.programs),), 1 / len(self.programs))

    def _fitted(self) -> Tensor:
        spec = self.teacher.input_spec
        parts = [
            measure_part(self.teacher, spec.normalize(program(NUM_MEASURED, spec.shape, self.rng)))
            for program in self.programs.values()
        ]
        return fit_shares(self.teacher, parts)
