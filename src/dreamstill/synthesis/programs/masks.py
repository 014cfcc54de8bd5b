"""Draw soft masks (num, 1, H, W) in [0, 1] that mix two images: image + mask * (other - image).

Source: organic masks as in DIP-KD (2026), k-means masks as in KML (ICML 2025); smooth masks as in
cutmix with masks of smooth fields (FMix, Harris et al. 2020).
"""

import math

import torch
from torch import Tensor

from dreamstill.synthesis.fields import random_fields
from dreamstill.synthesis.programs.drawing import (
    log_rand,
    rand,
    randint,
    randn,
    soft_step,
    standardize,
)

__all__ = ["kmeans_mask", "organic_mask", "sharpened", "smooth_mask"]

ROUNDS = 10


def sharpened(mask: Tensor) -> Tensor:
    """Push values in [0, 1] away from 1/2: 2 m**2 below it, 1 - 2 (1 - m)**2 above.

    Source: the contrast function of DIP-KD (2026).
    """
    low = mask.clamp_max(0.5)
    high = 1 - mask.clamp_min(0.5)
    # one of the two terms is 1/2 for every value
    pushed: Tensor = 2 * low.square() + 0.5 - 2 * high.square()
    return pushed


def blur_frequencies(height: int, width: int, device: torch.device) -> Tensor:
    """Return squared frequencies (H, W // 2 + 1), in radians per pixel."""
    fy = torch.fft.fftfreq(height, device=device)[:, None]
    fx = torch.fft.rfftfreq(width, device=device)
    return (2 * math.pi) ** 2 * (fx**2 + fy**2)


def organic_mask(num: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Draw masks of organic forms: noise that is blurred and sharpened ten times.

    Source: DIP-KD (2026). The blur is Gaussian, of a random width per mask.
    """
    radius = (log_rand((num, 1, 1), rng, 0.012, 0.06) * max(height, width)).clamp_min_(0.7)
    squared = blur_frequencies(height, width, rng.device)
    blur = torch.exp(-(squared * radius**2 / 2).clamp_max_(20))
    # the first blur of white noise, stretched over [0, 1] around a random level
    white = torch.fft.rfft2(randn((num, height, width), rng))
    mask = standardize(torch.fft.irfft2(white * blur, s=(height, width))[:, None])
    mask = mask.mul_(0.25).add_(rand((num, 1, 1, 1), rng, 0.35, 0.65)).clamp_(0, 1)
    for _ in range(ROUNDS - 1):
        mask = sharpened(mask)
        mask = torch.fft.irfft2(torch.fft.rfft2(mask) * blur[:, None], s=(height, width))
        mask = mask.clamp_(0, 1)
    return sharpened(sharpened(mask))


def smooth_mask(num: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Draw masks of a smooth field above a level, of a random share of the area.

    Source: FMix (Harris et al. 2020), with a soft edge and fields of our own.
    """
    field = standardize(random_fields(num, height, width, (2, 4), rng)[:, None])
    share = rand((num, 1, 1, 1), rng, 0.05, 0.95)
    level = torch.erfinv(1 - 2 * share) * math.sqrt(2)
    return soft_step((field - level).mul_(log_rand((num, 1, 1, 1), rng, 2, 16)))


def kmeans_mask(images: Tensor, rng: torch.Generator, rounds: int = 6) -> Tensor:
    """Return masks (num, 1, H, W) of images (num, C, H, W): clusters of their colors, on or off.

    Each image's colors are clustered by k-means, k from 2 to 5 by image. A random part of its
    clusters is on, at least one and not all. Clusters start at random pixels of the image.

    Source: KML (ICML 2025), where one texture's clusters mix two others.
    """
    num, channels, height, width = images.shape
    most = 5
    colors = images.flatten(2)  # (num, C, pixels)
    count = randint(2, most, (num, 1), rng)
    pixels = randint(0, height * width - 1, (num, 1, most), rng).expand(-1, channels, -1)
    centers = colors.gather(2, pixels)  # (num, C, most)
    absent = torch.arange(most, device=images.device) >= count  # (num, most)
    for last in [False] * rounds + [True]:
        # squared distance without the term that all clusters share
        distance = torch.baddbmm(
            centers.square().sum(1)[:, :, None], centers.transpose(1, 2), colors, alpha=-2
        )
        distance = distance.masked_fill_(absent[:, :, None], math.inf)
        nearest = distance.argmin(1)  # (num, pixels)
        if last:
            break
        member = torch.zeros_like(distance).scatter_(1, nearest[:, None], 1)
        size = member.sum(2)[:, None]
        means = (colors @ member.transpose(1, 2)) / size.clamp_min(1)
        centers = torch.where(size > 0, means, centers)
    order = rand((num, most), rng).masked_fill_(absent, 2).argsort(1).argsort(1)
    on = order < (1 + (rand((num, 1), rng) * (count - 1)).long())
    return on.gather(1, nearest).view(num, 1, height, width).to(images.dtype)
