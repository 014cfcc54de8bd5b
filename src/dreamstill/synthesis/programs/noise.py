"""Draw noise: hierarchical, of a spectrum, of a band of frequencies, of ridges.

Source: hierarchical noise as in DIP-KD (2026) and the noise models of Baradad et al. 2021,
"Learning to see by looking at noise"; the rest is ours.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamstill.synthesis.fields import random_fields
from dreamstill.synthesis.programs.drawing import (
    at_times,
    color_mapped,
    draw_any,
    expose,
    image_program,
    log_rand,
    power,
    rand,
    randn,
    soft_step,
    standardize,
    two_colors,
)

__all__ = ["band_noise", "hierarchical_noise", "ridged_noise", "smooth_noise"]


def hierarchy(
    num: int, shape: tuple[int, int, int], rng: torch.Generator, mode: str = "bilinear"
) -> Tensor:
    """Mix uniform noise at 1, 2, 4, ... cells along the longer side, (num, C, H, W) in [0, 1].

    The weights are softmax(t z), with z from N(0, 1) and t from 1 to 3 per image.
    """
    channels, *sides = shape
    longer = max(sides)
    cells = [min(2**level, longer) for level in range(math.ceil(math.log2(longer)) + 1)]
    sharpness = rand((num, 1), rng, 1, 3)
    weights = (randn((num, len(cells)), rng) * sharpness).softmax(1)
    own = rand((num, 1, 1, 1), rng, -0.4, 1.2).clamp_(0, 1)  # 0: gray, 1: free colors
    images = torch.zeros(num, *shape, device=rng.device)
    for level, count in enumerate(cells):
        rows, columns = (max(1, round(count * side / longer)) for side in sides)
        grid = rand((num, channels, rows, columns), rng)
        grid = torch.lerp(grid[:, :1], grid, own)
        if (rows, columns) != tuple(sides):
            align = {} if mode == "nearest" else {"align_corners": False}
            grid = F.interpolate(grid, size=tuple(sides), mode=mode, **align)
        images.addcmul_(grid, weights[:, level, None, None, None])
    return images


@image_program
def hierarchical_noise(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw uniform noise of several scales, mixed by random weights; blocky or smooth.

    Source: DIP-KD (2026).
    """
    blocky, smooth = (partial(hierarchy, mode=mode) for mode in ("nearest", "bilinear"))
    images = draw_any(num, shape, (blocky, smooth), rng)
    stretch = rand((num, 1, 1, 1), rng, 0.8, 3)
    shift = (images.mean((1, 2, 3), keepdim=True) - 0.5) / 2  # a single cell stays below white
    images -= 0.5 + shift
    return images.mul_(stretch).add_(rand((num, 1, 1, 1), rng, 0.25, 0.75))


def frequencies(
    num: int, shape: tuple[int, int, int], rng: torch.Generator, most_stretch: float = 1.6
) -> Tensor:
    """Return the radial frequency of each coefficient, (num, H, W // 2 + 1), in cycles per side.

    Each image is stretched in a random direction, by up to `most_stretch` each way.
    """
    _, height, width = shape
    longer = max(height, width)
    fy = torch.fft.fftfreq(height, 1 / longer, device=rng.device)[:, None]
    fx = torch.fft.rfftfreq(width, 1 / longer, device=rng.device)
    angle = rand((num, 1, 1), rng, 0, math.pi)
    stretch = log_rand((num, 1, 1), rng, 1 / most_stretch, most_stretch)
    along = (fx * angle.cos() + fy * angle.sin()) * stretch
    across = (fy * angle.cos() - fx * angle.sin()) / stretch
    return torch.hypot(along, across)


def spectral_noise(
    num: int, shape: tuple[int, int, int], amplitude: Tensor, rng: torch.Generator
) -> Tensor:
    """Draw noise (num, C, H, W) of an amplitude (num, H, W // 2 + 1) per frequency.

    Channels are equal in a part of the images and more or less independent in the rest.
    """
    channels, height, width = shape
    parts = randn((num, channels, height, width // 2 + 1, 2), rng)
    spectrum = torch.view_as_complex(parts)
    if channels > 1:
        own = rand((num, 1, 1, 1), rng, -0.4, 1.2).clamp_(0, 1)
        spectrum = torch.lerp(spectrum[:, :1].expand_as(spectrum), spectrum, own.to(spectrum))
    noise: Tensor = torch.fft.irfft2(spectrum * amplitude[:, None], s=(height, width))
    return noise


@image_program
def smooth_noise(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw noise whose spectrum falls with the frequency: from white noise to clouds.

    The amplitude is 1 / f**a, with a from 0 to 3; that of photographs is near 1 (Field 1987).
    """
    slope = rand((num, 1, 1), rng, 0, 3)
    amplitude = torch.exp(-slope * frequencies(num, shape, rng).clamp_min_(0.5).log())
    amplitude[:, 0, 0] = 0
    return expose(standardize(spectral_noise(num, shape, amplitude, rng)), rng)


@image_program
def band_noise(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw noise of one band of frequencies: grains, fur, labyrinths; smooth or of two colors.

    Source: ours, similar to Gabor noise (Lagae et al. 2009) and to Turing patterns.
    """
    channels, height, width = shape
    longer = max(height, width)
    middle = log_rand((num, 1, 1), rng, 2, max(longer / 6, 3))  # cycles per side
    ratio = (frequencies(num, shape, rng, 3.3) / middle - 1) / rand((num, 1, 1), rng, 0.1, 0.5)
    amplitude = torch.exp(-ratio.square_().clamp_max_(15))
    amplitude[:, 0, 0] = 0
    level = standardize(spectral_noise(num, (1, height, width), amplitude, rng))
    level = level[:, 0] - rand((num, 1, 1), rng, -0.7, 0.7)
    return two_colors(soft_step(level * log_rand((num, 1, 1), rng, 0.2, 4)), channels, rng)


@image_program
def ridged_noise(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw folded smooth noise: marble, veins, contour lines and bands of color.

    Source: ours, after the turbulence of Perlin 1985 and ridged multifractals (Musgrave 1989).
    """
    channels, height, width = shape
    level = random_fields(num, height, width, (2, 3, 6), rng)
    rough = random_fields(num, height, width, (12, 24), rng)
    level = level + rough * at_times((num, 1, 1), rng, 0.5, 0.2)
    level = level * log_rand((num, 1, 1), rng, 0.3, 1.2)
    # a triangle wave; what lies between its folds is bent to ridges or valleys
    level = (level - level.round()).abs_().mul_(2)
    bend = log_rand((num, 1, 1), rng, 1 / 3, 3)
    return color_mapped(power(level, bend), channels, rng, stops=5)
