"""Make a data set that no image program was drawn for: filled shapes on noisy grounds.

    python -m benchmarks filled_shapes_data --out DATA

Writes DATA/filled_shapes.npz: 10,000 training and 2,000 test images, uint8 (N, 1, 40, 24), of five
classes: ellipse, box, triangle, plus, ring. Place, size, turn, polarity, contrast and shading are
random. The set is for reporting: no setting of the library may be chosen on it.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CLASSES = ("ellipse", "box", "triangle", "plus", "ring")
HEIGHT, WIDTH = 40, 24
NOISE = 0.16
"""Standard deviation of the noise on pixels in [0, 1]."""


def inside(kind: int, u: Tensor, v: Tensor) -> Tensor:
    """Return which points (u, v) of the plane are in a shape of about unit radius."""
    radius = (u**2 + v**2).sqrt()
    angle = torch.atan2(u, -v)
    sector = (angle + math.pi / 3).remainder(2 * math.pi / 3) - math.pi / 3
    shapes = (
        radius < 0.9,
        (u.abs() < 0.8) & (v.abs() < 0.8),
        radius * sector.cos() < 0.55,
        torch.minimum(u.abs(), v.abs()) < 0.3,
        (radius < 1.0) & (radius > 0.5),
    )
    return shapes[kind] & (u.abs() < 1.2) & (v.abs() < 1.2)


def draw(num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw images, uint8 (num, 1, 40, 24), and their classes (num,)."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num, 1, 1, generator=rng)

    classes = torch.arange(num) % len(CLASSES)
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    x, y = columns - uniform(8, 16), rows - uniform(10, 30)
    turn, size, stretch = uniform(-0.5, 0.5), uniform(4, 8), uniform(0.75, 1.35)
    u = (turn.cos() * x + turn.sin() * y) / size
    v = (turn.cos() * y - turn.sin() * x) / size * stretch
    masks = torch.stack([inside(int(k), u[i], v[i]) for i, k in enumerate(classes)])
    ground = uniform(0.15, 0.85)
    contrast = uniform(0.2, 0.6) * torch.where(ground < 0.5, 1.0, -1.0)
    shade = uniform(-0.15, 0.15) * (rows / HEIGHT - 0.5) + uniform(-0.15, 0.15) * (
        columns / WIDTH - 0.5
    )
    noise = NOISE * torch.randn(num, HEIGHT, WIDTH, generator=rng)
    pixels = (ground + contrast * masks + shade + noise).clamp(0, 1)
    order = torch.randperm(num, generator=rng)
    return (pixels * 255).round().to(torch.uint8)[order, None], classes[order]


def main() -> None:
    parser = argparse.ArgumentParser(description="Filled shapes, as a set for reporting.")
    parser.add_argument("--out", type=Path, required=True, help="folder of data .npz")
    args = parser.parse_args()
    rng = torch.Generator().manual_seed(0)
    arrays: dict[str, np.ndarray] = {}
    for part, num in (("train", 10_000), ("test", 2_000)):
        images, classes = draw(num, rng)
        arrays |= {f"x_{part}": images.numpy(), f"y_{part}": classes.numpy().astype(np.uint8)}
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out / "filled_shapes.npz", allow_pickle=False, **arrays)
    print(args.out / "filled_shapes.npz")


if __name__ == "__main__":
    main()
