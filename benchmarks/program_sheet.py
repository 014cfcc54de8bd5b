"""A sheet of all image programs, a row each: docs/pictures/programs.png.

    python -m benchmarks.program_sheet
    python -m benchmarks.program_sheet --shape 1 28 28 --out runs/gray.png --columns 20

Every program draws with an rng of its own seed, so that a row does not change when others do.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from dreamstill.synthesis.programs import PROGRAMS

NAME_WIDTH = 2.1
"""Inches left of the images."""


def joined(images: Tensor, gap: int = 1) -> Tensor:
    """One row (H, width, 3) of images (num, C, H, W), white between them.

    >>> joined(torch.zeros(2, 1, 4, 4)).shape
    torch.Size([4, 10, 3])
    """
    num, channels, height, width = images.shape
    colors = images[:, :3] if channels >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    row = torch.ones(height, num, width + gap, 3)
    row[:, :, :width] = colors.permute(2, 0, 3, 1)
    return row.flatten(1, 2)


def save_sheet(
    shape: tuple[int, int, int], columns: int, path: Path, names: list[str], scale: float
) -> None:
    """Write a PNG of rows of images, with the programs' names."""
    rows = [
        joined(PROGRAMS[name](columns, shape, torch.Generator().manual_seed(0))) for name in names
    ]
    height, width = len(names) * (shape[1] + 1), rows[0].shape[1]
    dpi = 100
    size = (NAME_WIDTH + width * scale / dpi, height * scale / dpi)
    figure = plt.figure(figsize=size, dpi=dpi)
    sheet = torch.ones(height, width, 3)
    for index, row in enumerate(rows):
        top = index * (shape[1] + 1)
        sheet[top : top + shape[1]] = row
        figure.text(
            (NAME_WIDTH - 0.1) / size[0],
            1 - (top + shape[1] / 2) / height,
            name_of(names[index]),
            ha="right",
            va="center",
            fontsize=9,
        )
    axes = figure.add_axes((NAME_WIDTH / size[0], 0, 1 - NAME_WIDTH / size[0], 1))
    axes.imshow(np.asarray(sheet), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


def name_of(program: str) -> str:
    """Of a program, as people read it.

    >>> name_of("dead_leaves")
    'dead leaves'
    """
    return program.replace("_", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description="A sheet of all image programs.")
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 32, 32))
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.0, help="screen pixels of a pixel")
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/programs.png"))
    args = parser.parse_args()
    save_sheet(tuple(args.shape), args.columns, args.out, args.programs, args.scale)
    print(args.out, args.out.stat().st_size // 1000, "KB")


if __name__ == "__main__":
    main()
