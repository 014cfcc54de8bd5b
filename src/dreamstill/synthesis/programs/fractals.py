"""Draw iterated functions: Julia sets, folded planes, flames.

Source: escape time and orbit traps (Peitgen & Richter 1986), folds as in shaders, fractal flames
(Draves 2003) on iterated function systems (Barnsley 1988).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamstill.synthesis.programs.drawing import (
    at_times,
    color_mapped,
    image_program,
    light_and_dark,
    log_rand,
    palette,
    rand,
    random_coordinates,
    standardize,
)

__all__ = ["flames", "folds", "julia_sets"]

ESCAPE = 12.0
"""Beyond it a point counts as escaped; exp(-12) is far from denormal numbers."""
JULIA_STEPS = 12
FOLD_STEPS = 7
MAPS = 4


def spread_levels(level: Tensor) -> Tensor:
    """Return levels (num, H, W) in [0, 1], with most of each image around the middle."""
    return standardize(level[:, None])[:, 0].mul_(0.25).add_(0.5).clamp_(0, 1)


@image_program
def julia_sets(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw Julia sets and burning ships, colored by the escape or by the path of each point.

    They are those of z**2 + c, c near the border of the Mandelbrot set; ships take |Im z| at each
    step. The path's distance to a line or circle counts. Source: Peitgen & Richter 1986.
    """
    size = (num, 1, 1)
    x, y = random_coordinates(num, shape, rng, spread=0.6, zoom=2)
    angle = rand(size, rng, 0, 2 * math.pi)
    scale = rand(size, rng, 0.9, 1.25)
    real = scale * (angle.cos() / 2 - (2 * angle).cos() / 4)
    imaginary = scale * (angle.sin() / 2 - (2 * angle).sin() / 4)
    ship = (rand(size, rng) < 0.2).float()
    circle = at_times(size, rng, 0.6, 1)
    escape = torch.zeros_like(x)
    trap = torch.full_like(x, ESCAPE)
    for _ in range(JULIA_STEPS):
        across = x.square()
        down = y.square()
        y = (x * y).mul_(2).add_(imaginary).clamp_(-ESCAPE, ESCAPE)
        y.lerp_(y.abs(), ship)
        x = (across - down).add_(real).clamp_(-ESCAPE, ESCAPE)
        radius = torch.hypot(x, y)
        escape += radius.clamp_max(ESCAPE).neg_().exp_()
        distance = torch.where(circle > 0, (radius - circle).abs_(), x.abs())
        trap = torch.minimum(trap, distance)
    trapped = rand(size, rng) < 0.4
    return color_mapped(spread_levels(torch.where(trapped, trap.sqrt_(), escape)), shape[0], rng)


