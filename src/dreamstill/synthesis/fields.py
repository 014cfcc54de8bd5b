"""Draw smooth Gaussian random fields, of which random shapes and image programs are made.

Source: ours. White noise on a coarse grid is interpolated with Gaussian weights of unit l2 norm.
"""

from math import sqrt

import torch
from torch import Tensor

__all__ = ["color_fields", "interpolation", "random_fields", "slope_along"]


def interpolation(cells: int, size: int, device: torch.device | None = None) -> Tensor:
    """Return Gaussian interpolation weights (size, cells).

    Rows have unit l2 norm, so that white noise on the grid keeps variance 1 at every pixel.
    """
    pixels = (torch.arange(size, device=device) + 0.5) / size * cells
    weights = torch.exp(-((pixels[:, None] - torch.arange(cells, device=device) - 0.5) ** 2))
    weights[weights < 1e-6] = 0  # denormal numbers take 6x the time
    unit: Tensor = weights / weights.norm(dim=1, keepdim=True)
    return unit


def random_fields(
    num: int, height: int, width: int, cells: tuple[int, ...], rng: torch.Generator
) -> Tensor:
    """Draw smooth Gaussian fields (num, height, width) of unit variance, with random scales."""
    weights = torch.rand(num, len(cells), generator=rng, device=rng.device) ** 3 + 1e-3
    weights = weights / weights.norm(dim=1, keepdim=True)
    longer = max(height, width)
    total = torch.zeros(num, width, height, device=rng.device)
    for index, count in enumerate(cells):
        rows, columns = (max(2, round(count * side / longer)) for side in (height, width))
        grid = torch.randn(num, rows, columns, generator=rng, device=rng.device)
        grid *= weights[:, index, None, None]
        across = grid @ interpolation(columns, width, rng.device).T
        total += across.transpose(1, 2) @ interpolation(rows, height, rng.device).T
    return total.transpose(1, 2)


def slope_along(level: Tensor, axis: int) -> Tensor:
    """Return the gradient of a field along an axis, per pixel; 0 if its size is 1."""
    return torch.gradient(level, dim=axis)[0] if level.shape[axis] > 1 else torch.zeros_like(level)


def color_fields(
    num: int,
    shape: tuple[int, int, int],
    cells: tuple[int, ...],
    rho: float,
    rng: torch.Generator,
) -> Tensor:
    """Draw fields (num, C, H, W) of unit variance; `rho` is the correlation of the channels."""
    channels, height, width = shape
    common = random_fields(num, height, width, cells, rng)[:, None]
    if channels == 1:
        return common
    own = random_fields(num * channels, height, width, cells, rng)
    return sqrt(rho) * common + sqrt(1 - rho) * own.view(num, channels, height, width)
