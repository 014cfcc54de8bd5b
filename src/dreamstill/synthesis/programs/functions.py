"""Draw by random functions: small networks of the coordinates, and convolutions of noise.

Source: compositional pattern-producing networks (Stanley 2007), and textures of random
convolutions (Ustyuzhaninov et al. 2017; Xu et al. 2021); networks of our own.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamstill.synthesis.programs.drawing import (
    at_times,
    draw_any,
    expose,
    image_program,
    log_rand,
    pixel_grid,
    rand,
    randn,
    soft_step,
    standardize,
    two_colors,
)

__all__ = ["convolutional_textures", "coordinate_networks"]

WIDTH = 10
FILTERS = 6
BLUR_LEAST = 15
"""Most that a Gaussian's exponent may be below 0: far from denormal numbers."""


def gaussian(x: Tensor) -> Tensor:
    """Return exp(-x**2), in place."""
    return x.square_().clamp_max_(BLUR_LEAST).neg_().exp_()


def network_images(
    num: int, shape: tuple[int, int, int], rng: torch.Generator, activation: int
) -> Tensor:
    """Draw with one random network an image, of three hidden layers of one activation."""
    channels, height, width = shape
    y, x = pixel_grid(height, width, rng.device)
    x, y = x.expand(height, width), y.expand(height, width)
    features = torch.stack([x, y, torch.hypot(x, y), torch.ones_like(x)]).flatten(1)
    mirror = (rand((num, 1, 1), rng) < 0.25).float()
    own = features.expand(num, -1, -1).clone()
    own[:, :1].lerp_(own[:, :1].abs(), mirror)
    gain = (1.0, 1.6, 1.0)[activation] * log_rand((num, 1, 1), rng, 1, 2.2)
    own[:, :3] *= log_rand((num, 1, 1), rng, 1.5, 4.5)
    hidden = randn((num, WIDTH, 4), rng) @ own
    for layer in range(3):
        if layer:
            weights = randn((num, WIDTH, WIDTH), rng) * gain / math.sqrt(WIDTH)
            hidden = torch.baddbmm(randn((num, WIDTH, 1), rng), weights, hidden)
        hidden = (torch.sin_, torch.tanh_, gaussian)[activation](hidden)
    common = randn((num, 1, WIDTH), rng)
    own_share = at_times((num, 1, 1), rng, 0.77, 1)
    out = (common + own_share * randn((num, channels, WIDTH), rng)) @ hidden
    return out.view(num, *shape)


@image_program
def coordinate_networks(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw the outputs of random networks of x, y and the radius, one network for each image.

    Activations are sines, tanh or Gaussians. A quarter is mirrored; some have hard edges.
    Source: Stanley 2007.
    """
    kinds = [partial(network_images, activation=index) for index in range(3)]
    images = standardize(draw_any(num, shape, kinds, rng))
    hard = rand((num, 1, 1, 1), rng) < 0.3
    steps = log_rand((num, 1, 1, 1), rng, 3, 12)
    images = torch.where(hard, soft_step(images * steps).mul_(2).sub_(1), images)
    return expose(images, rng)


def convolve(images: Tensor, num_out: int, rng: torch.Generator) -> Tensor:
    """Convolve images (num, in, H, W) each with random 3 x 3 filters of its own; edges wrap."""
    num, num_in, height, width = images.shape
    weights = randn((num * num_out, num_in, 3, 3), rng) / math.sqrt(9 * num_in)
    padded = F.pad(images, (1, 1, 1, 1), mode="circular")
    joined = padded.view(1, num * num_in, height + 2, width + 2)
    return F.conv2d(joined, weights, groups=num).view(num, num_out, height, width)


def random_activation(images: Tensor, rng: torch.Generator) -> Tensor:
    """Apply a sine of a random gain to each image, or the absolute value, or a blend of them."""
    size = (len(images), 1, 1, 1)
    phase = rand((*images.shape[:2], 1, 1), rng, 0, 2 * math.pi)
    sine = torch.sin(images * log_rand(size, rng, 0.7, 4.2) + phase)
    return sine.lerp_(images.abs(), rand(size, rng, -0.5, 1.5).clamp_(0, 1))


def texture_images(
    num: int, shape: tuple[int, int, int], rng: torch.Generator, halvings: int
) -> Tensor:
    """Draw noise through three random convolutions, at a smaller size."""
    channels, *sides = shape
    small = [max(1, side >> halvings) for side in sides]
    coarse = [max(1, side // 2) for side in small]
    texture = F.interpolate(randn((num, 2, *coarse), rng), size=small, mode="bilinear")
    for _ in range(2):
        texture = standardize(random_activation(convolve(texture, FILTERS, rng), rng))
    own = convolve(texture, channels, rng)
    texture = torch.lerp(own[:, :1].expand_as(own), own, at_times((num, 1, 1, 1), rng, 0.77, 1))
    return F.interpolate(standardize(texture), size=sides, mode="bilinear", align_corners=False)


@image_program
def convolutional_textures(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw noise through three random convolutions, at full, half or a quarter of the size.

    Source: Ustyuzhaninov et al. 2017: textures need no trained filters.
    """
    kinds = [partial(texture_images, halvings=halvings) for halvings in range(3)]
    images = draw_any(num, shape, kinds, rng)
    level = soft_step(images[:, 0] * log_rand((num, 1, 1), rng, 0.4, 3))
    plain = two_colors(level, shape[0], rng)
    return torch.where(rand((num, 1, 1, 1), rng) < 0.35, plain, expose(images, rng))
