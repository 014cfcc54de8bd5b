"""Draw by random functions: small networks of the coordinates, and convolutions of noise.

Source: compositional pattern-producing networks (Stanley 2007), and textures of random
convolutions (Ustyuzhaninov et al. 2017; Xu et al. 2021); networks of our own.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamstill.synthesis.programs.drawing import (
    expose,
    image_program,
    light_and_dark,
    pixel_grid,
    rand,
    randint,
    randn,
    soft_step,
    standardize,
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
    num: int, shape: tuple[int, int, int], activation: int, rng: torch.Generator
) -> Tensor:
    """Draw with one random network an image, of three hidden layers of one activation."""
    channels, height, width = shape
    y, x = pixel_grid(height, width, rng.device)
    x, y = x.expand(height, width), y.expand(height, width)
    features = torch.stack([x, y, torch.hypot(x, y), torch.ones_like(x)]).flatten(1)
    mirror = (rand((num, 1, 1), rng) < 0.25).float()
    own = features.expand(num, -1, -1).clone()
    own[:, :1].lerp_(own[:, :1].abs(), mirror)
    gain = (1.0, 1.6, 1.0)[activation] * 2.2 ** rand((num, 1, 1), rng)
    zoom = torch.cat(
        [1.5 * 3 ** rand((num, 1, 1), rng).expand(-1, -1, 3), torch.ones(num, 1, 1).to(own)], 2
    )
    hidden = (randn((num, WIDTH, 4), rng) * zoom) @ own
    for layer in range(3):
        if layer:
            weights = randn((num, WIDTH, WIDTH), rng) * gain / math.sqrt(WIDTH)
            hidden = torch.baddbmm(randn((num, WIDTH, 1), rng), weights, hidden)
        hidden = (torch.sin_, torch.tanh_, gaussian)[activation](hidden)
    common = randn((num, 1, WIDTH), rng)
    own_share = rand((num, 1, 1), rng, -0.3, 1).clamp_min_(0)
    out = (common + own_share * randn((num, channels, WIDTH), rng)) @ hidden
    return out.view(num, *shape)


@image_program
def coordinate_networks(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw the outputs of random networks of x, y and the radius, a network an image.

    Activations are sines, tanh or Gaussians. A quarter is mirrored; some have hard edges.
    Source: Stanley 2007.
    """
    which = randint(0, 2, (num,), rng)
    images = torch.empty(num, *shape, device=rng.device)
    for activation in range(3):
        of = (which == activation).nonzero()[:, 0]
        images[of] = network_images(len(of), shape, activation, rng)
    images = standardize(images)
    hard = rand((num, 1, 1, 1), rng) < 0.3
    steps = 3 * 4 ** rand((num, 1, 1, 1), rng)
    images = torch.where(hard, soft_step(images * steps).mul_(2).sub_(1), images)
    return expose(images, rng)


def convolve(images: Tensor, num_out: int, rng: torch.Generator) -> Tensor:
    """Convolve each image (num, in, H, W) with random 3 x 3 filters of its own, around the edges."""
    num, num_in, height, width = images.shape
    weights = randn((num * num_out, num_in, 3, 3), rng) / math.sqrt(9 * num_in)
    padded = F.pad(images, (1, 1, 1, 1), mode="circular")
    joined = padded.view(1, num * num_in, height + 2, width + 2)
    return F.conv2d(joined, weights, groups=num).view(num, num_out, height, width)


def random_activation(images: Tensor, rng: torch.Generator) -> Tensor:
    """Apply a sine of a random gain to each image, or the absolute value, or a blend of them."""
    size = (len(images), 1, 1, 1)
    phase = rand((*images.shape[:2], 1, 1), rng, 0, 2 * math.pi)
    sine = torch.sin(images * (0.7 * 6 ** rand(size, rng)) + phase)
    return sine.lerp_(images.abs(), rand(size, rng, -0.5, 1.5).clamp_(0, 1))


@image_program
def convolutional_textures(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw noise through three random convolutions, at full, half or a quarter of the size.

    Source: Ustyuzhaninov et al. 2017: textures need no trained filters.
    """
    channels, height, width = shape
    which = randint(0, 2, (num,), rng)
    images = torch.empty(num, *shape, device=rng.device)
    for factor in range(3):
        of = (which == factor).nonzero()[:, 0]
        if not len(of):
            continue
        sides = tuple(max(1, side >> factor) for side in (height, width))
        texture = randn((len(of), 2, *sides), rng)
        for _ in range(2):
            texture = standardize(random_activation(convolve(texture, FILTERS, rng), rng))
        own = convolve(texture, channels, rng)
        share = rand((len(of), 1, 1, 1), rng, -0.3, 1).clamp_(0, 1)
        texture = standardize(torch.lerp(own[:, :1].expand_as(own), own, share))
        if factor:
            texture = F.interpolate(
                texture, size=(height, width), mode="bilinear", align_corners=False
            )
        images[of] = texture
    ground, ink = light_and_dark(num, channels, rng)
    two_colors = torch.lerp(
        ground, ink, soft_step(images[:, :1] * rand((num, 1, 1, 1), rng, 0.4, 3))
    )
    return torch.where(rand((num, 1, 1, 1), rng) < 0.35, two_colors, expose(images, rng))
