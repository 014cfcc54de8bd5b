"""Augment training images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamstill.data.config import Augmentation
from dreamstill.input_spec import InputSpec

__all__ = ["Augmentation", "augment", "shifted"]


def augment(images: Tensor, spec: InputSpec, config: Augmentation, rng: torch.Generator) -> Tensor:
    """Augment inputs (N, C, H, W) and clip them to the valid range; borders repeat the edge."""
    if config.mixup or config.cutmix:
        images = _mix(images, config, rng)
    if config.rotate or config.scale:
        images = _warp(images, config, rng)
    elif config.shift or config.flip:
        down, across = (round(config.shift * side) for side in images.shape[2:])
        images = shifted(images, down, across, flip=config.flip, rng=rng)
    if config.noise:
        level = _uniform(images, 0, config.noise, rng).view(-1, 1, 1, 1)
        scale = level / torch.tensor(spec.std, device=images.device).view(1, -1, 1, 1)
        noise = torch.randn(images.shape, generator=rng, device=images.device)
        images = images + scale * noise
    return spec.clip(images)


def _uniform(images: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Draw a number in [low, high] for each image, (N,)."""
    return low + (high - low) * torch.rand(len(images), generator=rng, device=images.device)


def shifted(images: Tensor, down: int, across: int, *, flip: bool, rng: torch.Generator) -> Tensor:
    """Shift each of the images (N, C, H, W) by whole pixels, which blurs nothing; edges repeat.

    Args:
        images: of any values.
        down, across: largest shift in pixels, either way.
        flip: mirror half of the images left to right.
        rng: draws.

    """
    num, _, height, width = images.shape

    def along(size: int, most: int) -> Tensor:
        by = torch.randint(-most, most + 1, (num, 1), generator=rng, device=rng.device)
        return (torch.arange(size, device=rng.device) + by).clamp(0, size - 1)

    rows, columns = along(height, down), along(width, across)
    if flip:
        mirrored = torch.rand((num, 1), generator=rng, device=rng.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    images = images.gather(2, rows[:, None, :, None].expand_as(images))
    return images.gather(3, columns[:, None, None].expand_as(images))


def _warp(images: Tensor, config: Augmentation, rng: torch.Generator) -> Tensor:
    """Shift, rotate, scale and mirror, by interpolation."""
    angle = torch.deg2rad(_uniform(images, -config.rotate, config.rotate, rng))
    size = 1 / (1 + _uniform(images, -config.scale, config.scale, rng))
    mirror = torch.where(_uniform(images, 0, 1, rng) < 0.5 * config.flip, -1.0, 1.0)
    aspect = images.shape[2] / images.shape[3]
    cos, sin = size * angle.cos(), size * angle.sin()
    across, down = (2 * _uniform(images, -config.shift, config.shift, rng) for _ in range(2))
    rows = (mirror * cos, -mirror * sin * aspect, across, sin / aspect, cos, down)
    grid = F.affine_grid(
        torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False
    )
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _mix(images: Tensor, config: Augmentation, rng: torch.Generator) -> Tensor:
    """Mix images with others of the batch, by mixup or through masks."""
    num, device = len(images), images.device
    other = images[torch.randperm(num, generator=rng, device=device)]
    weight = torch.rand(num, 1, 1, 1, generator=rng, device=device)
    if config.cutmix:
        masks = smooth_masks(num, images.shape[2], images.shape[3], rng)
        chance = torch.rand(num, 1, 1, 1, generator=rng, device=device)
        weight = torch.where(chance < config.cutmix, masks, weight)
        mixed = chance < config.cutmix + config.mixup
    elif config.mixup < 1:
        mixed = torch.rand(num, 1, 1, 1, generator=rng, device=device) < config.mixup
    else:
        return torch.lerp(other, images, weight)
    return torch.where(mixed, torch.lerp(other, images, weight), images)


def smooth_masks(num: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Draw masks (num, 1, H, W) in (0, 1) of one or a few smooth regions with soft edges.

    Source: the smooth masks of FMix (Harris et al. 2020), here level sets of an interpolated grid.
    The area is about uniform between 0 and 1.
    """
    grid = torch.randn(num, 1, 4, 4, generator=rng, device=rng.device)
    field = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
    level = torch.randn(num, 1, 1, 1, generator=rng, device=rng.device)
    sharpness = 3 * 10 ** torch.rand(num, 1, 1, 1, generator=rng, device=rng.device)
    return torch.sigmoid(sharpness * (field - 0.8 * level))
