"""Image programs: drawn images of many kinds, chosen to fit the teacher.

Source: ours. That images of many simple programs teach more than curated ones is the finding of
Baradad et al. 2022 ("Procedural image programs for representation learning"). Of these images, the
method keeps those that together resemble what the teacher was trained on, see `image_weights`, and
balances each batch over the classes. It needs no gradient and no optimization of pixels.
"""

import math

import torch
from torch import Tensor

from dreamstill.data.batch import Batch
from dreamstill.synthesis.balanced_draws import BalancedDraws
from dreamstill.synthesis.config import ImageProgramsConfig
from dreamstill.synthesis.image_weights import answers_and_moments, fit_slopes, log_weights
from dreamstill.synthesis.programs.registry import open_programs
from dreamstill.teacher import Teacher

__all__ = ["ImagePrograms", "ImageProgramsConfig"]

NUM_FITTED = 64
"""Images of each program that the weights are fitted on."""
CANDIDATES = 2
"""Images drawn for each one that the weights choose."""
MOST_BYTES = 2**27
"""Bytes of candidates that are drawn at once: those of 1,024 images of 3 x 104 x 104."""


class ImagePrograms(BalancedDraws):
    """Method that draws with many programs, and chooses images by weights fitted to the teacher."""

    config: ImageProgramsConfig
    state = (*BalancedDraws.state, "slopes", "shares")
    fresh_every = 16

    def __init__(
        self, teacher: Teacher, config: ImageProgramsConfig, *, rng: torch.Generator
    ) -> None:
        super().__init__(teacher, config, rng=rng)
        self.programs = open_programs(config.programs)
        self.shares = torch.full((len(self.programs),), 1 / len(self.programs), device=rng.device)
        """Share of each program in what is drawn."""
        self.slopes = torch.zeros(0, device=rng.device)
        """Slopes of the log weights; empty before the first batch."""

    def draw(self, num: int) -> Batch:
        """Draw images, and ask the teacher about them."""
        if not self.config.fit or self.teacher.capabilities.budget is not None:
            inputs, _ = self._inputs(num)
            return Batch(inputs, self.teacher(inputs))
        if not len(self.slopes):
            self._fit()
        at_once = max(1, MOST_BYTES // (4 * CANDIDATES * math.prod(self.teacher.input_spec.shape)))
        parts = [self._chosen(min(at_once, num - done)) for done in range(0, num, at_once)]
        return Batch(*(torch.cat([getattr(p, k) for p in parts]) for k in ("images", "logits")))

    def _chosen(self, num: int) -> Batch:
        """Draw candidates, and choose some by their weights."""
        inputs, programs = self._inputs(num * CANDIDATES)
        logits, moments = answers_and_moments(self.teacher, inputs)
        # programs that are drawn more often than others weigh less
        scores = log_weights(moments, self.slopes) - self.shares.log()[programs]
        gumbel = -torch.empty_like(scores).exponential_(generator=self.rng).log()
        chosen = (scores + gumbel).topk(num).indices  # a draw without replacement
        return Batch(inputs[chosen], logits[chosen])

    def _inputs(self, num: int) -> tuple[Tensor, Tensor]:
        """Return inputs of the teacher (num, C, H, W), and the index of each one's program."""
        programs = torch.multinomial(self.shares, num, replacement=True, generator=self.rng)
        counts = programs.bincount(minlength=len(self.programs)).tolist()
        spec = self.teacher.input_spec
        parts = [
            program(count, spec.shape, self.rng)
            for program, count in zip(self.programs.values(), counts, strict=True)
            if count
        ]
        # in the order of `programs`, which is random
        return spec.normalize(torch.cat(parts)[programs.argsort().argsort()]), programs

    def _fit(self) -> None:
        """Fit the weights on images of all programs, and draw with the good programs more often."""
        spec, num = self.teacher.input_spec, len(self.programs)
        drawn = (program(NUM_FITTED, spec.shape, self.rng) for program in self.programs.values())
        # one program at a time: at 224 pixels the images of all take gigabytes
        found = [answers_and_moments(self.teacher, spec.normalize(images))[1] for images in drawn]
        moments = torch.cat(found)
        self.slopes = fit_slopes(self.teacher, moments)
        weights = log_weights(moments, self.slopes).softmax(0).view(num, NUM_FITTED).sum(1)
        self.shares = (weights + 1 / num) / 2
