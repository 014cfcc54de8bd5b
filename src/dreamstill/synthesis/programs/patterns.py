"""Draw patterns: gradients, stripes and checks, tiles, cells, mosaics, ripples.

Source: ours; cells after the cellular textures of Worley 1996.
"""

import math

import torch
from torch import Tensor

from dreamstill.synthesis.fields import color_fields, random_fields
from dreamstill.synthesis.programs.drawing import (
    at_times,
    color_mapped,
    expose,
    image_program,
    level_sets,
    light_and_dark,
    log_rand,
    palette,
    pick,
    pixel_grid,
    rand,
    randint,
    random_coordinates,
    soft_step,
    standardize,
    two_colors,
)
from dreamstill.synthesis.programs.objects import KINDS

__all__ = ["cells", "gradients", "mosaics", "ripples", "stripes_and_checks", "tiles"]

MOST_CELLS = 20
MOST_BANDS = 8
MOST_SOURCES = 4


def linear(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels along u."""
    return 0.5 + 0.4 * u


def radial(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels along the radius of ellipses."""
    return 0.7 * torch.hypot(u, v * rand((len(u), 1, 1), rng, 0.6, 1.8))


def conic(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels along the angle, without a seam: up and down one to three times."""
    turns = randint(1, 3, (len(u), 1, 1), rng)
    return 0.5 + 0.5 * torch.sin(torch.atan2(v, u) * turns)


def boxed(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels along the distance to a square, or to a diamond in half of the images."""
    u, v = u.abs(), v.abs()
    diamond = rand((len(u), 1, 1), rng) < 0.5
    return torch.where(diamond, 0.5 * (u + v), 0.7 * torch.maximum(u, v))


def saddle(u: Tensor, v: Tensor, rng: torch.Generator) -> Tensor:
    """Return levels along the product of u and v."""
    return 0.5 + 0.5 * u * v


SLOPES = (linear, radial, conic, boxed, saddle)


@image_program
def gradients(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw gradients of two to five colors: linear, radial, conic, boxed, or two of them blended.

    Half of them repeat; the colors of a third stand side by side.
    """
    u, v = random_coordinates(num, shape, rng, spread=1)
    first, second = (level_sets(u, v, SLOPES, rng) for _ in range(2))
    level = first.lerp_(second, at_times((num, 1, 1), rng, 0.47, 0.7))
    level *= 4 ** at_times((num, 1, 1), rng, 0.55, 1)
    level += rand((num, 1, 1), rng, -0.2, 0.2)
    level = (level - 2 * (level / 2).round()).abs_()  # up and down
    return color_mapped(level, shape[0], rng, stops=5)


def waves(phase: Tensor, rng: torch.Generator) -> Tensor:
    """Return sinusoids or square waves (num, H, W) in [0, 1], of a random duty, one an image."""
    size = (len(phase), 1, 1)
    sharpness = log_rand(size, rng, 0.5, 12)
    return soft_step((phase.sin_() - rand(size, rng, -0.6, 0.6)).mul_(sharpness))


@image_program
def stripes_and_checks(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw stripes, checks, plaids, rays and rings; straight or warped, smooth or sharp."""
    channels, height, width = shape
    size = (num, 1, 1)
    u, v = random_coordinates(num, shape, rng, spread=0.7)
    polar = rand(size, rng) < 0.2
    spokes = randint(2, 8, size, rng)
    u, v = (
        torch.where(polar, torch.atan2(v, u) * spokes, u * log_rand(size, rng, 3, 18)),
        torch.where(polar, torch.hypot(u, v), v) * log_rand(size, rng, 3, 18),
    )
    warp = random_fields(2 * num, height, width, (2, 4), rng).reshape(2, num, height, width)
    amount = at_times(size, rng, 0.57, 2)
    first = waves(u.add_(warp[0].mul_(amount)).add_(rand(size, rng, 0, 6.3)), rng)
    second = waves(v.add_(warp[1].mul_(amount)).add_(rand(size, rng, 0, 6.3)), rng)
    # in turn: stripes alone, checks, a product, plaid
    kind = rand(size, rng)
    checks = torch.where(kind < 0.6, (first - second).abs_(), first * second)
    base = torch.where(kind < 0.35, first, torch.where(kind < 0.8, checks, first))
    images = two_colors(base, channels, rng)
    plaid = (kind >= 0.8) * rand(size, rng, 0.3, 0.8)
    third = palette(num, 1, channels, rng)[:, 0, :, None, None]
    return images.lerp_(third, (second * plaid)[:, None])


@image_program
def tiles(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw one object again and again: dots, bricks, stars, rings, letters on a lattice."""
    channels, height, width = shape
    size = (num, 1, 1)
    u, v = random_coordinates(num, shape, rng, spread=1)
    rate = log_rand(size, rng, 0.8, 3.2)
    v = v * rate * log_rand(size, rng, 0.67, 1.5)
    row = v.round()
    shift = (rand(size, rng) < 0.4) * 0.5  # every second row by half a tile, as bricks are
    u = u * rate + shift * row
    column = u.round()
    u, v = u.sub_(column), v.sub_(row)
    grow = rand(size, rng, 0.3, 0.52)
    level = level_sets(u / grow, v / grow, KINDS, rng)
    ground, ink = light_and_dark(num, channels, rng)
    edge = grow / rate * math.sqrt(height * width) / 2 * log_rand(size, rng, 0.1, 1)
    mask = soft_step((1 - level).mul_(edge))
    # a slow change over the image; columns in turn
    turns = (rand(size, rng) < 0.25) * (row + column).remainder_(2)
    fade = random_fields(num, height, width, (2, 3), rng)
    fade = fade.mul_(at_times(size, rng, 0.5, 0.3))
    third = palette(num, 1, channels, rng)[:, 0, :, None, None]
    color = torch.lerp(ink, third, turns[:, None])
    return torch.lerp(ground, color, mask[:, None]).add_(fade[:, None])


@image_program
def cells(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw the cells of 3 to 20 random points: stained glass, pebbles, cracked earth, crystals.

    Source: Worley 1996, by the distances to the nearest point and to the next.
    """
    channels, height, width = shape
    y, x = pixel_grid(height, width, rng.device)
    reach = torch.tensor([1.1 * x[-1], 1.1 * y[-1, 0]], device=rng.device)
    points = rand((num, MOST_CELLS, 2), rng, -1, 1) * reach
    points *= 0.6 + 0.4 * rand((num, 1, 1), rng)
    absent = torch.arange(MOST_CELLS, device=rng.device) >= randint(3, MOST_CELLS, (num, 1), rng)
    points += absent[..., None] * 99.0
    across = (points[:, :, :1] - x).square_()[:, :, None]  # (num, cells, 1, W)
    down = (points[:, :, 1:] - y[:, 0]).square_()[..., None]
    distance = (across + down).flatten(2)
    nearest, index = distance.min(1)
    distance.scatter_(1, index[:, None], 1e9)
    gap = (distance.amin(1).sqrt_() - nearest.sqrt_()).view(num, 1, height, width)
    nearest = nearest.view(num, 1, height, width)
    size = (num, 1, 1, 1)
    images = pick(palette(num, MOST_CELLS, channels, rng), index.view(num, height, width))
    ground, ink = light_and_dark(num, channels, rng)
    kind = rand(size, rng)
    plain = (kind < 0.35).float()  # one color, told apart by shade and border alone
    images = images.lerp_(ink.expand_as(images), plain)
    shade = rand(size, rng, -1.2, 1.2) * torch.maximum(rand(size, rng) < 0.6, plain > 0)
    images += (nearest - 0.25) * shade
    thickness = rand(size, rng, -0.05, 0.16)
    bordered = soft_step((thickness - gap) * (height * width) ** 0.5 * rand(size, rng, 0.05, 0.7))
    return images.lerp_(ground, bordered * torch.maximum(thickness > 0, plain > 0))


def cuts(num: int, rows: int, rng: torch.Generator, length: float) -> Tensor:
    """Draw increasing positions (num, rows, MOST_BANDS - 1) that cut a length around 0."""
    parts = rand((num, rows, MOST_BANDS), rng, 0.15, 1) ** rand((num, 1, 1), rng, 0.3, 3)
    scale = rand((num, 1, 1), rng, 1, 3)  # 8 bands in the image or fewer
    ends = parts.cumsum(2) / parts.sum(2, keepdim=True)
    return (ends[:, :, :-1] - 0.5) * length * scale


@image_program
def mosaics(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw bands cut into rectangles: walls, shelves, windows, fields; upright or turned."""
    channels, height, width = shape
    size = (num, 1, 1)
    u, v = random_coordinates(num, shape, rng, spread=0.2)
    length = 2.2 * max(height, width) / math.sqrt(height * width)
    rows = cuts(num, 1, rng, length)[:, 0]
    aligned = rand(size, rng) < 0.4  # columns run through all bands
    columns = cuts(num, MOST_BANDS, rng, length)
    columns = torch.where(aligned, columns[:, :1], columns)
    band = torch.searchsorted(rows.contiguous(), v.flatten(1))
    column = torch.zeros_like(band)
    for cut in range(MOST_BANDS - 1):
        column += u.flatten(1) > columns[:, :, cut].gather(1, band)
    num_colors = torch.where(rand((num, 1), rng) < 0.5, 3, MOST_BANDS**2)
    which = (rand((num, MOST_BANDS**2), rng) * num_colors).long()
    index = which.gather(1, band * MOST_BANDS + column).view(num, height, width)
    images = pick(palette(num, MOST_BANDS**2, channels, rng), index)
    texture = color_fields(num, shape, (4, 8, 16, 32), 0.8, rng)
    return images.addcmul_(texture, at_times((num, 1, 1, 1), rng, 0.57, 0.2))


@image_program
def ripples(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw the rings of one to four sources of waves, one through another."""
    channels, height, width = shape
    y, x = pixel_grid(height, width, rng.device)
    count = randint(1, MOST_SOURCES, (num, 1, 1), rng)
    rate = log_rand((num, 1, 1), rng, 4, 24)
    total = torch.zeros(num, height, width, device=rng.device)
    for source in range(MOST_SOURCES):
        at_x, at_y = (rand((num, 1, 1), rng, -1.5, 1.5) for _ in range(2))
        radius = ((x - at_x) ** 2 + (y - at_y) ** 2).sqrt_()
        wave = torch.sin(radius * rate * rand((num, 1, 1), rng, 0.8, 1.2))
        fall = 1 + radius * at_times((num, 1, 1), rng, 0.5, 2)
        total += wave.div_(fall).mul_(source < count)
    images = expose(standardize(total[:, None]).expand(num, *shape).clone(), rng)
    colored = color_mapped(total.mul_(0.25).add_(0.5), channels, rng, stops=4)
    return torch.where(rand((num, 1, 1, 1), rng) < 0.5, images, colored)
