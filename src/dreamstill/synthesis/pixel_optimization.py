"""Optimize pixels: what every method without a generator is built on."""

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
    """(N, C, H, W) in the input space, within the valid range, to become images of classes (N,).

    Uniform pixels in [0, 1]; N(0, 1) in the input space, clipped; or the random shapes of
    structured noise, as far as possible of the class that the teacher takes them for: a shape of
    the class stays one, another is only covered with the noise that deceives the teacher.
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
    """Pool images (N, C, H, W) to half their resolution, a last odd row or column by itself."""
    return F.avg_pool2d(images, 2, ceil_mode=True)


def jittered(images: Tensor, most: int, *, flip: bool, rng: torch.Generator) -> Tensor:
    """Images (N, C, H, W), all rolled by up to `most` pixels and mirrored half of the time."""
    if most:
        by = torch.randint(-most, most + 1, (2,), generator=rng, device=rng.device).tolist()
        images = images.roll(by, dims=(2, 3))
    if flip and torch.rand((), generator=rng, device=rng.device) < 0.5:
        images = images.flip(3)
    return images


def lr_share(step: int, steps: int, *, warm_up: int, cosine: bool) -> float:
    """What a step, from 0 on, of `steps` has of the learning rate: a climb, then all or a cosine.

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
    """Adam on images (N, C, H, W) in the input space, clipped to the valid range at each step.

    Args:
        images: where to start; not changed.
        objective: images -> scalar.
        spec: the teacher's input.
        steps: at least 1.
        lr: in units of `InputSpec.from_unit`; for a learning rate in pixels divide by the spec's
            std.
        warm_up, cosine: see `lr_share`.
        betas: Adam's.
        best: return the iterate of the lowest objective, a true copy, in place of the last.

    Raises:
        NonFiniteError: the objective is not finite; before the update.

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
