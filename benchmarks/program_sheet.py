"""Draw a sheet of the image programs, a row each, or print a table of them.

    python -m benchmarks.program_sheet            # docs/pictures/programs.png
    python -m benchmarks.program_sheet --shape 1 28 28 --columns 24 --out runs/gray.png
    python -m benchmarks.program_sheet --table    # what they draw, and how long it takes

Every program draws with a seed of its own, so that a row does not change when others do.
"""

import argparse
import time
from pathlib import Path
from zlib import crc32

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from dreamstill.synthesis.programs import PROGRAMS

NAMES_WIDTH = 1.8
"""Inches left of the images."""
DPI = 100
TIMED = ((1, 28, 28), (3, 32, 32))


def joined(images: Tensor) -> Tensor:
    """Return one row (H + 1, num * (W + 1), 3) of images (num, C, H, W), with white lines between.

    >>> joined(torch.zeros(2, 1, 4, 4)).shape
    torch.Size([5, 10, 3])
    """
    num, channels, height, width = images.shape
    row = torch.ones(height + 1, num, width + 1, 3)
    row[:-1, :, :-1] = images[:, : 3 if channels >= 3 else 1].permute(2, 0, 3, 1)
    return row.flatten(1, 2)


def save_sheet(names: list[str], shape: tuple[int, int, int], columns: int, path: Path) -> None:
    """Write a PNG of rows of images, each with the program's name."""
    rows = [
        joined(PROGRAMS[name](columns, shape, torch.Generator().manual_seed(crc32(name.encode()))))
        for name in names
    ]
    height, width = len(names) * len(rows[0]), rows[0].shape[1]
    inches = NAMES_WIDTH + width / DPI
    figure = plt.figure(figsize=(inches, height / DPI), dpi=DPI)
    axes = figure.add_axes((NAMES_WIDTH / inches, 0, 1 - NAMES_WIDTH / inches, 1))
    axes.imshow(torch.cat(rows).numpy(), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for index, name in enumerate(names):
        axes.text(-8, (index + 0.5) * len(rows[0]), name, ha="right", va="center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    print(path, path.stat().st_size // 1000, "KB")


def milliseconds(name: str, shape: tuple[int, int, int], num: int = 512) -> float:
    """Return the processor time that an image takes, the least of five runs of `num` images."""
    rng = torch.Generator().manual_seed(0)
    taken = []
    for _ in range(5):
        start = time.process_time()
        PROGRAMS[name](num, shape, rng)
        taken.append(time.process_time() - start)
    return min(taken) / num * 1000


def print_table(names: list[str]) -> None:
    """Print what each program draws, and its time on one core in ms an image."""
    torch.set_num_threads(1)
    sizes = ("x".join(map(str, shape)) for shape in TIMED)
    print("| program | draws |", " | ".join(sizes), "|")
    print("|---|---|" + "---|" * len(TIMED))
    for name in names:
        draws = (PROGRAMS[name].__doc__ or "").splitlines()[0].removeprefix("Draw ").rstrip(".")
        cells = [f"{milliseconds(name, shape):.2f}" for shape in TIMED]
        print(f"| `{name}` | {draws} |", " | ".join(cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A sheet of the image programs.")
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 32, 32))
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument(
        "--table", action="store_true", help="print the table of docs/image_programs.md"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/programs.png"))
    args = parser.parse_args()
    if args.table:
        print_table(args.programs)
    else:
        save_sheet(args.programs, tuple(args.shape), args.columns, args.out)


if __name__ == "__main__":
    main()
