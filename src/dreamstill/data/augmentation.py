"""Augment training images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamstill.data.config import Augmentation
from dreamstill.input_spec import InputSpec

__all__ = ["Augmentation", "augment"]


def augment(images: Tensor, spec: InputSpec, config: Augmentation, rng: torch.Generator) -> Tensor:
    """Augment inputs (N, C, H, W) and clip them to the valid range; borders repeat the edge."""
    num, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num, generator=rng, device=device)

    if config.mixup or config.cutmix:
        images = _mix(images, config, rng)
    if config.shift or config.rotate or config.scale or config.flip:
        angle = torch.deg2rad(uniform(-config.rotate, config.rotate))
        size = 1 / (1 + uniform(-config.scale, config.scale))
        mirror = torch.where(uniform(0, 1) < 0.5 * config.flip, -1.0, 1.0)
        aspect = spec.shape[1] / spec.shape[2]
        cos, sin = size * angle.cos(), size * angle.sin()
        across, down = (2 * uniform(-config.shift, config.shift) for _ in range(2))
        rows = (mirror * cos, -mirror * sin * aspect, across, sin / aspect, cos, down)
        grid = F.affine_grid(
            torch.stack(rows, 1).view(num, 2, 3), list(images.shape), align_corners=False
        )
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if config.noise:
        level = uniform(0, config.noise).view(-1, 1, 1, 1)
        scale = level / torch.tensor(spec.std, device=device).view(1, -1, 1, 1)
        noise = torch.randn(images.shape, generator=rng, device=device)
        images = images + scale * noise
    return spec.clip(images)


def _mix(images: Tensor, config: Augmentation, rng: torch.Generator) -> Tensor:
    """Mix images with others of the batch, by mixup or through masks."""
    num, device = len(images), images.device
    other = images[torch.randperm(num, generator=rng, device=device)]
    weight = torch.rand(num, 1, 1, 1, generator=rng, device=device)
    if config.cutmix:
        masks = smooth_masks(num, *images.shape[2:], rng)
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
