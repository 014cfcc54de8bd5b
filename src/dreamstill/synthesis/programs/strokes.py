"""Draw pen strokes: glyphs like digits and letters, scribbles, straight lines.

Source: ours. Points along the strokes are spread as Gaussian spots, whose sum is a product of two
matrices: along rows and along columns.
"""

import math

import torch
from torch import Tensor

from dreamstill.synthesis.fields import color_fields
from dreamstill.synthesis.programs.drawing import (
    at_times,
    image_program,
    light_and_dark,
    log_rand,
    pixel_grid,
    rand,
    randint,
    randn,
    soft_step,
)

__all__ = ["scribbles", "strokes"]

POINTS = 40
MOST_STROKES = 4
MOST_LINES = 8


def some_of(most: int, num: int, rng: torch.Generator) -> Tensor:
    """Tell which strokes are drawn, (num, most, 1): the first one, and up to all."""
    return torch.arange(most, device=rng.device)[:, None] < randint(1, most, (num, 1, 1), rng)


def bezier(control: Tensor, num_points: int) -> Tensor:
    """Return points (..., num_points, 2) along cubic Bezier curves of `control` (..., 4, 2)."""
    t = torch.linspace(0, 1, num_points, device=control.device)[:, None]
    s = 1 - t
    weights = torch.cat([s**3, 3 * t * s**2, 3 * t**2 * s, t**3], 1)
    points: Tensor = weights @ control
    return points


