"""Mix two images of other programs through masks: organic forms, or clusters of colors.

Source: organic masks as in DIP-KD (2026), k-means masks as in KML (ICML 2025).
"""

import math

import torch
from torch import Tensor

from dreamstill.synthesis.programs import functions, leaves, noise, objects, patterns
from dreamstill.synthesis.programs.drawing import (
    draw_any,
    image_program,
    log_rand,
    rand,
    randint,
    randn,
    standardize,
)

__all__ = ["kmeans_mask", "kmeans_mixtures", "organic_mask", "organic_mixtures"]

TEXTURES = (
    noise.smooth_noise,
    noise.ridged_noise,
    functions.coordinate_networks,
    functions.convolutional_textures,
)
MIXED = (
    *TEXTURES,
    noise.hierarchical_noise,
    leaves.large_leaves,
    objects.objects,
    patterns.gradients,
    patterns.stripes_and_checks,
    patterns.mosaics,
)
SHARPENINGS = 6
MOST_CLUSTERS = 5
ROUNDS = 3


def sharpened(mask: Tensor) -> Tensor:
    """Push values in [0, 1] away from 1/2: 2 m**2 below it, 1 - 2 (1 - m)**2 above.

    Source: the contrast function of DIP-KD (2026).
    """
    low, high = mask.clamp_max(0.5), 1 - mask.clamp_min(0.5)
    # one of the two terms is 1/2 for every value
    pushed: Tensor = 2 * low.square() + 0.5 - 2 * high.square()
    return pushed


def organic_mask(num: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Draw masks (num, 1, H, W) in [0, 1] of organic forms: noise, blurred and sharpened in turn.

    The blur is Gaussian, of a random width per mask. Source: DIP-KD (2026), with ten rounds.
    """
    radius = (log_rand((num, 1, 1, 1), rng, 0.012, 0.06) * max(height, width)).clamp_min_(0.7)
    down = torch.fft.fftfreq(height, device=rng.device)[:, None]
    across = torch.fft.rfftfreq(width, device=rng.device)
    squared = (2 * math.pi) ** 2 * (down**2 + across**2)
    response = torch.exp(-(squared * radius**2 / 2).clamp_max_(20))

    def blurred(mask: Tensor) -> Tensor:
        """Blur masks, around the edges."""
        smooth: Tensor = torch.fft.irfft2(torch.fft.rfft2(mask) * response, s=(height, width))
        return smooth

    mask = standardize(blurred(randn((num, 1, height, width), rng)))
    mask = mask.mul_(0.25).add_(rand((num, 1, 1, 1), rng, 0.35, 0.65)).clamp_(0, 1)
    for _ in range(SHARPENINGS - 1):
        mask = blurred(sharpened(mask)).clamp_(0, 1)
    return sharpened(sharpened(mask))


def kmeans_mask(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return masks (num, 1, H, W) of images (num, C, H, W): clusters of their colors, 0 or 1.

    Each image's colors are clustered by k-means, k from 2 to 5 by image. A random part of its
    clusters is 1, at least one and not all. Clusters start at random pixels of the image.

    Source: KML (ICML 2025), where one texture's clusters mix two others.
    """
    num, channels, height, width = images.shape
    colors = images.flatten(2)  # (num, C, pixels)
    count = randint(2, MOST_CLUSTERS, (num, 1), rng)
    pixels = randint(0, height * width - 1, (num, 1, MOST_CLUSTERS), rng)
    centers = colors.gather(2, pixels.expand(-1, channels, -1))  # (num, C, clusters)
    absent = torch.arange(MOST_CLUSTERS, device=images.device) >= count  # (num, clusters)

    def members() -> Tensor:
        """Return 1 where a pixel belongs to a cluster, (num, clusters, pixels), otherwise 0."""
        # squared distance without the term that all clusters share
        own = centers.square().sum(1).masked_fill(absent, math.inf)[:, :, None]
        distance = torch.baddbmm(own, centers.transpose(1, 2), colors, alpha=-2)
        return (distance <= distance.amin(1, keepdim=True)).to(images.dtype)

    for _ in range(ROUNDS):
        member = members()
        size = member.sum(2)[:, None]
        means = (colors @ member.transpose(1, 2)) / size.clamp_min(1)
        centers = torch.where(size > 0, means, centers)
    order = rand((num, MOST_CLUSTERS), rng).masked_fill_(absent, 2).argsort(1).argsort(1)
    on = order < (1 + (rand((num, 1), rng) * (count - 1)).long())
    return (members() * on[:, :, None]).amax(1).view(num, 1, height, width)


@image_program
def organic_mixtures(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw two images of other programs, one seen through organic holes in the other."""
    first, second = draw_any(2 * num, shape, MIXED, rng).view(2, num, *shape)
    return torch.lerp(first, second, organic_mask(num, *shape[1:], rng))


@image_program
def kmeans_mixtures(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw two images of other programs, mixed where a third one has some of its colors."""
    first, second = draw_any(2 * num, shape, MIXED, rng).view(2, num, *shape)
    return torch.lerp(first, second, kmeans_mask(draw_any(num, shape, TEXTURES, rng), rng))
