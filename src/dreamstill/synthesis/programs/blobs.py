"""Draw what lies inside the level lines of smooth fields: blobs, silhouettes, scenes, hills.

Source: ours, on the fields of `dreamstill.synthesis.fields`.
"""

import math

import torch
from torch import Tensor

from dreamstill.synthesis import random_shapes
from dreamstill.synthesis.config import RandomShapes
from dreamstill.synthesis.fields import color_fields, random_fields
from dreamstill.synthesis.programs.drawing import (
    at_times,
    image_program,
    light_and_dark,
    log_rand,
    palette,
    pixel_grid,
    power,
    rand,
    randint,
    soft_step,
)

__all__ = ["blobs", "figures", "landscapes", "scenes", "silhouettes"]


def reexposed(images: Tensor, rng: torch.Generator) -> Tensor:
    """Give images (num, C, H, W) in [0, 1] a random contrast, brightness and tint; in place."""
    num, channels = images.shape[:2]
    contrast = rand((num, 1, 1, 1), rng, 0.4, 1.4)
    shift = rand((num, channels, 1, 1), rng, -0.1, 0.1) + rand((num, 1, 1, 1), rng, -0.2, 0.2)
    return images.sub_(0.5).mul_(contrast).add_(shift + 0.5)


def stripes_inside(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw stripes (num, 1, H, W) from -1 to 1, upright or level in most images."""
    _, height, width = shape
    y, x = pixel_grid(height, width, rng.device)
    turn = math.pi / 2 * randint(0, 1, (num, 1, 1), rng)
    angle = torch.where(rand((num, 1, 1), rng) < 0.3, rand((num, 1, 1), rng, 0, math.pi), turn)
    rate = log_rand((num, 1, 1), rng, 3, 15)
    wave = torch.sin((x * angle.cos() + y * angle.sin()) * rate + rand((num, 1, 1), rng, 0, 6.3))
    return wave[:, None]


def filled_levels(
    shape: tuple[int, int, int], level: Tensor, mirrored: Tensor, rng: torch.Generator
) -> Tensor:
    """Draw what lies inside levels (num, H, W) above 0 in one color, the ground in another.

    Inside are a gradient, texture or stripes. Where `mirrored` (num, 1, 1, 1), so is the texture.
    """
    channels, height, width = shape
    num = len(level)
    sharpness = log_rand((num, 1, 1), rng, 0.7, 21) * math.sqrt(height * width) / 32
    mask = soft_step(level * sharpness)[:, None]
    ground, inside = light_and_dark(num, channels, rng)
    texture = color_fields(num, shape, (2, 4, 8, 16, 32), 0.8, rng)
    texture = torch.where(mirrored, (texture + texture.flip(3)) / math.sqrt(2), texture)
    rough = at_times((num, 1, 1, 1), rng, 0.67, 0.3)
    striped = at_times((num, 1, 1, 1), rng, 0.37, 0.35)
    bulge = rand((num, 1, 1), rng, -0.3, 0.3) * (rand((num, 1, 1), rng) < 0.5)
    fill = rough * texture + striped * stripes_inside(num, shape, rng)
    fill += inside + (bulge * level.clamp(0, 1.5))[:, None]
    noisy = at_times((num, 1, 1, 1), rng, 0.33, 0.15)
    return (ground + noisy * texture.flip(2)).lerp_(fill, mask)


@image_program
def blobs(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw what lies above a level of a smooth field, or within a band of levels."""
    _, height, width = shape
    level = random_fields(num, height, width, (2, 3, 5, 8), rng)
    level = level - rand((num, 1, 1), rng, -0.8, 0.8)
    banded = rand((num, 1, 1), rng) < 0.3
    level = torch.where(banded, rand((num, 1, 1), rng, 0.15, 0.6) - level.abs(), level)
    mirrored = rand((num, 1, 1, 1), rng) < 0.15
    level = torch.where(mirrored[:, 0], torch.maximum(level, level.flip(2)), level)
    return filled_levels(shape, level, mirrored, rng)


@image_program
def silhouettes(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw one body in the middle, mirrored left to right in most images, with limbs and holes."""
    _, height, width = shape
    y, x = pixel_grid(height, width, rng.device)
    size = (num, 1, 1)
    wide, tall = rand(size, rng, 0.3, 0.95), rand(size, rng, 0.5, 0.95)
    u, v = x / wide, y / tall
    # one exponent an image, from an ellipse to a box
    p = log_rand(size, rng, 2, 6)
    body = 1 - (power(u.abs(), p) + power(v.abs(), p))
    level = body.clamp_min_(-3) * rand(size, rng, 0.7, 2)
    rough = random_fields(num, height, width, (2, 3, 5, 8), rng)
    mirrored = rand((num, 1, 1, 1), rng) < 0.75
    rough = torch.where(mirrored[:, 0], (rough + rough.flip(2)) / math.sqrt(2), rough)
    level = level + rough * rand(size, rng, 0.3, 1.1)
    return filled_levels(shape, level, mirrored, rng)


@image_program
def scenes(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw two to five overlapping blobs, each with a shade, a gradient and a texture."""
    return reexposed(random_shapes.scenes(num, shape, RandomShapes(), rng), rng)


@image_program
def figures(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw strokes and blobs, smooth or rough, seen through a soft window."""
    two = random_shapes.figures(2 * num, shape, RandomShapes(), rng, 0.5).view(2, num, *shape)
    # many are nearly empty: the one with more contrast is taken
    first, second = two.flatten(2).std(2, correction=0)[..., None, None, None]
    return reexposed(torch.where(first > second, two[0], two[1]), rng)


@image_program
def landscapes(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw a sky above two to six layers of hills or roofs, in shades from far to near."""
    channels, height, width = shape
    most = 6
    y = (torch.arange(height, device=rng.device)[:, None] + 0.5) / height
    colors = palette(num, 2, channels, rng)[..., None, None]
    far, near = (palette(num, 1, channels, rng)[:, 0, :, None, None] for _ in range(2))
    texture = color_fields(num, shape, (4, 8, 16, 32), 0.8, rng)
    rough = rand((num, 1, 1, 1), rng, 0, 0.2)
    images = torch.lerp(colors[:, 0], colors[:, 1], y) + 0.4 * rough * texture.flip(3)
    count = randint(2, most, (num, 1, 1), rng)
    steps = rand((num, 1), rng) < 0.3  # roofs: heights in steps
    for index in range(most):
        ridge = random_fields(num, 2, width, (2, 4, 8, 16), rng)[:, 0]
        ridge = torch.where(steps, ridge.mul(1.5).round_(), ridge) * rand((num, 1), rng, 0.02, 0.15)
        line = ridge + 0.2 + 0.75 * (index + rand((num, 1), rng)) / count[:, 0]
        mask = soft_step((y - line[:, None]) * height) * (index < count)
        share = (index / count).clamp_max(1)[:, None]
        fill = torch.lerp(far, near, share) + rough * texture
        images.lerp_(fill, mask[:, None])
    return images
