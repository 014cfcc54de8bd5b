"""A generator with its optimizer and rng: what every method that learns one is built on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.errors import NonFiniteError
from dreamstill.files.checkpoints import Stateful
from dreamstill.nn.generators import Generator
from dreamstill.nn.seeded import seeded
from dreamstill.teacher import Teacher

__all__ = ["LatentGenerator", "LearnedFirst"]


class LatentGenerator(Stateful):
    """Latent vectors to images clipped to the teacher's range, and Adam on the way.

    Args:
        teacher: whose input the images are, and whose precision.
        config: a method's settings; read are `latent`, the length of z, `widths`, the channels of
            the generator's two inner convolutions, and `lr`, Adam's.
        rng: initializes the generator and draws z.
        eps, bounded: of the generator, see `Generator`.

    """

    state = ("module", "optimizer")

    def __init__(
        self,
        teacher: Teacher,
        config: Any,
        rng: torch.Generator,
        *,
        eps: float = 1e-5,
        bounded: bool = True,
    ) -> None:
        self.teacher, self.latent, self.rng = teacher, config.latent, rng
        with seeded(rng):
            self.module: nn.Module = Generator(
                config.latent, teacher.input_spec.shape, config.widths, eps=eps, bounded=bounded
            )
        self.module.to(rng.device)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.5x on a CPU
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=config.lr, fused=True)

    def draw(self, num: int) -> Tensor:
        """Z ~ N(0, 1), (num, latent)."""
        return torch.randn((num, self.latent), generator=self.rng, device=self.rng.device)

    def images(self, z: Tensor) -> Tensor:
        """(N, latent) -> (N, C, H, W), clipped; the gradient passes through the clip.

        So a saturated pixel goes on learning.
        """
        raw = self.teacher.input_spec.from_unit(self.teacher.run(self.module, z))
        return raw + (self.teacher.input_spec.clip(raw) - raw).detach()

    def step(self, loss: Tensor, *, clip: float = 0.0) -> None:
        """One Adam step on the generator alone: no other network's .grad is touched.

        Args:
            loss: scalar; NonFiniteError before the update if it is not finite.
            clip: largest norm of the gradient; 0: none.

        """
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the generator's loss became {loss.item()}; lower the lr")
        parameters = list(self.module.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        self.optimizer.step()


class LearnedFirst(Stateful):
    """A generator in two stages: it learns for `steps` batches, then is frozen and only draws.

    Args:
        generator: to learn.
        steps: of the first stage.
        loss: images (N, C, H, W) to the generator's loss and the teacher's logits (N, K).

    """

    state = ("generator", "step")

    def __init__(
        self,
        generator: LatentGenerator,
        steps: int,
        loss: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self.generator, self.steps, self.loss = generator, steps, loss
        self.step = 0

    def next_batch(self, num: int) -> Batch:
        """(num, C, H, W), drawn before the step while the generator still learns."""
        generator = self.generator
        z = generator.draw(num)
        generator.module.train(self.step < self.steps)
        if not generator.module.training:
            with torch.no_grad():
                return answered(generator.teacher, generator.images(z))
        images = generator.images(z)
        loss, logits = self.loss(images)
        generator.step(loss)
        self.step += 1
        return Batch(images.detach(), logits.detach())
