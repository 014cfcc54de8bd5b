"""Dreamstill: `dreamstill int8` or `dreamstill prune`, as on the command line.

Options: `command`, and `flags`, the settings other than the defaults.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import dreamstill as ds
from benchmarks.peers.task import Task, main
from dreamstill.cli.main import main as cli


def make(task: Task) -> dict[str, Any]:
    """Run the command, and write its network as ONNX if it has not."""
    command, flags = task.options["command"], task.options.get("flags", [])
    folder = Path(task.out).with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    words = [command, "--teacher.weights", task.weights, "--out", str(folder), *flags]
    if cli(words):
        raise SystemExit(1)
    files = [*folder.glob("stages/*.onnx")]
    if files:
        shutil.copy(files[0], task.out)
    return {"command": " ".join(["dreamstill", command, *flags])}


if __name__ == "__main__":
    main(make, "dreamstill", "torch", "onnxruntime")
