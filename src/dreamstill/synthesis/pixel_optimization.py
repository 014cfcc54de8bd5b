"""Optimize the pixels of images."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamstill.config import from_plain
from dreamstill.errors import NonFiniteError
from dreamstill.input_spec import InputSpec
from dreamstill.synthesis.class_balance import matched
from dreamstill.synthesis.config import RandomShapes, Start
from dreamstill.synthesis.random_shapes import structured_images
from dreamstill.teacher import Teacher

__all__ = ["Start", "halved", "jittered", "lr_share", "optimize_pixels", "start_images"]


@torch.no_grad()
def start_images(
    classes: Tensor,
    teacher: Teacher,
    start: Start | str,
    shapes: RandomShapes,
    rng: torch.Generator,
) -> Tensor:
    """Return initial inputs (N, C, H, W), within the valid range, for images of classes (N,).

    They are uniform pixels in [0, 1]; N(0, 1) in the input space, clipped; or random shapes that
    the teacher assigns to the classes, as far as possible. Optimizing a shape of another class only
    adds adversarial noise to it.
    """
    start, num, spec = from_plain(Start, start, "start"), len(classes), teacher.input_spec
    shape = (num, *spec.shape)
    if start is Start.GAUSSIAN:
        return spec.clip(spec.from_unit(torch.randn(shape, generator=rng, device=rng.device)))
    if start is Start.UNIFORM:
        return spec.normalize(torch.rand(shape, generator=rng, device=rng.device))
    images = spec.normalize(structured_images(4 * num, spec, shapes, rng))
    named = teacher(images).argmax(1)
    return images[matched(classes, named, teacher.num_classes)]


def halved(images: Tensor) -> Tensor:
    """Average-pool images (N, C, H, W) to half their resolution, rounded up."""
    return F.avg_pool2d(images, 2, ceil_mode=True)


def jittered(images: Tensor, most: int, *, flip: bool, rng: torch.Generator) -> Tensor:
    """Roll all images (N, C, H, W) by up to `most` pixels; with `flip`, mirror half of the time."""
    if most:
        by = torch.randint(-most, most + 1, (2,), generator=rng, device=rng.device).tolist()
        images = images.roll(by, dims=(2, 3))
    if flip and torch.rand((), generator=rng, device=rng.device) < 0.5:
        images = images.flip(3)
    return images


def lr_share(step: int, steps: int, *, warm_up: int, cosine: bool) -> float:
    """Return the factor of the learning rate at a step (from 0): warm-up, then 1 or a cosine.

    >>> [round(lr_share(step, 6, warm_up=2, cosine=True), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) if cosine else 1.0


def optimize_pixels(
    images: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    spec: InputSpec,
    steps: int,
    lr: float,
    warm_up: int = 0,
    cosine: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    best: bool = False,
) -> Tensor:
    """Optimize inputs (N, C, H, W) with Adam, clipped to the valid range after each step.

    Args:
        images: initial inputs; not changed.
        objective: function from inputs to a scalar.
        spec: input spec of the teacher.
        steps: number of steps; at least 1.
        lr: learning rate in the units of `InputSpec.from_unit`: divide one for pixels by the std.
        warm_up: steps of linear warm-up.
        cosine: whether to anneal the learning rate to 0 by a cosine.
        betas: Adam's decay rates.
        best: return the iterate with the lowest objective in place of the last.

    Raises:
        NonFiniteError: the objective is not finite; raised before the update.

    """
    unit = spec.to_unit(images).clone().requires_grad_()
    optimizer = torch.optim.Adam([unit], lr=lr, betas=betas, fused=True)
    kept, kept_loss = None, float("inf")
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * lr_share(step, steps, warm_up=warm_up, cosine=cosine)
        images = spec.from_unit(unit)
        loss = objective(images)
        value = loss.item()
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss of the images became {value}; lower synthesis.lr")
        if best and value < kept_loss:
            kept, kept_loss = images.detach().clone(), value
        (unit.grad,) = torch.autograd.grad(loss, unit)
        optimizer.step()
        with torch.no_grad():
            unit.copy_(spec.to_unit(spec.clip(spec.from_unit(unit))))
    return spec.from_unit(unit).detach() if kept is None else kept
