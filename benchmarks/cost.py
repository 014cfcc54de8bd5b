"""What images cost: seconds, and memory at the peak, by their number and their size.

    python -m benchmarks cost

`synthesize` by the default method on a network of three layers, in a process of its own for every
row. Seconds are of the making alone, after the network was opened; `beside` is the peak of the
process without the images that it holds, which lie on the disk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.memory import peak
from dreamstill.cli import main as cli
from dreamstill.files.writing import write_json
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.run_directory import environment

__all__ = ["ROWS", "any_size", "made", "main"]

ROWS = {32: (1_000, 10_000, 100_000), 64: (1_000, 10_000), 128: (1_000, 4_000), 224: (1_000, 4_000)}
"""Numbers of images, by their height and width."""


def any_size() -> nn.Module:
    """A network of three layers for images of any size."""
    with seeded(torch.Generator().manual_seed(0)):
        return nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(128, 10),
        ).eval()


def made(arguments: list[str]) -> None:
    """Run a command; print its seconds, and the peak of this process in bytes."""
    begun = time.perf_counter()
    if cli.main(arguments):
        raise SystemExit(1)
    print(json.dumps({"seconds": round(time.perf_counter() - begun, 2), "peak": peak()}))


def row(size: int, num: int, folder: Path) -> dict[str, Any]:
    """Make images in a process of its own; return what they cost."""
    weights, out = folder / "w.safetensors", folder / f"{size} {num}"
    save_file(any_size().state_dict(), weights)
    card = {"factory": "benchmarks.cost:any_size", "shape": [3, size, size], "mean": [0.5] * 3}
    weights.with_suffix(".json").write_text(json.dumps(card | {"std": [0.25] * 3}))
    command = ["synthesize", str(weights), "--json", "--num-images", str(num), "--out", str(out)]
    script = f"from benchmarks.cost import made; made({command!r})"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr[-2000:])
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return {
        "size": size,
        "images": num,
        "bytes": 3 * size * size * num,
        "milliseconds_an_image": round(1000 * found["seconds"] / num, 3),
        **found,
    }


def main() -> None:
    """Make all rows; write the record."""
    parser = argparse.ArgumentParser(description="What images cost.")
    parser.add_argument("--most", type=int, default=100_000, help="images of a row at most")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/cost.json"))
    args = parser.parse_args()
    record: dict[str, Any] = {
        "name": "cost",
        "data": "images of the default method, by their number and their size",
        "environment": environment("cpu"),
        "rows": {},
    }
    for size, nums in ROWS.items():
        for num in (num for num in nums if num <= args.most):
            with tempfile.TemporaryDirectory() as folder:
                record["rows"][f"{num} of {size}"] = row(size, num, Path(folder))
            print(json.dumps(record["rows"][f"{num} of {size}"]), flush=True)
            write_json(args.out, record)


if __name__ == "__main__":
    main()