@image_program
def folds(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw planes that are folded and turned again and again: lights, leaves, tiles, lattices.

    Source: ours, on a map well known from shaders, p -> abs(p) / |p|**2 + c.
    """
    size = (num, 1, 1)
    u, v = random_coordinates(num, shape, rng, spread=0.6, zoom=2)
    u, v = u / 2, v / 2
    at_u, at_v = (rand(size, rng, -1.1, -0.3) for _ in range(2))
    turn = rand(size, rng, -0.5, 0.5) * (rand(size, rng) < 0.5)
    cos, sin = turn.cos(), turn.sin()
    inverted = (rand(size, rng) < 0.6).float()  # the others are folded and scaled alone
    scale = rand(size, rng, 1.2, 1.7)
    light = torch.zeros_like(u)
    trap = torch.full_like(u, 9)
    fade = log_rand(size, rng, 0.35, 0.9)  # how much less a step shows than the one before
    for step in range(FOLD_STEPS):
        u, v = u.abs(), v.abs()
        squared = u.square().addcmul_(v, v).clamp_min_(0.02)
        factor = torch.lerp(scale.expand_as(squared), squared.reciprocal(), inverted)
        u = u.mul_(factor).add_(at_u)
        v = v.mul_(factor).add_(at_v)
        u, v = u * cos - v * sin, u * sin + v * cos
        shown = fade**step
        light.addcmul_(u.square().addcmul_(v, v).mul_(2).clamp_max_(ESCAPE).neg_().exp_(), shown)
        trap = torch.minimum(trap, torch.minimum(u.abs(), v.abs()) / shown)
    level = torch.where(rand(size, rng) < 0.5, light, trap.sqrt_())
    return color_mapped(spread_levels(level), shape[0], rng)


def flame_points(num: int, steps: int, rng: torch.Generator) -> Tensor:
    """Return the points (num, 2, MAPS, MAPS**(steps - 1)) of random iterated function systems.

    From one point, every map is applied to every point of the step before. Axis 2 tells which map
    was the last.
    """
    angle = rand((num, MAPS, 1, 1), rng, -math.pi, math.pi)
    ratio = rand((num, 1, 1, 1), rng, 0.35, 0.65) * rand((num, MAPS, 1, 1), rng, 0.6, 1.3)
    other = angle + rand((num, MAPS, 1, 1), rng, -0.6, 0.6)
    first = torch.cat([angle.cos(), -angle.sin()], 3)
    second = torch.cat([other.sin(), other.cos()], 3)
    matrix = (torch.cat([first, second], 2) * ratio).flatten(1, 2)  # (num, 2 MAPS, 2)
    shift = rand((num, 2 * MAPS, 1), rng, -1, 1)
    bent = at_times((num, 1, 1), rng, 0.67, 1)
    points = torch.zeros(num, 2, 1, device=rng.device)
    for _ in range(steps):
        moved = torch.baddbmm(shift, matrix, points)
        moved = moved.lerp_(torch.sin(moved * 2), bent)
        points = moved.view(num, MAPS, 2, -1).transpose(1, 2)
        last, points = points, points.flatten(2)
    return last


@image_program
def flames(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw the points of iterated function systems: ferns, spirals, dust, veils.

    Each map of a system has a color; the brightness is the logarithm of the number of points.
    Source: Draves 2003; Barnsley 1988.
    """
    channels, height, width = shape
    steps = max(3, round(math.log(2 * height * width, MAPS)))
    points = flame_points(num, steps, rng)
    middle = points.mean((2, 3), keepdim=True)
    spread = (points - middle).square().mean((2, 3), keepdim=True).sqrt_().clamp_min_(1e-3)
    points = (points - middle) / (spread * rand((num, 1, 1, 1), rng, 1.2, 2.4))
    column = ((points[:, 0] + 1) * (width / 2)).floor_()
    row = ((points[:, 1] + 1) * (height / 2)).floor_()
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    bins = height * width + 1  # the last one is outside
    index = (row * width + column).masked_fill_(outside, bins - 1).long()  # (num, MAPS, points)
    index += bins * torch.arange(num * MAPS, device=rng.device).view(num, MAPS, 1)
    counts = torch.bincount(index.flatten(), minlength=num * MAPS * bins)  # exact on any device
    counts = counts.view(num, MAPS, bins)[..., :-1].float()
    # spots of three pixels a side in a part of the images
    spread_out = F.avg_pool2d(counts.view(num, MAPS, height, width), 3, 1, 1).view_as(counts)
    counts = counts.lerp_(spread_out, at_times((num, 1, 1), rng, 0.6, 1))
    total = counts.sum(1, keepdim=True)
    ground, ink = light_and_dark(num, channels, rng)
    colors = palette(num, MAPS, channels, rng).transpose(1, 2)
    plain = rand((num, 1, 1), rng) < 0.4
    colors = torch.where(plain, ink.flatten(2), colors)
    mixed = (colors @ counts).div_(total.clamp_min(1)).view(num, *shape)
    gain = log_rand((num, 1, 1), rng, 0.5, 3)
    density = torch.log1p(total * gain) / torch.log1p(8 * gain)
    return torch.lerp(
        ground.expand_as(mixed), mixed, density.view(num, 1, height, width).clamp_(0, 1)
    )
