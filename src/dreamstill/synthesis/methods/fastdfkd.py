"""FastDFKD: a generator that a few steps adapt to each batch, and that learns to be adapted.

Source: Fang et al., "Up to 100x Faster Data-Free Knowledge Distillation", AAAI 2022, and the
authors' code. Differences from the code:

- The generator ends with a BatchNorm, as DAFL's, and images are clipped to the valid range with the
  gradient passed through; theirs ends with a sigmoid.
- Shifts repeat the edge, where theirs show black.
- Drawing the first layer anew sets the scales of its BatchNorm to 1; theirs draws them from
  N(0, 0.02).
- Their factor 67 of REPTILE's gradient is left out: Adam takes the same steps without it.
- The replay buffer begins with images of image programs, if `drawn_start` is set.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.nn.generators import Generator
from dreamstill.synthesis.config import FastDfkdConfig, ImageProgramsConfig, MetaGradient
from dreamstill.synthesis.few_steps import FewSteps
from dreamstill.synthesis.generator import LatentGenerator
from dreamstill.teacher import Teacher

__all__ = ["FastDfkd", "FastDfkdConfig", "meta_gradient"]


def meta_gradient(
    kind: MetaGradient,
    start: Sequence[Tensor],
    end: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> list[Tensor]:
    """Return the gradient of the weights that a copy started from.

    Args:
        kind: FOMAML, the sum of the copy's gradients; or REPTILE, start - end.
        start: weights of the generator.
        end: weights of the copy after its steps.
        gradients: sums over the steps of the copy's gradients.

    >>> one, three = [torch.tensor(1.0)], [torch.tensor(3.0)]
    >>> meta_gradient(MetaGradient.REPTILE, three, one, [torch.tensor(7.0)])
    [tensor(2.)]

    """
    if kind is MetaGradient.FOMAML:
        return list(gradients)
    return [old.detach() - new.detach() for old, new in zip(start, end, strict=True)]


class FastDfkd(FewSteps):
    """Method that adapts a copy of the generator, and its z, to each batch."""

    config: FastDfkdConfig

    def __init__(
        self,
        teacher: Teacher,
        config: FastDfkdConfig,
        *,
        rng: torch.Generator,
        drawn: ImageProgramsConfig | None = None,
    ) -> None:
        super().__init__(teacher, config, rng=rng, drawn=drawn)
        self.generator = LatentGenerator(
            teacher, config, rng, lr=config.lr * config.generator_steps, betas=(0.5, 0.999)
        )
        self.reset_at: int | None = None

    def anneal_over(self, batches: int) -> None:
        """Schedule the new first layer over this many batches."""
        share = self.config.reset_after
        self.reset_at = round(share * batches) if share else None

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Adapt a copy of the generator, take a step on the generator, and return the images."""
        config, generator = self.config, self.generator
        rival = self.rival("fastdfkd", student)
        if self.batches == self.reset_at:
            self._draw_first_layer()
        z = generator.draw(config.batch_size).requires_grad_()
        classes = torch.randint(
            self.teacher.num_classes, (len(z),), generator=self.rng, device=self.rng.device
        )
        fast = generator.clone()
        fast.restart(config.lr, z, config.latent_lr)
        start, end = (list(one.module.parameters()) for one in (generator, fast))
        gradients = [torch.zeros_like(weight) for weight in end]

        def add_gradients() -> None:
            for total, weight in zip(gradients, end, strict=True):
                assert weight.grad is not None
                total += weight.grad

        images = self.take_steps(fast, z, classes, rival, add_gradients)
        generator.apply(meta_gradient(config.meta_gradient, start, end, gradients))
        return answered(self.teacher, images)

    def _draw_first_layer(self) -> None:
        """Initialize the linear layer from N(0, 0.02), and the BatchNorm behind it."""
        module = self.generator.module
        assert isinstance(module, Generator)
        nn.init.normal_(module.linear.weight, 0.0, 0.02, generator=self.rng)
        nn.init.zeros_(module.linear.bias)
        nn.init.ones_(module.norm.weight)
        nn.init.zeros_(module.norm.bias)
