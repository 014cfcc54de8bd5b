"""Draw spectrograms: harmonics, glides, clicks and noise over time.

Source: ours. Rows are frequencies, columns are times, as in the spectrograms of speech and sounds.
"""

import torch
from torch import Tensor

from dreamstill.synthesis.fields import random_fields
from dreamstill.synthesis.programs.drawing import (
    at_times,
    color_mapped,
    image_program,
    log_rand,
    rand,
    randint,
    randn,
    two_colors,
)

__all__ = ["spectrograms"]

MOST_VOICES = 2
HARMONICS = 6
CLICKS = 5
LEAST = 15.0
"""Exponents stop here: far from denormal numbers."""


def envelope(start: Tensor, fall: Tensor, time: Tensor) -> Tensor:
    """Return a quick rise at `start` and an exponential fall of `fall` per side, over time (W,)."""
    after = time - start
    rise = (after * 40).clamp_(0, 1)
    return rise * (after.clamp_min_(0) * fall).clamp_max_(LEAST).neg_().exp_()


def voices(num: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Draw the loudness (num, H, W) of up to two voices of up to six harmonics, that glide."""
    pitch = (torch.arange(height, device=rng.device)[:, None] + 0.5) / height
    time = (torch.arange(width, device=rng.device) + 0.5) / width
    size = (num, 1, 1)
    total = torch.zeros(num, height, width, device=rng.device)
    for voice in range(MOST_VOICES):
        lowest = log_rand(size, rng, 0.04, 0.32)
        trembling = at_times(size, rng, 0.6, 0.08)
        glide = rand(size, rng, -0.6, 0.6) * (time - 0.5)
        glide = glide + trembling * torch.sin(time * rand(size, rng, 10, 50))
        line = lowest * torch.exp(glide)  # (num, 1, W)
        scale = 1 / rand(size, rng, 0.012, 0.04)
        damping = rand(size, rng, 0.4, 1)
        count = randint(1, HARMONICS, size, rng)
        loud = envelope(rand(size, rng, -0.3, 0.6), at_times(size, rng, 0.85, 6), time)
        loud = loud * (rand(size, rng, 0.4, 1) if voice == 0 else rand(size, rng) < 0.5)
        scaled = pitch * scale
        for harmonic in range(1, HARMONICS + 1):
            ridge = (scaled - line * scale * harmonic).square_().clamp_max_(LEAST).neg_().exp_()
            total += ridge.mul_(loud * damping ** (harmonic - 1) * (harmonic <= count))
    return total


@image_program
def spectrograms(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Draw harmonics that glide, clicks, resonances and noise, over time and frequency."""
    channels, height, width = shape
    size = (num, 1, 1)
    time = (torch.arange(width, device=rng.device) + 0.5) / width
    starts, falls = rand((num, CLICKS, 1), rng), log_rand((num, CLICKS, 1), rng, 2, 40)
    strength = at_times((num, CLICKS, 1), rng, 0.45, 0.8)
    profiles = random_fields(num * CLICKS, height, 2, (3, 6), rng)[:, :, 0]
    profiles = profiles.mul(0.3).add_(0.6).clamp_(0, 1).view(num, CLICKS, height)
    clicks = profiles.transpose(1, 2) @ (strength * envelope(starts, falls, time))
    level = (voices(num, height, width, rng) + clicks) * log_rand(size, rng, 0.8, 2.5)
    # resonances: bands of rows that are louder
    bands = random_fields(num, height, width, (2, 4, 6), rng)
    level = level * bands.mul(0.4 * rand(size, rng)).exp_()
    pitch = torch.linspace(0, 1, height, device=rng.device)[:, None]
    floor = rand(size, rng, 0, 0.3) + rand(size, rng, -0.2, 0.2) * pitch
    grain = rand(size, rng, 0, 0.12) * randn((num, height, width), rng)
    level = (level + floor + grain).clamp_(0.001, 1).pow_(log_rand(size, rng, 0.5, 1.6))
    up = rand((num, 1, 1), rng) < 0.5
    level = torch.where(up, level.flip(1), level)
    images = two_colors(level, channels, rng)
    if channels > 1:
        colored = color_mapped(level, channels, rng, stops=5)
        images = torch.where(rand((num, 1, 1, 1), rng) < 0.5, images, colored)
    return images
