"""Augment replayed images."""

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

    if config.mix:
        weight = uniform(0, 1).view(-1, 1, 1, 1)
        other = images[torch.randperm(num, generator=rng, device=device)]
        images = weight * images + (1 - weight) * other
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
