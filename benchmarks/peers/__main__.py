"""Dreamstill beside other libraries on the same networks: accuracy, seconds and peak memory.

    python -m benchmarks peers --data FOLDER --weights FILE [--environments FOLDER] [--resume]
    python -m benchmarks peers --page docs/peers.md

FOLDER holds cifar10.npz and imagenet_sample.npz; FILE is ResNet-20 as its authors published it or
as `python -m benchmarks independent` wrote it. Each peer has an environment of its own, which pip
makes where it is absent, and each row a process of its own, one after the other, on the same number
of threads. A row's seconds and memory are those of the whole process, from the start of Python to
the .onnx file, which is then measured here in onnxruntime, all files on the same test images.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import independent
from benchmarks.peers import networks
from benchmarks.peers.environments import PEERS, networks_folder, python_of
from benchmarks.peers.page import write_page
from benchmarks.peers.rows import Row, rows_of
from benchmarks.peers.task import Task
from dreamstill.errors import first_line
from dreamstill.evaluation import accuracy, agreement, answers
from dreamstill.exporters.formats import export, load_exported
from dreamstill.files.writing import write_json
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.process import flush_denormals
from dreamstill.pipelines.run_directory import environment
from dreamstill.profiling import count_macs

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks" / "records" / "peers.json"
DATA = {"resnet20": "cifar10", "efficientnet_lite0": "imagenet_sample"}
"""Data set of each network."""
NUM_REAL = 64
"""Real images for the rows that are given some."""


class Subject(NamedTuple):
    """A network and the images that it is measured on."""

    name: str
    task: Task
    spec: InputSpec
    x: Tensor
    y: Tensor
    logits: Tensor
    """Of the network in floats."""


def write_resnet20(weights: Path | None, data: Path, folder: Path) -> None:
    """Write ResNet-20 and its card."""
    if weights is None:
        raise SystemExit("resnet20 needs its weights: give --weights FILE")
    if weights.suffix == ".safetensors":
        for path in (weights, weights.with_suffix(".json")):
            shutil.copy(path, (folder / "resnet20").with_suffix(path.suffix))
    else:
        independent.write("resnet20", weights, data, folder)


def write_efficientnet_lite0(weights: Path | None, data: Path, folder: Path) -> None:
    """Write EfficientNet-Lite0 and its card; its weights come with its package."""
    network = networks.efficientnet_lite0()
    state = torch.load(networks.efficientnet_lite0_weights(), weights_only=True)
    network.load_state_dict(state)
    path = folder / "efficientnet_lite0.safetensors"
    save_file(network.state_dict(), path)
    card: dict[str, Any] = {"factory": "benchmarks.peers.networks:efficientnet_lite0"}
    card |= {"shape": [3, 224, 224]}
    card |= {"mean": [127 / 255] * 3, "std": [128 / 255] * 3, "num_classes": 1000}
    path.with_suffix(".json").write_text(json.dumps(card))


WRITERS: dict[str, Callable[[Path | None, Path, Path], None]] = {
    "resnet20": write_resnet20,
    "efficientnet_lite0": write_efficientnet_lite0,
}


def opened(
    name: str, weights: Path | None, data: Path, folder: Path, num_test: int | None
) -> Subject:
    """Write what every peer is given into `folder`, and measure the network in floats."""
    WRITERS[name](weights, data, folder)
    path = folder / f"{name}.safetensors"
    card = json.loads(path.with_suffix(".json").read_text())
    teacher = open_from(TeacherFile(weights=str(path)))
    with np.load(data / f"{DATA[name]}.npz") as archive:
        real = torch.from_numpy(archive["x_train"][:NUM_REAL])
        x, y = (torch.from_numpy(spread(archive[f"{part}_test"], num_test)) for part in "xy")
    spec = teacher.input_spec
    np.save(path.with_suffix(".npy"), spec.encode(real).numpy())
    whole = path.with_suffix(".onnx")
    export(teacher.module, whole, spec)
    task = Task(
        weights=str(path),
        factory=card["factory"],
        shape=spec.shape,
        onnx=str(whole),
        real=str(path.with_suffix(".npy")),
        out="",
    )
    return Subject(name, task, spec, x, y.long(), answers(load_exported(whole), spec, x))


def spread(values: NDArray[Any], num: int | None) -> NDArray[Any]:
    """Return so many entries, evenly spaced, since a data set may be in an order; None: all."""
    return values[:: max(1, len(values) // num)][:num] if num else values


def measured(path: Path, subject: Subject) -> dict[str, Any]:
    """Return what an .onnx file is and does in onnxruntime: accuracy and agreement are in %."""
    logits = answers(load_exported(path), subject.spec, subject.x)
    return {
        "accuracy": round(100 * accuracy(logits, subject.y), 2),
        "agreement": round(100 * agreement(logits, subject.logits), 2),
        "bytes": path.stat().st_size,
    }


def macs_of(path: Path, subject: Subject) -> int:
    """Return the multiply-accumulates of an .onnx file in floats, counted by Dreamstill."""
    card = path.with_suffix(".card.json")
    spec = subject.spec
    card.write_text(json.dumps({"shape": spec.shape, "mean": spec.mean, "std": spec.std}))
    return count_macs(open_from(TeacherFile(weights=str(path), card=str(card))).module, spec)


def run_row(row: Row, subject: Subject, python: str, paths: list[str], threads: int) -> Any:
    """Run a peer in its own process and measure its file; return the row of the record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = shutil.copy(subject.task.onnx, folder / "float.onnx")  # Model Optimizer changes it
        out = folder / "out.onnx"
        task = replace(subject.task, onnx=str(whole), out=str(out), options=row.options)
        task.write(folder / "task.json")
        launcher = [sys.executable, "-S", str(Path(__file__).with_name("measured.py"))]
        command = [python, "-m", f"benchmarks.peers.{row.script}", str(folder / "task.json")]
        ran = subprocess.run(
            [*launcher, str(folder / "measured.json"), *command],
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        figures = json.loads((folder / "measured.json").read_text())
        settings = {"settings": row.options} | ({"note": row.note} if row.note else {})
        costs = {
            "seconds": round(figures["seconds"], 1),
            "cpu_seconds": round(figures["cpu_seconds"], 1),
            "peak_mb": round(figures["peak"] / 1e6),
        }
        if figures["status"]:
            return costs | {"error": last_line(ran.stdout)} | settings
        settings |= json.loads(task.answer.read_text())
        try:
            result = measured(out, subject)
            if row.prunes:
                result["macs"] = macs_of(out, subject)
        except Exception as error:  # whatever onnxruntime raises for a file it cannot run
            return costs | {"error": f"its file: {first_line(error)}"} | settings
        return result | costs | settings


def last_line(text: str) -> str:
    """Return the last line that says something, of at most 200 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--weights", type=Path, help="ResNet-20's, .th or .safetensors")
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--networks", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--num_test", type=int, help="test images to measure on [all]")
    parser.add_argument("--resume", action="store_true", help="only the rows that it lacks")
    parser.add_argument("--tiny", action="store_true", help="few images and steps; no record")
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--page", type=Path, help="write the record's tables into this page")
    args = parser.parse_args()
    if args.page:
        write_page(args.page, json.loads(args.out.read_text()))
        return
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    flush_denormals()
    torch.set_num_threads(args.threads)
    if hasattr(os, "sched_setaffinity"):  # onnxruntime takes a thread a core, in every peer too
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.threads :])
    packages = str(networks_folder(args.environments))
    sys.path.append(packages)
    paths = [str(ROOT), str(ROOT / "src"), packages]
    record: dict[str, Any] = {
        "name": "peers",
        "data": "accuracy in % in onnxruntime; seconds and MB of the whole process",
        "settings": {
            "threads": args.threads,
            "num_real": NUM_REAL,
            "num_test": args.num_test or "all",
        },
        "environment": environment("cpu"),
        "rows": {},
    }
    if args.resume and args.out.exists():
        before = json.loads(args.out.read_text())
        if before["settings"] != record["settings"]:
            parser.error(f"{args.out} has other settings, {before['settings']}: give --out FILE")
        record = before

    def keep(name: str, figures: dict[str, Any]) -> None:
        print(name, json.dumps(figures), flush=True)
        record["rows"][name] = figures
        if not args.tiny:
            write_json(args.out, record)

    cells = [
        (network, name, row)
        for peer in args.peers
        for network in args.networks
        for name, row in rows_of(network).items()
        if row.peer == peer and not (args.resume and f"{network}, {name}" in record["rows"])
    ]
    with tempfile.TemporaryDirectory() as folder:
        subjects = {}
        for network in dict.fromkeys(network for network, _, _ in cells):
            num_test = 64 if args.tiny else args.num_test
            subject = opened(network, args.weights, args.data, Path(folder), num_test)
            subjects[network] = subject
            whole = Path(subject.task.onnx)
            figures = measured(whole, subject) | {"macs": macs_of(whole, subject)}
            keep(f"{network}, floats", figures)
        for network, name, row in cells:
            python = python_of(row.peer, args.environments)
            asked = replace(row, options=row.options | row.tiny) if args.tiny else row
            figures = run_row(asked, subjects[network], python, paths, args.threads)
            keep(f"{network}, {name}", figures)


if __name__ == "__main__":
    main()
