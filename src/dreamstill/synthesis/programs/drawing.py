"""Share what image programs have in common: random numbers, coordinates, colors, exposure.

Source: ours. Every draw is per image, so that images of one program differ in all that it shows.
"""

import math
from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor

from dreamstill.errors import ConfigError

__all__ = [
    "LevelSet",
    "Program",
    "at_times",
    "color_mapped",
    "draw_any",
    "expose",
    "image_program",
    "level_sets",
    "light_and_dark",
    "local_coordinates",
    "log_rand",
    "palette",
    "pick",
    "pixel_grid",
    "power",
    "rand",
    "randint",
    "randn",
    "random_coordinates",
    "soft_step",
    "standardize",
    "two_colors",
]

Program = Callable[[int, tuple[int, int, int], torch.Generator], Tensor]
"""Function (num, (C, H, W), rng) to images (num, C, H, W), float32 in [0, 1] on rng's device."""
LevelSet = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Function of local coordinates u, v (num, H, W) to levels (num, H, W): below 1 is inside."""

CHUNK = 2**18
"""Values drawn at a time on a CPU: what a program computes on then stays in its cache."""
EMPTY = 0.03
"""Standard deviation over the pixels of a channel, below which an image counts as empty."""
TABLE = 256


def image_program(program: Program) -> Program:
    """Make an image program of a function whose images may be empty or leave [0, 1].

    The program draws a few images at a time on a CPU, draws empty ones once more, and clamps
    pixels to [0, 1]. It raises ConfigError for a negative number of images or a shape that is not
    (C, H, W).
    """

    @wraps(program)
    def draw(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
        if num < 0 or len(shape) != 3 or min(shape) < 1:
            raise ConfigError(
                f"{program.__name__} cannot draw {num} images of shape {tuple(shape)}: "
                "give a number from 0 up and a shape (channels, height, width) from 1 up"
            )
        images = torch.empty(num, *shape, device=rng.device)
        most = max(1, CHUNK // math.prod(shape)) if rng.device.type == "cpu" else num
        for first in range(0, num, most or 1):
            part = images[first : first + most]
            torch.clamp(program(len(part), shape, rng), 0, 1, out=part)
            flat = part.flatten(2)
            variance = (flat.square().mean(2) - flat.mean(2).square()).amax(1)
            empty = (variance < EMPTY**2).nonzero()[:, 0]
            if len(empty):
                part[empty] = program(len(empty), shape, rng).clamp(0, 1)
        return images

    return draw


def draw_any(
    num: int, shape: tuple[int, int, int], kinds: Sequence[Program], rng: torch.Generator
) -> Tensor:
    """Draw each image (num, C, H, W) with one of several functions."""
    which = randint(0, len(kinds) - 1, (num,), rng)
    images = torch.empty(num, *shape, device=rng.device)
    for index, kind in enumerate(kinds):
        of = (which == index).nonzero()[:, 0]
        if len(of):
            images[of] = kind(len(of), shape, rng)
    return images


def level_sets(u: Tensor, v: Tensor, kinds: Sequence[LevelSet], rng: torch.Generator) -> Tensor:
    """Return levels (num, H, W), those of each image by one of several functions."""
    which = randint(0, len(kinds) - 1, (len(u),), rng)
    levels = torch.empty_like(u)
    for index, kind in enumerate(kinds):
        of = (which == index).nonzero()[:, 0]
        if len(of):
            levels[of] = kind(u[of], v[of], rng)
    return levels


def rand(size: Sequence[int], rng: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw uniform numbers of a size in [low, high)."""
    drawn = torch.rand(tuple(size), generator=rng, device=rng.device)
    return drawn.mul_(high - low).add_(low)


def log_rand(size: Sequence[int], rng: torch.Generator, low: float, high: float) -> Tensor:
    """Draw numbers of a size in [low, high), low > 0, whose logarithms are uniform."""
    return rand(size, rng, math.log(low), math.log(high)).exp_()


def at_times(size: Sequence[int], rng: torch.Generator, share: float, high: float) -> Tensor:
    """Draw numbers of a size, of which a share is uniform in [0, high); the others are 0."""
    return rand(size, rng, high - high / share, high).clamp_min_(0)


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


