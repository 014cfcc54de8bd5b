"""The memory that `synthesize` takes: the images themselves, and no more for each of them.

    python -m benchmarks memory

Images of 3 x 32 x 32 of two methods, in a process of its own for every row, whose peak is measured.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from dreamstill.cli import main as cli
from dreamstill.files.writing import write_json
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.run_directory import environment

__all__ = ["ALLOWED", "METHODS", "measured", "peak", "small"]

SHAPE = (3, 32, 32)
ALLOWED = 400_000_000
"""Bytes beside the images: the libraries take about 300 million of them."""
METHODS = {
    "structured_noise": ["--synthesis.oversample", "1"],
    "dafl": ["--synthesis.batch_size", "64", "--synthesis.widths", "16,8"],
}
"""With settings that keep their batches fast and small: a batch is in memory too."""


def small() -> nn.Module:
    """A network of three layers, for its images alone."""
    with seeded(torch.Generator().manual_seed(0)):
        return nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 16),
            nn.ReLU(),
            nn.Linear(16, 10),
        )


def synthesize(arguments: list[str]) -> None:
    """Run a command and print the peak of this process in bytes."""
    if cli.main(arguments):
        raise SystemExit(1)
    print(peak())


def peak() -> int:
    """Return the bytes of memory that this process had at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(method: str, num_images: int, folder: Path) -> dict[str, Any]:
    """Bytes of the images and of the process at its peak."""
    weights, out = folder / "w.safetensors", folder / f"{method} {num_images}"
    save_file(small().state_dict(), weights)
    card = {"factory": "benchmarks.memory:small", "shape": SHAPE, "mean": [0.5] * 3}
    weights.with_suffix(".json").write_text(json.dumps(card | {"std": [0.25] * 3}))
    command = ["synthesize", "--json", "--teacher.weights", str(weights), "--out", str(out)]
    command += ["--method", method, "--num-images", str(num_images), *METHODS[method]]
    script = f"from benchmarks.memory import synthesize; synthesize({command!r})"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr[-2000:])
    data = num_images * SHAPE[0] * SHAPE[1] * SHAPE[2]
    peak = int(ran.stdout.splitlines()[-1])
    return {"images": num_images, "bytes": data, "peak": peak, "beside": peak - data}


def main() -> None:
    parser = argparse.ArgumentParser(description="The memory that images take.")
    parser.add_argument("--num-images", type=int, default=65_536)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/memory.json"))
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            for num in (args.num_images // 16, args.num_images):
                row = measured(method, num, Path(folder))
                rows[f"{method}, {num:,} images"] = row
                print(method, row, flush=True)
    worst = max(row["beside"] for row in rows.values() if row["images"] == args.num_images)
    print(f"at most {worst:,} bytes beside the images; {ALLOWED:,} are allowed")
    record = {
        "name": "memory",
        "data": "bytes of images of 3 x 32 x 32, of the process at its peak, and the difference",
        "settings": {"allowed": ALLOWED, "methods": METHODS},
        "environment": environment("cpu"),
        "rows": rows,
    }
    write_json(args.out, record)


if __name__ == "__main__":
    main()
