"""Draw dead leaves: many shapes one over another, each with shade and texture.

Source: dead leaves (Lee, Mumford & Huang 2001; Baradad et al. 2021, "Learning to see by looking at
noise"), here with superellipses, shading and hierarchical noise.
"""

import math

import torch
from torch import Tensor

from dreamstill.synthesis.programs.drawing import (
    at_times,
    image_program,
    local_coordinates,
    log_rand,
    palette,
    power,
    rand,
    randint,
    soft_step,
)
from dreamstill.synthesis.programs.noise import hierarchy

__all__ = ["dead_leaves", "large_leaves", "leaf_radii"]

MOST_LEAVES = 24
MOST_LARGE = 6


def leaf_radii(
    num: int, count: int, smallest: Tensor | float, rng: torch.Generator, largest: float = 1.0
) -> Tensor:
    """Draw radii (num, count) of the density proportional to 1 / r**3 in [smallest, largest].

    `smallest` is a number, or one for each image (num, 1). The mean is
    2 / (1 / smallest + 1 / largest). Source: Lee, Mumford & Huang 2001: by this law images look
    alike at every scale.
    """
    share = rand((num, count), rng)
    radii: Tensor = ((1 - share) / smallest**2 + share / largest**2).rsqrt_()
    return radii


def draw_leaves(
    num: int, shape: tuple[int, int, int], radii: Tensor, counts: Tensor, rng: torch.Generator
) -> Tensor:
    """Draw superellipses one over another.

    Args:
        num: number of images.
        shape: (C, H, W).
        radii: (num, most) in units of half a side.
        counts: leaves of each image, (num,), at most `most`.
        rng: generator of all random numbers.

    """
    channels, height, width = shape
    most = radii.shape[1]
    stretch = log_rand((num, most), rng, 0.5, 2)
    radii = torch.stack([radii * stretch, radii / stretch], 2)
    center = rand((num, most, 2), rng, -1, 1)
    turned = at_times((num, 1), rng, 0.77, 1)  # the others are upright
    angle = rand((num, most), rng, -math.pi, math.pi) * turned
    exponent = log_rand((num, most, 1, 1), rng, 0.9, 7.2)  # diamonds to rectangles
    edge = radii.amin(2)[:, :, None, None] * math.sqrt(height * width) / exponent / 2
    edge = edge * log_rand((num, 1, 1, 1), rng, 0.1, 2).clamp_max_(1)
    # of each leaf: the color and the amount of each texture
    depth = at_times((num, 1, 2), rng, 0.8, 0.6)
    amounts = rand((num, most + 1, 2), rng) ** 2 * depth
    fill = torch.cat([palette(num, most + 1, channels, rng), amounts], 2)[..., None, None]
    shading = rand((num, most, 1, 1), rng, -0.25, 0.25)
    canvas = fill[:, 0].expand(-1, -1, height, width).clone()
    shade = torch.zeros(num, height, width, device=rng.device)
    # images are drawn in order of their counts, so that those that have a leaf are the first ones
    counts = counts.sort(descending=True).values
    having = (counts[:, None] > torch.arange(most, device=rng.device)).sum(0).tolist()
    for leaf, n in enumerate(having):
        u, v = local_coordinates(shape, center[:n, leaf], radii[:n, leaf], angle[:n, leaf])
        p = exponent[:n, leaf]
        level = power(u.abs(), p).add_(power(v.abs_(), p))
        mask = soft_step((1 - level).mul_(edge[:n, leaf]))
        canvas[:n].lerp_(fill[:n, leaf + 1], mask[:, None])
        shade[:n].lerp_(u.clamp_(-1, 1).mul_(shading[:n, leaf]), mask)
    texture = hierarchy(num, shape, rng).sub_(0.5)
    images = canvas[:, :channels] + shade[:, None]
    images.addcmul_(canvas[:, channels, None], texture, value=2)
    images.addcmul_(canvas[:, channels + 1, None], texture.flip(2, 3), value=2)
    return images[torch.randperm(num, generator=rng, device=rng.device)]


@image_program
def dead_leaves(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw 4 to 24 shapes one over another, few large and many small, with shade and texture.

    The density of their radii is that of `leaf_radii`; the smallest differs by image.
    """
    smallest = log_rand((num, 1), rng, 0.03, 0.3)
    radii = leaf_radii(num, MOST_LEAVES, smallest, rng)
    # large leaves below small ones in half of the images
    ordered = rand((num, 1), rng) < 0.5
    radii = torch.where(ordered, radii.sort(1, descending=True).values, radii)
    return draw_leaves(num, shape, 2 * radii, randint(4, MOST_LEAVES, (num,), rng), rng)


@image_program
def large_leaves(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw 1 to 6 large shapes one over another, with shade and texture."""
    radii = rand((num, MOST_LARGE), rng, 0.25, 1.1)
    radii = radii.sort(1, descending=True).values
    return draw_leaves(num, shape, radii, randint(1, MOST_LARGE, (num,), rng), rng)
