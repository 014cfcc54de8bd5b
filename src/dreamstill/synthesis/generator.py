"""Generators with their optimizer, for the methods that train one."""

import copy
from collections.abc import Callable, Sequence
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
    """Generator from latent vectors to images, with its Adam optimizer.

    Args:
        teacher: its input spec and precision are used.
        config: configuration with `latent`, `widths` and `lr`; see `GeneratorConfig`.
        rng: generator of the initial weights and of z.
        eps, bounded: see `Generator`.
        before: layers that compute the latent vectors from other inputs.
        lr: learning rate, if it is not that of `config`.
        betas: Adam's decay rates.

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
        before: Sequence[nn.Module] = (),
        lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.teacher, self.latent, self.rng = teacher, config.latent, rng
        self.betas = betas
        with seeded(rng):
            generator = Generator(
                config.latent, teacher.input_spec.shape, config.widths, eps=eps, bounded=bounded
            )
        self.module: nn.Module = nn.Sequential(*before, generator) if before else generator
        self.module.to(rng.device)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.5x on a CPU
        self.restart(config.lr if lr is None else lr)

    def restart(self, lr: float, z: Tensor | None = None, z_lr: float = 0.0) -> None:
        """Set a new optimizer; with z (N, latent), its steps move z too, at a rate of its own."""
        groups: list[dict[str, Any]] = [{"params": list(self.module.parameters())}]
        if z is not None:
            groups.append({"params": [z], "lr": z_lr})
        self.optimizer = torch.optim.Adam(groups, lr=lr, betas=self.betas, fused=True)

    def clone(self) -> "LatentGenerator":
        """Return a copy with weights of its own; `restart` it before its first step."""
        twin = copy.copy(self)
        twin.module = copy.deepcopy(self.module)
        return twin

    def draw(self, num: int) -> Tensor:
        """Draw z ~ N(0, 1), (num, latent)."""
        return torch.randn((num, self.latent), generator=self.rng, device=self.rng.device)

    def images(self, z: Tensor) -> Tensor:
        """Generate images (N, C, H, W) from z (N, latent), clipped to the valid range.

        The gradient passes through the clip, so that saturated pixels keep learning.
        """
        raw = self.teacher.input_spec.from_unit(self.teacher.run(self.module, z))
        return raw + (self.teacher.input_spec.clip(raw) - raw).detach()

    def step(self, loss: Tensor, *, clip: float = 0.0) -> None:
        """Take an Adam step on what the optimizer holds; no other network's .grad changes.

        Args:
            loss: scalar; raises NonFiniteError before the update if it is not finite.
            clip: maximum norm of the gradient; 0 for no limit.

        """
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the generator's loss became {loss.item()}; lower the lr")
        self.apply(torch.autograd.grad(loss, self._parameters()), clip=clip)

    def apply(self, gradients: Sequence[Tensor], *, clip: float = 0.0) -> None:
        """Take an Adam step with given gradients; see `step`."""
        parameters = self._parameters()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        self.optimizer.step()

    def _parameters(self) -> list[Tensor]:
        return [one for group in self.optimizer.param_groups for one in group["params"]]


class LearnedFirst(Stateful):
    """Generator that is trained for `steps` batches and then frozen.

    Args:
        generator: generator to train.
        steps: number of training steps.
        loss: function from images (N, C, H, W) to the loss and the teacher's logits (N, K).

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
        """Return a batch of `num` images; while training, drawn before the generator's step."""
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
