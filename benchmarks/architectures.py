"""Run every task and format on networks of timm and torchvision: works, or refuses with a reason.

    python -m benchmarks architectures [--networks NAME ...] [--resume]
    python -m benchmarks architectures --page docs/architectures.md

Weights are random and inputs small: what is asked is whether a task fits a network, not how well it
does. Every network has a process of its own, with a limit of time. A cell is "works", "works in
part" with the layers that were left as they were, "refused" with the message, or "fails" with an
error that is not one of ours, which is a fault.
"""

import argparse
import importlib
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dreamstill as ds
from benchmarks.torchvision_import import torchvision_importable
from dreamstill.errors import first_line
from dreamstill.files.writing import write_atomically
from dreamstill.nn.hooks import batch_norm_layers
from dreamstill.pipelines.run_directory import environment

RECORD = Path(__file__).parent / "records" / "architectures.json"
MINUTES = 12
TIMM = (
    *("resnet18", "resnet50", "resnext26ts", "seresnet18", "resnetv2_50", "wide_resnet50_2"),
    *("mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small", "efficientnet_b0"),
    *("efficientnet_lite0", "tf_efficientnet_lite0", "mnasnet_small", "fbnetc_100", "ghostnet_050"),
    *("repvgg_a0", "vgg11_bn", "regnetx_002", "regnety_002", "densenet121", "hrnet_w18_small"),
    *("dla34", "inception_v3", "resnet26", "convnext_atto", "poolformer_s12", "edgenext_xx_small"),
    *("mobilevit_xxs", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224"),
    *("resmlp_12_224", "swin_tiny_patch4_window7_224"),
)
OPTIONS: dict[str, dict[str, Any]] = {
    **{n: {"img_size": 64} for n in TIMM if n.endswith(("16_224", "32_224", "12_224"))},
    "swin_tiny_patch4_window7_224": {"img_size": 56},
    "resnet26": {"norm_layer": "groupnorm"},
}
"""Arguments of networks of timm."""
SIDES = {"inception_v3": 96, "swin_tiny_patch4_window7_224": 56}
"""Sides in pixels, where they are not 64."""
TORCHVISION = (
    *("alexnet", "googlenet", "mobilenet_v2", "mobilenet_v3_small", "resnet18"),
    *("shufflenet_v2_x0_5", "squeezenet1_1"),
)


class Signal(nn.Module):
    """Four layers of Conv1d over a signal (N, 2, 1, L), as in keyword spotting."""

    def __init__(self) -> None:
        super().__init__()
        widths = (2, 16, 32, 32, 64)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(a, b, 5, 2, 2), nn.BatchNorm1d(b), nn.ReLU())
                for a, b in pairwise(widths)
            )
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x.squeeze(2)).mean(2))
        return logits


