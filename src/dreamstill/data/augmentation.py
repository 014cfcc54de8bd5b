"""Augment training images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamstill.data.config import Augmentation
from dreamstill.input_spec import InputSpec

__all__ = ["Augmentation", "augment"]


def augment(images: Tensor, spec: InputSpec, config: Augmentation, rng: torch.Generator) -> Tensor:
    """Augment inputs (N, C, H, W) and clip them to the valid range; borders repeat the edge."""
    if config.mixup or config.cutmix:
        images = _mix(images, config, rng)
    if config.rotate or config.scale:
        images = _warp(images, config, rng)
    elif config.shift or config.flip:
        images = _move(images, config, rng)
    if config.noise:
        level = _uniform(images, 0, config.noise, rng).view(-1, 1, 1, 1)
        scale = level / torch.tensor(spec.std, device=images.device).view(1, -1, 1, 1)
        noise = torch.randn(images.shape, generator=rng, device=images.device)
        images = images + scale * noise
    return spec.clip(images)


def _uniform(images: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Draw a number in [low, high] for each image, (N,)."""
    return low + (high - low) * torch.rand(len(images), generator=rng, device=images.device)


def _move(images: Tensor, config: Augmentation, rng: torch.Generator) -> Tensor:
    """Shift by whole pixels and mirror, which blurs nothing."""
    height, width = images.shape[2:]
    mirrored = _uniform(images, 0, 1, rng) < 0.5 * config.flip
    down, across = (
        (_uniform(images, -config.shift, config.shift, rng) * side).round().long().view(-1, 1)
        for side in (height, width)
    )
    rows = (torch.arange(height, device=images.device) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + across).clamp(0, width - 1)
    columns = torch.where(mirrored.view(-1, 1), columns.flip(1), columns)
    images = images.gather(2, rows.view(-1, 1, height, 1).expand(images.shape))
    return images.gather(3, columns.view(-1, 1, 1, width).expand(images.shape))


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
