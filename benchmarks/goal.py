"""A file and a goal: what `dreamstill compress FILE --to GOAL` makes of networks of many kinds.

    python -m benchmarks goal --data FOLDER --teachers benchmarks/teachers TEACHERS [--resume]

Nothing is set but the goal and the minutes (and a student where layers are closed). Each network
is written to a file as its holder might have it, and compressed by the command line on one core.
The test set is read once, by the command itself, after the choice. Predicted loss is 100 minus the
agreement on the teacher's validation set; lost is accuracy, in points. TEACHERS holds what
`any_teacher_networks` and `independent` make.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from benchmarks.device_files import teacher_path
from benchmarks.runner import RECORDS
from dreamstill.files.writing import write_json
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.run_directory import environment
from dreamstill.teacher import Teacher

__all__ = ["CASES", "Case", "measured", "written"]

RECORD = RECORDS / "goal.json"


class Case(NamedTuple):
    """A network, the kind of its file, and a goal."""

    network: str
    data: str
    kind: str
    goal: str
    options: tuple[str, ...] = ()


CASES = {
    "LeNet-5, MNIST": (
        Case("lenet5_mnist", "mnist", "safetensors", "60KB"),
        Case(
            *("lenet5_mnist", "mnist", "TorchScript", "2x"),
            ("--student", "dreamstill.nn.lenet:lenet5_half"),
        ),
    ),
    "LeNet-5 with BatchNorm, MNIST": (Case("lenet5_bn_mnist", "mnist", "pt2", "half"),),
    "LeNet-5 with BatchNorm, Fashion-MNIST": (
        Case("lenet5_bn_fashion_mnist", "fashion_mnist", "onnx", "int8"),
        Case("lenet5_bn_fashion_mnist", "fashion_mnist", "onnx", "10x"),
        Case(
            *("lenet5_bn_fashion_mnist", "fashion_mnist", "onnx", "10x"),
            ("--format", "onnx,packed"),
        ),
    ),
    "CNN with GroupNorm, Fashion-MNIST": (
        Case("group_norm_fashion_mnist", "fashion_mnist", "state dict", "w4"),
    ),
    "CNN, filled shapes 1x40x24": (Case("filled_shapes", "filled_shapes", "onnx", "half"),),
    "CNN without normalization, USPS": (Case("strided_cnn_usps", "usps", "pt2", "quarter"),),
    "ResNet-20, CIFAR-10 (JPEG)": (Case("resnet20", "cifar10", "safetensors", "int8"),),
}
"""Of each network."""


def written(case: Case, teacher: Teacher, weights: Path, folder: Path) -> list[str]:
    """Write the file of a network, and return what names it and its input on the command line."""
    spec, module = teacher.input_spec, teacher.module.eval()
    of_input = [f"--{name}={','.join(map(str, getattr(spec, name)))}" for name in ("mean", "std")]
    of_shape = f"--shape={','.join(map(str, spec.shape))}"
    x = torch.zeros(2, *spec.shape)
    match case.kind:
        case "safetensors":  # its card beside it says the rest
            return [str(weights)]
        case "state dict":
            path = folder / "net.pth"
            torch.save(load_file(weights), path)
            factory = json.loads(weights.with_suffix(".json").read_text())["factory"]
            return [str(path), f"--factory={factory}", of_shape, *of_input]
        case "TorchScript":
            path = folder / "net.pt"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                torch.jit.trace(module, x).save(path)
            return [str(path), of_shape, *of_input]
    path, any_batch = folder / f"net.{case.kind}", ({0: torch.export.Dim("batch", min=1)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of its exporter
        if case.kind == "pt2":
            made = torch.export.export(module, (x,), dynamic_shapes=any_batch)
            torch.export.save(made, path)
        else:
            torch.onnx.export(module, (x,), path, dynamic_shapes=any_batch, verbose=False)
    return [str(path), *of_input]


def command(case: Case, named: list[str], data: Path, minutes: float, out: Path) -> list[str]:
    """Return the command of a case."""
    return [
        *(sys.executable, "-m", "dreamstill", "compress", *named, "--to", case.goal),
        *(f"--minutes={minutes:g}", f"--real={data}", f"--out={out}", "--json", *case.options),
    ]


def row_of(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a row from the summary of a run."""
    teacher, file = summary["teacher"], summary["files"][0]
    best = next(one for one in summary["candidates"] if one["folder"] == summary["chosen"])
    settings = f" ({best['settings']})" if best["settings"] else ""
    return {
        "recommended": f"{best['task']}{settings}",
        "bytes": file["bytes"],
        "of the teacher": teacher["bytes"],
        "predicted loss": round(100 * (1 - best["agreement"]), 1),
        "lost": round(100 * (teacher["accuracy"] - file["accuracy"]), 2),
        "accuracy": round(100 * file["accuracy"], 2),
        "teacher": round(100 * teacher["accuracy"], 2),
        "goal": "; ".join(summary["missed"]) or "kept",
        "candidates": len(summary["candidates"]),
        "seconds": round(summary["seconds"]),
    }


def measured(case: Case, weights: Path, data: Path, minutes: float) -> dict[str, Any]:
    """Compress a network by the command line, and return its row."""
    teacher = open_from(TeacherFile(weights=str(weights)))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        named = written(case, teacher, weights, Path(folder))
        told = command(case, named, data, minutes, out)
        done = subprocess.run(told, stdout=subprocess.DEVNULL)
        if done.returncode not in (0, 1):  # 1: the goal was missed, and the files are there
            raise SystemExit(f"{' '.join(told[2:])}: exit status {done.returncode}")
        return row_of(json.loads((out / "summary.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks goal")
    default = os.environ.get("DREAMSTILL_DATA")
    parser.add_argument("--data", type=Path, default=default, required=default is None)
    parser.add_argument("--teachers", type=Path, nargs="+", required=True, help="folders of them")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--resume", action="store_true", help="only the rows it lacks")
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    cases = {
        " ".join((f"{title}, {case.kind}, {case.goal}", *case.options)): case
        for title, of_network in CASES.items()
        for case in of_network
    }
    paths = {case.network: teacher_path(case.network, args.teachers) for case in cases.values()}
    record: dict[str, Any] = {
        "name": "goal",
        "data": "bytes and accuracy of the first file, in its runtime, on the test set in %",
        "settings": {"minutes": args.minutes},
        "environment": environment("cpu"),
        "rows": {},
    }
    if args.resume and args.out.exists():
        record = json.loads(args.out.read_text())
    for name, case in cases.items():
        if name in record["rows"]:
            continue
        weights, data = paths[case.network], args.data / f"{case.data}.npz"
        row = measured(case, weights, data, args.minutes)
        record["rows"][name] = row | {"commit": environment("cpu").get("commit")}
        print(name, row, flush=True)
        write_json(args.out, record)


if __name__ == "__main__":
    main()