def random_coordinates(
    num: int, shape: tuple[int, int, int], rng: torch.Generator, spread: float, zoom: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return coordinates (num, H, W) around a point within `spread` of the middle, turned.

    Two fifths of the images are upright. Each is magnified by up to `zoom`, or as much reduced.
    """
    center = rand((num, 2), rng, -spread, spread)
    radii = log_rand((num, 1), rng, 1 / zoom, zoom).expand(-1, 2)
    angle = rand((num,), rng, -math.pi, math.pi)
    upright = (angle / (math.pi / 2)).round() * (math.pi / 2)
    angle = torch.where(rand((num,), rng) < 0.4, upright, angle)
    return local_coordinates(shape, center, radii, angle)


def palette(num: int, count: int, channels: int, rng: torch.Generator) -> Tensor:
    """Draw colors (num, count, C), mostly in [0, 1]; gray, pastel or bright, dark or light."""
    brightness = rand((num, 1, 1), rng, 0.15, 0.85)
    contrast = rand((num, 1, 1), rng, 0.1, 0.5)
    colors = brightness + contrast * randn((num, count, 1), rng)
    if channels > 1:
        saturation = at_times((num, 1, 1), rng, 0.75, 0.5)
        colors = colors + saturation * randn((num, count, channels), rng)
    return colors.clamp_(-0.1, 1.1)


def pick(colors: Tensor, index: Tensor) -> Tensor:
    """Return the colors (num, C, ...) that indexes (num, ...) stand for, of (num, count, C)."""
    num, _, channels = colors.shape
    where = index.reshape(num, 1, -1).expand(-1, channels, -1)
    return colors.transpose(1, 2).gather(2, where).view(num, channels, *index.shape[1:])


def light_and_dark(num: int, channels: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw two colors (num, C, 1, 1) that differ clearly; either may be the lighter one.

    The darker is black in a part of the images, the lighter is white in another.
    """
    low = at_times((num, 1), rng, 0.63, 0.6)
    high = low + (1 - low) * rand((num, 1), rng, 0.3, 1.4).clamp_max_(1)
    if channels > 1:
        saturation = at_times((num, 1), rng, 0.63, 0.35)
        # black and white stay so
        low, high = (
            gray + saturation * randn((num, channels), rng) * (4 * gray * (1 - gray)).clamp_min(0)
            for gray in (low, high)
        )
    swap = rand((num, 1), rng) < 0.5
    first, second = torch.where(swap, high, low), torch.where(swap, low, high)
    return first[:, :, None, None], second[:, :, None, None]


def two_colors(level: Tensor, channels: int, rng: torch.Generator) -> Tensor:
    """Color levels (num, H, W) in [0, 1] from one color of `light_and_dark` to the other."""
    ground, ink = light_and_dark(len(level), channels, rng)
    return torch.lerp(ground, ink, level[:, None])


def color_mapped(level: Tensor, channels: int, rng: torch.Generator, stops: int = 6) -> Tensor:
    """Color levels (num, H, W) in [0, 1] by a random table of 2 to `stops` colors an image.

    Colors are interpolated, or stand side by side in a third of the images; (num, C, H, W).
    """
    num = len(level)
    count = randint(2, stops, (num, 1), rng)
    position = torch.linspace(0, 1, TABLE, device=rng.device) * (count - 1)  # (num, TABLE)
    left = position.floor()
    hard = rand((num, 1), rng) < 0.3
    share = torch.where(hard, soft_step((position - left - 0.5) * 12), position - left)
    colors, index = palette(num, stops + 1, channels, rng), left.long()
    table = torch.lerp(pick(colors, index), pick(colors, index + 1), share[:, None])
    where = (level * (TABLE - 1) + 0.5).long().clamp_(0, TABLE - 1)
    return pick(table.transpose(1, 2), where)


def standardize(images: Tensor) -> Tensor:
    """Shift and scale each image (num, C, H, W) to mean 0 and standard deviation 1; in place."""
    images -= images.mean((1, 2, 3), keepdim=True)
    images /= images.square().mean((1, 2, 3), keepdim=True).sqrt_().clamp_min_(1e-4)
    return images


def expose(images: Tensor, rng: torch.Generator) -> Tensor:
    """Give standardized images (num, C, H, W) a random brightness, contrast and tint; in place."""
    num, channels = images.shape[:2]
    brightness = rand((num, 1, 1, 1), rng, 0.2, 0.8)
    contrast = log_rand((num, 1, 1, 1), rng, 0.06, 0.48)
    if channels > 1:
        tint = at_times((num, 1, 1, 1), rng, 0.67, 0.2)
        brightness = brightness + tint * randn((num, channels, 1, 1), rng)
        contrast = contrast * (1 + tint * randn((num, channels, 1, 1), rng))
    return images.mul_(contrast).add_(brightness)