def opened(name: str) -> ds.Teacher:
    """Return a network of ten classes with random weights as a teacher."""
    if name == "signal":
        return ds.Teacher(Signal(), ds.InputSpec((2, 1, 256), mean=(0.5,) * 2, std=(0.25,) * 2))
    library, _, model = name.partition(":")
    side = SIDES.get(model, 64)
    if library == "timm":
        create = importlib.import_module("timm").create_model
        network = create(model, num_classes=10, **OPTIONS.get(model, {}))
    else:
        extra = {"init_weights": True, "aux_logits": False} if model == "googlenet" else {}
        models = importlib.import_module("torchvision").models
        network = models.get_model(model, weights=None, num_classes=10, **extra)
    settle(network, side)
    spec = ds.InputSpec((3, side, side), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return ds.Teacher(network, spec, precision="float32")


def settle(network: nn.Module, side: int) -> None:
    """Give BatchNorm the statistics of noise, without which random layers explode or vanish.

    With some of the initial statistics left, as a momentum leaves them, a deep network's logits
    hardly depend on the image, and no int8 file can agree with it.
    """
    norms = batch_norm_layers(network).values()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean of all batches
    with torch.no_grad():
        for _ in range(8):
            network.train()(torch.randn(8, 3, side, side))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def file(kind: str) -> Callable[[ds.Teacher, Tensor], Any]:
    """Return the task that exports to a format and runs the file."""

    def run(teacher: ds.Teacher, images: Tensor) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            ds.export(teacher.module, Path(folder) / f"network.{kind}", teacher.input_spec)

    return run


def int8(kind: str) -> Callable[[ds.Teacher, Tensor], Any]:
    """Return the task that writes an int8 file and runs it."""
    from dreamstill.exporters.int8 import check_int8_formats, check_int8_layers, export_int8

    def run(teacher: ds.Teacher, images: Tensor) -> Any:
        check_int8_formats((kind,))
        check_int8_layers(teacher.module, (kind,))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"network.{kind}"
            export_int8(teacher.module, teacher.input_spec, images[:16], path)

    return run


def reopened(teacher: ds.Teacher, images: Tensor) -> Any:
    """Write ONNX, open it as a teacher, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        ds.export(teacher.module, path, teacher.input_spec)
        again = ds.load_teacher(path, precision="float32")
    inputs = teacher.input_spec.encode(images[:4])
    difference = (again(inputs) - teacher(inputs)).abs().max().item()
    if difference > 1e-3:
        raise AssertionError(f"a logit differs by {difference:.3g}")


def distilled(inherit: bool) -> Callable[[ds.Teacher, Tensor], Any]:
    """Return the task that makes the half of every width, cut out or trained for a step."""

    def run(teacher: ds.Teacher, images: Tensor) -> Any:
        more: dict[str, Any] = {"steps": 0, "reconstruct": 0} if inherit else {"steps": 1}
        config = ds.DistillConfig(inherit=inherit, batch_size=4, num_validation=4, **more)
        return ds.distill(teacher, "auto:0.5", images, config)

    return run


TASKS: dict[str, Callable[[ds.Teacher, Tensor], Any]] = {
    "distill to auto:0.5": distilled(False),
    "inherit to auto:0.5": distilled(True),
    "prune": lambda teacher, images: ds.prune(
        teacher, images, ds.PruneConfig(keep=0.8, rounds=1, reconstruct=0, finetune=None)
    ),
    "merge": lambda teacher, images: ds.merge(
        teacher, images, ds.MergeConfig(reconstruct=0, finetune=None)
    ),
    "factorize": lambda teacher, images: ds.factorize(
        teacher, images, ds.FactorizeConfig(energy=0.7)
    ),
    "quantize": lambda teacher, images: ds.quantize(teacher, images),
    "quantize, no input": lambda teacher, images: ds.quantize(teacher),
    "pack": lambda teacher, images: ds.pack(
        teacher, images, ds.PackConfig(rounds=1, finetune=None)
    ),
    "onnx": file("onnx"),
    "onnx, opened again": reopened,
    "pt2": file("pt2"),
    "pte": file("pte"),
    "tflite": file("tflite"),
    "int8 onnx": int8("onnx"),
    "int8 pt2": int8("pt2"),
    "int8 pte": int8("pte"),
    "int8 tflite": int8("tflite"),
}


def cells(name: str) -> dict[str, str]:
    """Return what each task says to a network."""
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        teacher = opened(name)
    except ds.DreamstillError as error:
        return {"open": f"refused: {error}"}
    shape = teacher.input_spec.shape
    images = torch.randint(0, 256, (32, *shape), dtype=torch.uint8)
    found = {"open": "works"}
    for task, run in TASKS.items():
        try:
            result = run(teacher, images)
        except ds.DreamstillError as error:
            found[task] = f"refused: {error}"
        except Exception as error:  # what a user would see as a traceback
            found[task] = f"fails: {type(error).__name__}: {first_line(error)}"
        else:
            whole = result.details.get("skipped") if isinstance(result, ds.Result) else None
            left = ", ".join(whole) if whole else ""
            found[task] = f"works in part: left as they were: {left}" if left else "works"
        print(json.dumps({task: found[task]}), flush=True)
    return found


def names() -> list[str]:
    """Return all networks."""
    return [*(f"timm:{n}" for n in TIMM), *(f"torchvision:{n}" for n in TORCHVISION), "signal"]


def run_all(chosen: list[str], record: dict[str, Any]) -> None:
    """Run every chosen network in a process of its own, and write the record after each."""
    for name in chosen:
        command = [sys.executable, "-m", "benchmarks", "architectures", "--one", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES)
            lines, failure = done.stdout, done.stderr.strip().rpartition("\n")[2]
        except subprocess.TimeoutExpired as error:
            lines = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else ""
            failure = f"more than {MINUTES} minutes"
        found: dict[str, str] = {}
        for line in lines.splitlines():
            if line.startswith("{"):
                found |= json.loads(line)
        missing = [task for task in ("open", *TASKS) if task not in found]
        if not found.get("open", "").startswith("refused"):
            found |= dict.fromkeys(missing, f"fails: {failure}")
        counts = Counter(value.partition(":")[0] for value in found.values())
        record["cells"][name] = found
        record["rows"][name] = {kind: counts[kind] for kind in MARKS}
        write_atomically(RECORD, json.dumps(record, indent=1).encode() + b"\n")
        print(name, dict(counts), flush=True)


MARKS = {"works": "✓", "works in part": "~", "refused": "✗", "fails": "!"}


def page(record: dict[str, Any]) -> str:
    """Return the table of the record, with the messages below."""
    reasons: list[str] = []
    tasks = ["open", *TASKS]
    lines = ['<div class="matrix" markdown>', "", f"| | {' | '.join(tasks)} |"]
    lines.append("|---" * (len(tasks) + 1) + "|")
    for name, found in record["cells"].items():
        row = []
        for task in tasks:
            kind, _, reason = found.get(task, "refused").partition(": ")
            if reason and reason not in reasons:
                reasons.append(reason)
            row.append(MARKS[kind] + (f" ({reasons.index(reason) + 1})" if reason else ""))
        lines.append(f"| {name} | {' | '.join(row)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", "</div>", "", *notes])


BEGIN, END = "<!-- made by benchmarks/architectures.py -->", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description="Every task and format on real architectures.")
    parser.add_argument("--networks", nargs="+", choices=names(), metavar="NAME", default=names())
    parser.add_argument("--resume", action="store_true", help="only the networks it lacks")
    parser.add_argument("--one", choices=names(), help=argparse.SUPPRESS)
    parser.add_argument("--page", type=Path, help="write the record's table into this page")
    args = parser.parse_args()
    if find_spec("timm") is None and not args.page:
        parser.error("timm is not installed: pip install 'dreamstill[hub]'")
    if args.one:
        with torchvision_importable():
            print(json.dumps(cells(args.one)), flush=True)
        return
    record: dict[str, Any] = {
        "name": "architectures",
        "data": "random weights, 64 pixels; how many of opening, eight tasks and nine files work",
        "environment": environment("cpu"),
        "rows": {},
        "cells": {},
    }
    if (args.resume or args.page or args.networks != names()) and RECORD.exists():
        record |= {part: json.loads(RECORD.read_text())[part] for part in ("rows", "cells")}
    if args.page:
        before, rest = args.page.read_text().split(BEGIN)
        args.page.write_text(f"{before}{BEGIN}\n\n{page(record)}\n\n{END}{rest.split(END)[1]}")
        return
    chosen = [n for n in args.networks if not (args.resume and n in record["cells"])]
    run_all(chosen, record)


if __name__ == "__main__":
    main()
