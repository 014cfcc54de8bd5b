"""Draw one to three objects on a plain ground: filled shapes, outlines, rings, letters of boxes.

Source: ours.
"""

import math

import torch
from torch import Tensor

from dreamstill.synthesis.fields import color_fields
from dreamstill.synthesis.programs.drawing import (
    at_times,
    image_program,
    level_sets,
    light_and_dark,
    local_coordinates,
    log_rand,
    palette,
    pixel_grid,
    power,
    rand,
    randint,
    randn,
    soft_step,
)

__all__ = ["balls", "objects"]

MOST_OBJECTS = 3
BOXES = 4


def superellipse(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels of |u|**p + |v|**p = 1, p from 0.7 (a star) over 2 (an ellipse) to 8."""
    p = log_rand((len(u), 1, 1), rng, 0.7, 7.7)
    return power(power(u.abs(), p) + power(v.abs(), p), 1 / p)


def folded_angle(u: Tensor, v: Tensor, corners: Tensor) -> Tensor:
    """Return the angle to the nearest of `corners` (num, 1, 1) equal directions, in radians."""
    sector = 2 * math.pi / corners
    angle = torch.atan2(v, u) / sector
    return angle.sub_(angle.round()).abs_().mul_(sector)


def polygon(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels of a regular polygon of 3 to 7 corners."""
    angle = folded_angle(u, v, randint(3, 7, (len(u), 1, 1), rng))
    return torch.hypot(u, v).mul_(angle.cos_()).mul_(1.4)


def star(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels of a star or flower of 3 to 9 points."""
    corners = randint(3, 9, (len(u), 1, 1), rng)
    depth = rand((len(u), 1, 1), rng, 0.25, 0.7)
    share = folded_angle(u, v, corners) * (corners / math.pi)  # 0 at a point, 1 between points
    round_ = rand((len(u), 1, 1), rng) < 0.4
    share = torch.where(round_, share * share * (3 - 2 * share), share)
    return torch.hypot(u, v) / (1 - depth * share)


def ring(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels of a ring; half of the rings are open to one side, as a C or a U is."""
    half = rand((len(u), 1, 1), rng, 0.08, 0.3)
    radius = torch.hypot(u, v)
    level = (radius - (1 - half)).abs_() / half
    # cos of half the gap; above 1 is no gap
    gap = rand((len(u), 1, 1), rng, 0.3, 1.7)
    return torch.maximum(level, 1 + 3 * (u - gap * radius))


def cross(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels of two bars that cross each other: plus, T, L, H-like."""
    size = (len(u), 1, 1)
    half_x, half_y = rand(size, rng, 0.1, 0.45), rand(size, rng, 0.1, 0.45)
    at_x, at_y = ((rand(size, rng, -1.2, 1.2)).clamp_(-0.6, 0.6) for _ in range(2))
    upright = torch.maximum((u - at_x).abs_() / half_x, v.abs())
    level = torch.maximum(u.abs(), (v - at_y).abs_() / half_y)
    return torch.minimum(upright, level)


def boxes(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels of the union of 2 to 4 boxes between points of a lattice, as in letters."""
    size = (len(u), BOXES, 1, 1)
    half = rand((len(u), 1, 1), rng, 0.1, 0.22)
    x, y = (randint(-1, 1, size, rng) * 0.75 for _ in range(2))
    long_x = 0.375 * randint(0, 2, size, rng)
    long_y = torch.where(long_x == 0, 0.75, 0.375 * randint(0, 1, size, rng) * (long_x < 0.5))
    count = randint(2, BOXES, (len(u), 1, 1), rng)
    union = torch.full_like(u, 9)
    for box in range(BOXES):
        across = (u - x[:, box]).abs_() / (half + long_x[:, box])
        down = (v - y[:, box]).abs_() / (half + long_y[:, box])
        level = torch.maximum(across, down).add_((box >= count) * 9.0)
        union = torch.minimum(union, level)
    return union


def crescent(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels of a disk without another disk, or of a half disk."""
    size = (len(u), 1, 1)
    bite = (u - rand(size, rng, 0.4, 1.2)).square_() + v.square()
    disk = torch.hypot(u, v)
    straight = 1 + 2 * (u - rand(size, rng, -0.3, 0.6))
    bitten = torch.where(rand(size, rng) < 0.6, 1.7 - bite / rand(size, rng, 0.5, 1), straight)
    return torch.maximum(disk, bitten)


def wedge(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels of a triangle, trapezium or bottle, whose width changes along v."""
    size = (len(u), 1, 1)
    top, bottom = rand(size, rng, 0, 0.9), rand(size, rng, 0.3, 0.9)
    share = (v + 1).mul_(0.5).clamp_(0, 1)
    share = power(share, log_rand(size, rng, 0.25, 4))
    width = (top + (bottom - top) * share).clamp_min_(0.05)
    return torch.maximum(u.abs() / width, v.abs())


KINDS = (superellipse, polygon, star, ring, cross, boxes, crescent, wedge)


def ground_colors(ground: Tensor, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Return a plain ground (num, C, H, W), with a gradient in half of the images, and noise."""
    num = len(ground)
    y, x = pixel_grid(*shape[1:], rng.device)
    amount = at_times((num, 1, 1), rng, 0.5, 0.3)
    angle = rand((num, 1, 1), rng, 0, 2 * math.pi)
    slope = amount * (x * angle.cos() + y * angle.sin())
    noise = at_times((num, 1, 1, 1), rng, 0.5, 0.06)
    return ground + slope[:, None] + noise * randn((num, *shape), rng)


@image_program
def objects(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw one to three objects on a plain ground: superellipses, stars, rings, letters of boxes.

    They are filled or outlined, with hard or soft edges; `KINDS` are their shapes.
    """
    channels, height, width = shape
    side = math.sqrt(height * width)
    ground, ink = light_and_dark(num, channels, rng)
    images = ground_colors(ground, shape, rng)
    others = palette(num, MOST_OBJECTS, channels, rng)[..., None, None]
    texture = color_fields(num, shape, (3, 6, 12), 0.7, rng)
    single = rand((num, 1, 1), rng) < 0.5
    count = torch.where(single, 1, randint(2, MOST_OBJECTS, (num, 1, 1), rng))
    thickness = rand((num, 1, 1), rng, 0.06, 0.25)
    outlined = (rand((num, 1, 1), rng) < 0.25).float()
    sharpness = log_rand((num, 1, 1), rng, 0.08, 3.2).clamp_max_(1)
    roughness = at_times((num, 1, 1, 1), rng, 0.5, 0.25)
    for index in range(MOST_OBJECTS):
        radius = rand((num, 1), rng, 0.25, 0.95) * (1 if index == 0 else 0.7)
        radius = torch.where(single[:, 0], radius.clamp_min(0.45), radius)
        stretch = log_rand((num, 1), rng, 0.53, 1.9)
        radii = torch.cat([radius * stretch, radius / stretch], 1).clamp_max_(1.1)
        upright = rand((num,), rng) < 0.5
        quarter = math.pi / 2 * randint(0, 3, (num,), rng)
        angle = torch.where(upright, quarter, rand((num,), rng, 0, 2 * math.pi))
        center = rand((num, 2), rng, -0.8, 0.8) * torch.where(single[:, 0], 0.25, 1.0)
        u, v = local_coordinates(shape, center, radii, angle)
        level = level_sets(u, v, KINDS, rng)
        filled = 1 - level
        band = thickness - (level - (1 - thickness)).abs_()
        edge = radii.amin(1)[:, None, None] * side / 2 * sharpness
        mask = soft_step(torch.lerp(filled, band, outlined).mul_(edge)).mul_(index < count)
        shading = rand((num, 1, 1), rng, -0.3, 0.3) * (rand((num, 1, 1), rng) < 0.6)
        color = ink if index == 0 else others[:, index]
        fill = color + (u.clamp_(-1, 1) * shading)[:, None] + roughness * texture
        images.lerp_(fill, mask[:, None])
    return images


@image_program
def balls(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw one to four lit ellipsoids above a ground, each with a highlight and a shadow.

    Source: ours; diffuse shading as by Lambert and a highlight as by Phong 1975.
    """
    channels, height, width = shape
    side = math.sqrt(height * width)
    most = 4
    colors = palette(num, most + 2, channels, rng)[..., None, None]
    y = torch.linspace(0, 1, height, device=rng.device)[:, None]
    horizon = rand((num, 1, 1, 1), rng, 0, 1)
    floor = soft_step((y - horizon) * log_rand((num, 1, 1, 1), rng, 1, 100))
    images = torch.lerp(colors[:, most], colors[:, most + 1], floor).expand(num, *shape).clone()
    light = rand((num, 1, 1), rng, 0, 2 * math.pi)
    tilt = rand((num, 1, 1), rng, 0.2, 0.9)
    light_u, light_v, light_z = tilt * light.cos(), tilt * light.sin(), (1 - tilt**2).sqrt()
    ambient = rand((num, 1, 1), rng, 0.1, 0.5)
    shine = at_times((num, 1, 1), rng, 0.67, 1)
    texture = color_fields(num, shape, (4, 8, 16), 0.7, rng)
    texture *= at_times((num, 1, 1, 1), rng, 0.6, 0.3)
    count = randint(1, most, (num, 1, 1), rng)
    for index in range(most):
        radius = rand((num, 1), rng, 0.2, 0.75)
        radii = torch.cat([radius, radius * rand((num, 1), rng, 0.6, 1)], 1)
        center = rand((num, 2), rng, -0.8, 0.8)
        shown = index < count
        u, v = local_coordinates(shape, center, radii, torch.zeros(num, device=rng.device))
        dark = ((u + light_u * 0.7) ** 2 + (v + light_v * 0.7) ** 2).mul_(-1.5).clamp_min_(-15)
        images *= (1 - dark.exp_().mul_(0.6 * shown))[:, None]
        squared = u.square() + v.square()
        z = (1 - squared).clamp_min_(1e-6).sqrt_()
        lit = (u * light_u + v * light_v + z * light_z).clamp_(0, 1)
        mask = soft_step((1 - squared) * (radius[:, :, None] * side / 4)).mul_(shown)
        fill = (colors[:, index] + texture) * (ambient + (1.2 - ambient) * lit)[:, None]
        fill += (shine * lit.pow(24).clamp_min_(1e-6))[:, None]
        images.lerp_(fill, mask[:, None])
    return images
