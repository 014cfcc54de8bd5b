"""Share what image programs have in common: random numbers, coordinates, colors, exposure.

Source: ours. Every draw is per image, so that images of one program differ in all that it shows.
"""

import math
from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor

__all__ = [
    "LevelSet",
    "Program",
    "color_mapped",
    "expose",
    "image_program",
    "level_sets",
    "light_and_dark",
    "local_coordinates",
    "randn",
    "palette",
    "pixel_grid",
    "power",
    "randint",
    "soft_step",
    "standardize",
    "rand",
]

Program = Callable[[int, tuple[int, int, int], torch.Generator], Tensor]
"""Function (num, (C, H, W), rng) to images (num, C, H, W), float32 in [0, 1] on rng's device."""
LevelSet = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Function of local coordinates u, v (num, H, W) to levels (num, H, W): below 1 is inside."""

CHUNK = 2**18
"""Values drawn at a time on a CPU: what a program computes on then stays in its cache."""


def image_program(program: Program) -> Program:
    """Draw a program's images a few at a time on a CPU, and clamp them to [0, 1]."""

    @wraps(program)
    def draw(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
        images = torch.empty(num, *shape, device=rng.device)
        most = max(1, CHUNK // math.prod(shape)) if rng.device.type == "cpu" else num
        for first in range(0, num, most):
            part = images[first : first + most]
            torch.clamp(program(len(part), shape, rng), 0, 1, out=part)
        return images

    return draw


def rand(size: Sequence[int], rng: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw uniform numbers of a size in [low, high)."""
    drawn = torch.rand(tuple(size), generator=rng, device=rng.device)
    return drawn.mul_(high - low).add_(low)


def randn(size: Sequence[int], rng: torch.Generator) -> Tensor:
    """Draw standard normal numbers of a size."""
    return torch.randn(tuple(size), generator=rng, device=rng.device)


def randint(low: int, high: int, size: Sequence[int], rng: torch.Generator) -> Tensor:
    """Draw integers of a size in [low, high]."""
    return torch.randint(low, high + 1, tuple(size), generator=rng, device=rng.device)


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """Return base**exponent for base >= 0, in half the time of `torch.pow`."""
    return torch.exp2(exponent * torch.log2(base.clamp_min(1e-6)))


def soft_step(level: Tensor) -> Tensor:
    """Return 0 below -0.5, 1 above 0.5, and a straight slope between; in place."""
    return level.add_(0.5).clamp_(0, 1)


def pixel_grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows' y (H, 1) and the columns' x (W,); an image of H x W has the area 4."""
    unit = math.sqrt(height * width) / 2
    y, x = ((torch.arange(side, device=device) + 0.5 - side / 2) / unit for side in (height, width))
    return y[:, None], x


def local_coordinates(
    shape: tuple[int, int, int], center: Tensor, radii: Tensor, angle: Tensor
) -> tuple[Tensor, Tensor]:
    """Return coordinates u, v (num, H, W) in the frames of shapes that are turned and scaled.

    Args:
        shape: (C, H, W) of the images.
        center: x and y of the shapes' centers, (num, 2), from -1 to 1 at the image's borders.
        radii: half the extents along u and v, (num, 2), in units of `pixel_grid`.
        angle: angles of u, (num,), in radians.

    """
    _, height, width = shape
    y, x = pixel_grid(height, width, center.device)
    x = x - center[:, 0, None] * math.sqrt(width / height)  # (num, W)
    y = y - center[:, 1, None, None] * math.sqrt(height / width)  # (num, H, 1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    along, across = 1 / radii[:, :1], 1 / radii[:, 1:]
    u = (x * (cos * along))[:, None] + y * (sin * along)[:, None]
    v = (x * (-sin * across))[:, None] + y * (cos * across)[:, None]
    return u, v


def palette(num: int, count: int, channels: int, rng: torch.Generator) -> Tensor:
    """Draw colors (num, count, C), mostly in [0, 1]; gray, pastel or bright, dark or light."""
    brightness = rand((num, 1, 1), rng, 0.15, 0.85)
    contrast = rand((num, 1, 1), rng, 0.1, 0.5)
    colors = brightness + contrast * randn((num, count, 1), rng)
    if channels > 1:
        saturation = rand((num, 1, 1), rng, -0.15, 0.5).clamp_min_(0)
        colors = colors + saturation * randn((num, count, channels), rng)
    return colors.clamp_(-0.1, 1.1)


def light_and_dark(num: int, channels: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw two colors (num, C, 1, 1) that differ clearly; either may be the lighter one.

    The darker is black in a part of the images, the lighter is white in another.
    """
    low = rand((num, 1), rng, -0.35, 0.6).clamp_min_(0)
    high = low + (1 - low) * rand((num, 1), rng, 0.3, 1.4).clamp_max_(1)
    if channels > 1:
        saturation = rand((num, 1), rng, -0.2, 0.35).clamp_min_(0)
        # black and white stay so
        low, high = (
            gray + saturation * randn((num, channels), rng) * (4 * gray * (1 - gray)).clamp_min(0)
            for gray in (low, high)
        )
    swap = rand((num, 1), rng) < 0.5
    first, second = torch.where(swap, high, low), torch.where(swap, low, high)
    return first[:, :, None, None], second[:, :, None, None]


def standardize(images: Tensor) -> Tensor:
    """Shift and scale each image (num, C, H, W) to mean 0 and standard deviation 1; in place."""
    images -= images.mean((1, 2, 3), keepdim=True)
    images /= images.square().mean((1, 2, 3), keepdim=True).sqrt_().clamp_min_(1e-4)
    return images


def expose(images: Tensor, rng: torch.Generator) -> Tensor:
    """Give standardized images (num, C, H, W) a random brightness, contrast and tint; in place."""
    num, channels = images.shape[:2]
    brightness = rand((num, 1, 1, 1), rng, 0.2, 0.8)
    contrast = 0.06 * 8 ** rand((num, 1, 1, 1), rng)  # 0.06 to 0.48
    if channels > 1:
        tint = rand((num, 1, 1, 1), rng, -0.1, 0.2).clamp_min_(0)
        brightness = brightness + tint * randn((num, channels, 1, 1), rng)
        contrast = contrast * (1 + tint * randn((num, channels, 1, 1), rng))
    return images.mul_(contrast).add_(brightness)


TABLE = 256


def color_mapped(level: Tensor, channels: int, rng: torch.Generator, stops: int = 6) -> Tensor:
    """Color levels (num, H, W) in [0, 1] by a random table of 2 to `stops` colors an image.

    Colors are interpolated, or stand side by side in a third of the images; (num, C, H, W).
    """
    num, height, width = level.shape
    count = randint(2, stops, (num, 1), rng)
    position = torch.linspace(0, 1, TABLE, device=rng.device) * (count - 1)  # (num, TABLE)
    left = position.floor()
    hard = rand((num, 1), rng) < 0.3
    share = torch.where(hard, soft_step((position - left - 0.5) * 12), position - left)
    colors = palette(num, stops + 1, channels, rng).transpose(1, 2)
    index = left.long()[:, None].expand(-1, channels, -1)
    table = torch.lerp(colors.gather(2, index), colors.gather(2, index + 1), share[:, None])
    where = (level * (TABLE - 1) + 0.5).long().clamp_(0, TABLE - 1)
    where = where.reshape(num, 1, -1).expand(-1, channels, -1)
    return table.gather(2, where).view(num, channels, height, width)


def level_sets(
    u: Tensor, v: Tensor, kinds: Sequence[LevelSet], which: Tensor, rng: torch.Generator
) -> Tensor:
    """Return levels (num, H, W), image i by `kinds[which[i]]`."""
    levels = torch.empty_like(u)
    for index, kind in enumerate(kinds):
        of = (which == index).nonzero()[:, 0]
        if len(of):
            levels[of] = kind(u[of], v[of], rng)
    return levels
