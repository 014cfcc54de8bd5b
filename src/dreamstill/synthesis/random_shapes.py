"""Draw random shapes, for structured noise and as initial images of optimizing methods.

Source: ours, similar to dead-leaves images (Lee, Mumford & Huang 2001; Baradad et al. 2021,
"Learning to see by looking at noise"). An image is a smooth random figure or texture behind a soft
random mask of strokes or blobs, or, as in photographs, a scene of several overlapping blobs.
"""

from functools import partial

import torch
from torch import Tensor

from dreamstill.input_spec import InputSpec
from dreamstill.synthesis.config import CLOTHES, SCENES, RandomShapes
from dreamstill.synthesis.fields import color_fields, random_fields, slope_along

__all__ = ["CLOTHES", "RandomShapes", "SCENES", "structured_images"]

MOST_BLOBS = 5


def uniform(
    num: int, rng: torch.Generator, low: float = 0.0, high: float = 1.0, channels: int = 1
) -> Tensor:
    """Draw uniform numbers (num, channels, 1, 1) in [low, high)."""
    size = (num, channels, 1, 1)
    return low + (high - low) * torch.rand(size, generator=rng, device=rng.device)


def structured_images(
    num: int, spec: InputSpec, config: RandomShapes, rng: torch.Generator
) -> Tensor:
    """Draw images (num, C, H, W) of pixels in [0, 1] on the device of `rng`."""
    share = config.scene_share
    share = (0.5 if spec.shape[0] > 1 else 0.0) if share is None else share
    brightness = sum(spec.mean) / len(spec.mean)
    inverted = brightness**2 * (3 - 2 * brightness)  # nearly 0 for a mean pixel of 0.13
    if share == 0:
        return figures(num, spec.shape, config, rng, inverted).contiguous()
    scene = torch.rand(num, generator=rng, device=rng.device) < share
    num_scenes = int(scene.sum())
    images = torch.empty(num, *spec.shape, device=rng.device)
    images[scene] = scenes(num_scenes, spec.shape, config, rng)
    images[~scene] = figures(num - num_scenes, spec.shape, config, rng, inverted)
    return images


def scenes(
    num: int, shape: tuple[int, int, int], config: RandomShapes, rng: torch.Generator
) -> Tensor:
    """Draw scenes of overlapping blobs, (num, C, H, W), pixels in [0, 1]."""
    channels, height, width = shape
    rho, between = config.channel_correlation, partial(uniform, num, rng)
    gradient = color_fields(num, shape, config.cells[:1], rho, rng)
    texture = color_fields(num, shape, config.cells, rho, rng)

    def fill(index: int) -> Tensor:
        """Return a shade with tint, gradient and texture."""
        shade = torch.randn(num, 1, 1, 1, generator=rng, device=rng.device)
        tint = torch.randn(num, channels, 1, 1, generator=rng, device=rng.device)
        # flipping gives another texture without drawing one
        flips = [axis for bit, axis in enumerate((2, 3)) if index >> bit & 1]
        rough = 0.5 * between() * gradient.flip(flips) + between() ** 2 * texture.flip(flips)
        return 0.5 + config.scene_contrast * (shade + (1 - rho) * tint + rough)

    num_blobs = torch.randint(2, MOST_BLOBS + 1, (num, 1, 1, 1), generator=rng, device=rng.device)
    images = fill(0)
    for index in range(1, MOST_BLOBS + 1):
        level = random_fields(num, height, width, config.shape_cells, rng)[:, None]
        edge = 2 * 20 ** between()
        mask = torch.sigmoid(edge * (level - between(-0.5, 1.2))) * (index <= num_blobs)
        images = images + mask * (fill(index) - images)
    return images.clamp(0, 1)


def figures(
    num: int,
    shape: tuple[int, int, int],
    config: RandomShapes,
    rng: torch.Generator,
    inverted: float,
) -> Tensor:
    """Draw figures through a mask on a dark ground, (num, C, H, W), pixels in [0, 1].

    A share `inverted` of the images is light where the others are dark.
    """
    channels, height, width = shape
    rho, between = config.channel_correlation, partial(uniform, num, rng)

    def field(cells: tuple[int, ...]) -> Tensor:
        return random_fields(num, height, width, cells, rng)[:, None]

    def shade(low: float, high: float) -> Tensor:
        """Draw a brightness per image and channel; channels differ more if `rho` is lower."""
        tint = between(-0.5, 0.5, channels) * (1 - rho) * (channels > 1)
        return between(low, high) + tint

    texture = color_fields(num, shape, config.cells, rho, rng)
    level = field(config.shape_cells) - between(-1, 1)
    if config.centered_share:
        rows, columns = (torch.linspace(-1, 1, side, device=rng.device) for side in (height, width))
        distance = (rows[:, None] / between(0.4, 1.2)) ** 2 + (columns / between(0.4, 1.2)) ** 2
        middle = between(1, 4) * (1 - distance).clamp_min(-2)
        level = level + middle * (between() < config.centered_share)
    if config.symmetry_share:
        mirrored = between() < config.symmetry_share
        level = torch.where(mirrored, (level + level.flip(3)) / 2**0.5, level)
        texture = torch.where(mirrored, (texture + texture.flip(3)) / 2**0.5, texture)
    # level / slope is about the distance in pixels to the level line, for strokes of even width
    slope = torch.hypot(*(slope_along(level, axis) for axis in (2, 3))).clamp_min(0.02)
    half_width = between(0.018, 0.08) * max(height, width)
    stroke = torch.sigmoid(between(1, 4) * (half_width - level.abs() / slope))
    window = torch.sigmoid(2 * 20 ** between() * (field(config.cells[:2]) - between(-1, 0.7)))
    stroke = torch.where(between() < 0.3, stroke, stroke * window)
    blob = torch.sigmoid(2 * 20 ** between() * level)
    mask = torch.where(between() < config.stroke_share, stroke, blob)
    # flipping gives a second texture without drawing one
    ground = shade(-1.0, 0.3) + between() ** 2 * 0.5 * texture.flip(2)
    figure = shade(0.3, 1.3) + between() ** 2 * 0.5 * texture
    smooth = ground + mask * (figure - ground)
    rough = mask * (shade(-1.0, 1.0) + between(0.2, 2.2) * texture)
    images = torch.where(between() < config.texture_share, rough, smooth).clamp(0, 1)
    return torch.where(between() < inverted, 1 - images, images)