def ink(points: Tensor, radius: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the amount of ink (num, H, W) of strokes: 1 on a long line, exp(-1/2) at its radius.

    Args:
        points: (num, strokes, points, 2), x and y in units of `pixel_grid`.
        radius: of the pen at each point, (num, strokes, points); 0 where there is no ink.
        shape: (C, H, W).

    """
    _, height, width = shape
    steps = (points[:, :, 1:] - points[:, :, :-1]).norm(dim=3)
    lengths = torch.cat([steps[:, :, :1], (steps[:, :, 1:] + steps[:, :, :-1]) / 2], 2)
    lengths = torch.cat([lengths, steps[:, :, -1:]], 2)
    y, x = pixel_grid(height, width, points.device)
    radius, lengths, points = radius.flatten(1), lengths.flatten(1), points.flatten(1, 2)
    present = radius > 0
    safe = radius.clamp_min(1e-3)
    scale = safe.reciprocal() * math.sqrt(0.5)
    across = ((x - points[..., :1]) * scale[..., None]).square_().clamp_max_(20).neg_().exp_()
    down = ((y[:, 0] - points[..., 1:]) * scale[..., None]).square_().clamp_max_(20).neg_().exp_()
    # a stroke without length leaves a dot
    weights = (lengths / safe / math.sqrt(2 * math.pi)).clamp_min_(1.2 / POINTS) * present
    drawn: Tensor = (down * weights[..., None]).transpose(1, 2) @ across
    return drawn


def pen_image(
    shape: tuple[int, int, int], points: Tensor, radius: Tensor, rng: torch.Generator
) -> Tensor:
    """Draw strokes in one color on a ground of another, sharp or soft, plain or with texture."""
    num, level = len(points), ink(points, radius, shape)
    sharpness = log_rand((num, 1, 1), rng, 1.2, 6)
    mask = soft_step((level - 0.6) * sharpness)
    ground, pen = light_and_dark(num, shape[0], rng)
    texture = color_fields(num, shape, (3, 6, 12), 0.8, rng)
    on_ground, on_pen = (at_times((num, 1, 1, 1), rng, 0.4, 0.2) for _ in range(2))
    images = ground + on_ground * texture
    return images.lerp_(pen - on_pen * texture, mask[:, None])


def glyph_points(num: int, rng: torch.Generator) -> Tensor:
    """Draw strokes (num, MOST_STROKES, POINTS, 2) in a box of -1 to 1, each joined to the last.

    A stroke is a straight line, a cubic Bezier curve or an arc of an ellipse. The corners of half
    of the glyphs lie on a lattice, as those of letters do.
    """
    size = (num, MOST_STROKES)
    ends = rand((num, MOST_STROKES + 1, 1, 2), rng, -1, 1)
    snapped = rand((num, 1, 1, 1), rng) < 0.5
    ends = torch.where(snapped, ends.mul(1.49).round(), ends)
    # the first stroke starts at a corner anyway
    joined = rand((*size, 1, 1), rng) < 0.6
    joined[:, 0] = True
    start = torch.where(joined, ends[:, :-1], rand((*size, 1, 2), rng, -1, 1))
    stop = ends[:, 1:]
    bend = torch.where(rand((*size, 1, 1), rng) < 0.4, 0.0, 1.0)
    control = [
        torch.lerp(start, stop, share) + bend * 0.8 * randn((*size, 1, 2), rng)
        for share in (1 / 3, 2 / 3)
    ]
    curves = bezier(torch.cat([start, *control, stop], 2), POINTS)
    sweep = rand((*size, 1), rng, 0.6, 2.1) * math.pi
    angle = rand((*size, 1), rng, -math.pi, math.pi)
    t = torch.linspace(0, 1, POINTS, device=rng.device)
    angle = angle + sweep.clamp_max_(2 * math.pi) * t
    radii = rand((*size, 1, 2), rng, 0.3, 0.9)
    unit = torch.stack([angle.cos(), angle.sin()], 3)
    arcs = start + radii * (unit - unit[:, :, :1])
    return torch.where(rand((*size, 1, 1), rng) < 0.35, arcs, curves)


def fitted(points: Tensor, present: Tensor, half: Tensor) -> Tensor:
    """Move and scale strokes so that those `present` (num, strokes, 1) fill boxes.

    Args:
        points: (num, strokes, points, 2).
        present: True where a stroke is drawn.
        half: half the box's sides, (num, 1, 1, 2).

    """
    here = present[..., None]
    low = torch.where(here, points, 9.0).amin((1, 2), keepdim=True)
    high = torch.where(here, points, -9.0).amax((1, 2), keepdim=True)
    extent = (high - low).clamp_min_(0.35)  # a single line stays thin
    return (points - (low + high) / 2) * (2 * half / extent)


@image_program
def strokes(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw a glyph of one to four joined strokes in a box in the middle, as digits and letters are.

    Box, slant and width of the pen differ by image, and the width along each stroke.
    """
    _, height, width = shape
    points = glyph_points(num, rng)
    present = some_of(MOST_STROKES, num, rng)
    half_y = rand((num, 1, 1, 1), rng, 0.55, 0.85)
    half = torch.cat([half_y * rand((num, 1, 1, 1), rng, 0.45, 1), half_y], 3)
    aspect = math.sqrt(width / height)
    points = fitted(points, present, half)
    points[..., 0] += points[..., 1] * rand((num, 1, 1), rng, -0.35, 0.35)
    points = points + rand((num, 1, 1, 2), rng, -0.12, 0.12)
    points = points * torch.tensor([min(aspect, 1), min(1 / aspect, 1)], device=rng.device)
    radius = log_rand((num, 1, 1), rng, 0.05, 0.175)
    swell = at_times((num, 1, 1), rng, 0.6, 0.6)
    t = torch.linspace(0, 2 * math.pi, POINTS, device=rng.device)
    phase = rand((num, MOST_STROKES, 1), rng, 0, 2 * math.pi)
    radius = radius * (1 + swell * torch.sin(t + phase)) * present
    return pen_image(shape, points, radius, rng)


@image_program
def scribbles(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw one to eight curves or straight lines over the whole image, as cracks and wires are."""
    _, height, width = shape
    control = rand((num, MOST_LINES, 4, 2), rng, -1.4, 1.4)
    straight = rand((num, 1, 1, 1), rng) < 0.35
    t = torch.linspace(0, 1, 4, device=rng.device)[:, None]
    lines = torch.lerp(control[:, :, :1], control[:, :, 3:], t)
    points = bezier(torch.where(straight, lines, control), POINTS)
    aspect = math.sqrt(width / height)
    points = points * torch.tensor([aspect, 1 / aspect], device=rng.device)
    radius = log_rand((num, 1, 1), rng, 0.045, 0.135) * some_of(MOST_LINES, num, rng)
    radius = radius * log_rand((num, MOST_LINES, 1), rng, 0.6, 1.6)
    return pen_image(shape, points, radius.expand(-1, -1, POINTS), rng)
