"""Compression on sets of images side by side: real, clipped noise, and synthesized ones.

    python -m benchmarks.compress lenet5_mnist --data FOLDER
    python -m benchmarks.compress lenet5_fashion_mnist --data FOLDER
    python -m benchmarks.compress lenet5_bn_mnist --data FOLDER --rows "W8A8, no input"

Every row is a chain of one task, run on the same number of images of each source with the same
settings; the seeds are of the images and of the chain. `default` is structured noise as it comes;
`ours` draws three images for each one kept and, for Fashion-MNIST, draws clothes. On a network with
BatchNorm the images of The Knowledge Within are sources too. The network is the teacher itself; the
test set is read once for each run, at the end. Rows that look at no image stand under `ours`. The
whole network in the runtimes of the int8 files says what their latency is to be compared with.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.protocol import made_rows, mean_and_std, training_images
from dreamstill.config import to_plain
from dreamstill.data.images import load_images
from dreamstill.evaluation import accuracy, answers
from dreamstill.exporters.formats import RUNTIMES, export, load_exported
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.config import CompressJob, read_job
from dreamstill.pipelines.process import settle_process
from dreamstill.pipelines.run_directory import environment
from dreamstill.pipelines.synthesize import draw_images
from dreamstill.profiling import measure_latency, measure_size
from dreamstill.synthesis.config import (
    CLOTHES,
    KnowledgeWithinConfig,
    NoiseConfig,
    RandomShapes,
    Scheme,
    StructuredNoiseConfig,
)
from dreamstill.teacher import Teacher

DATA = {
    "lenet5_mnist": "mnist",
    "lenet5_fashion_mnist": "fashion_mnist",
    "lenet5_bn_mnist": "mnist",  # DFQ reads ranges off BatchNorm
}
SOURCES = ("real", "noise", "default", "ours")
DEFAULT = {"default": ("structured_noise", StructuredNoiseConfig())}
WITHIN = {scheme.value: scheme for scheme in Scheme}
"""The Knowledge Within's images, on a network with BatchNorm."""
NUM_IMAGES = 8000
TUNE = {"steps": 1000, "batch_size": 64, "lr": 1e-3, "num_validation": 500}
SHAKE = {"shift": 0.1, "rotate": 15.0, "scale": 0.15, "mix": True}
TUNE_SHAKEN = TUNE | {"augment": SHAKE}

FP32 = {"FP32, onnxruntime": "onnx", "FP32, PyTorch": "pt2", "FP32, ExecuTorch": "pte"}
ROWS: dict[str, dict[str, Any]] = {
    "W8A8, no input": {"task": "quantize", "without_inputs": True},
    "W8A8": {"task": "quantize"},
    "W4A4": {"task": "quantize", "weight_bits": 4, "activation_bits": 4},
    "W4A4, fine-tuned": {
        "task": "quantize",
        "weight_bits": 4,
        "activation_bits": 4,
        "finetune": TUNE_SHAKEN,
    },
    "W2A4, fine-tuned": {
        "task": "quantize",
        "weight_bits": 2,
        "activation_bits": 4,
        "finetune": TUNE_SHAKEN,
    },
    "mixed, 3 bits on average, fine-tuned": {
        "task": "quantize",
        "size": 0.375,
        "finetune": TUNE_SHAKEN,
    },
    "int8, onnxruntime": {"task": "int8"},
    "int8, PT2E": {"task": "int8", "formats": ["pt2"]},
    "int8, ExecuTorch": {"task": "int8", "formats": ["pte"]},
    "half the MACs by pruning": {
        "task": "prune",
        "keep": 0.5,
        "importance": "magnitude",
        "reconstruct": 2048,
        "finetune": TUNE_SHAKEN,
    },
    "half the MACs by pruning, no training": {
        "task": "prune",
        "keep": 0.5,
        "importance": "magnitude",
        "rounds": 1,
        "reconstruct": 2048,
        "finetune": None,
    },
    "half the MACs by merging, no images": {"task": "merge", "remove": 0.38, "reconstruct": 0},
    "half the MACs by merging, no training": {"task": "merge", "remove": 0.38},
    "half the MACs by merging": {"task": "merge", "remove": 0.38, "finetune": TUNE_SHAKEN},
    "half the MACs by factorization": {
        "task": "factorize",
        "macs": 0.5,
        "reconstruct": 2048,
        "finetune": TUNE_SHAKEN,
    },
    "half the MACs by factorization, no training": {
        "task": "factorize",
        "macs": 0.5,
        "reconstruct": 2048,
    },
    "30 % of the parameters by factorization, no training": {
        "task": "factorize",
        "parameters": 0.3,
        "reconstruct": 2048,
    },
    "packed, 10 % of the weights": {"task": "pack", "density": 0.1, "finetune": TUNE_SHAKEN},
    "packed, 9.6 % of the weights, tuned twice as long": {
        "task": "pack",
        "density": 0.096,
        "finetune": TUNE_SHAKEN | {"steps": 2000},
    },
    "packed, 7 % of the weights": {"task": "pack", "density": 0.07, "finetune": TUNE_SHAKEN},
}


def source_images(source: str, teacher: Teacher, data: Path, num: int, seed: int) -> torch.Tensor:
    """uint8 (num, C, H, W) of a source: real, noise or synthesized."""
    if source == "real":
        images = training_images(data, teacher.input_spec)
        rng = torch.Generator().manual_seed(seed)
        return images[torch.randperm(len(images), generator=rng)[:num]]
    method, config = (DEFAULT | synthesizers(drawing_of(data)))[source]
    return draw_images(teacher, method, config, num, seed=seed)[0]


def drawing_of(data: Path) -> RandomShapes:
    """What structured noise draws for a data set."""
    return CLOTHES if "fashion" in data.name else RandomShapes()


def synthesizers(shapes: RandomShapes) -> dict[str, tuple[str, Any]]:
    """Method and settings by source: noise, ours (structured noise called all classes), WITHIN."""
    ours = StructuredNoiseConfig(batch_size=500, oversample=3, shapes=shapes)
    within = {
        name: KnowledgeWithinConfig(scheme=scheme, batch_size=500, steps=100)
        for name, scheme in WITHIN.items()
    }
    return {
        "noise": ("noise", NoiseConfig(batch_size=500)),
        "ours": ("structured_noise", ours),
        **{name: ("knowledge_within", config) for name, config in within.items()},
    }


def settings_of(sources: Sequence[str], shapes: RandomShapes) -> dict[str, Any]:
    """Of the rows, and of the methods that make the images: plain values."""
    methods = DEFAULT | synthesizers(shapes)
    made = {source: to_plain(methods[source]) for source in sources if source in methods}
    return {"rows": ROWS, "methods": made}


def run(
    weights: Path, data: Path, stage: dict[str, Any], images: Path, seed: int
) -> dict[str, Any]:
    """One chain of one task; its record."""
    plain = {
        "teacher": {"weights": str(weights)},
        "images": str(images),
        "stage": [stage],
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        summary = run_compression(Path(folder) / "run", read_job(CompressJob, plain), real=data)
    record = summary["stages"][0]
    latency = {}
    if "latency_ms" in record:  # of simulated quantization there is none
        latency["latency_ms"] = round(record["latency_ms"]["median"], 3)
    return {
        "accuracy": round(100 * record["accuracy"], 2),
        "bytes": record["bytes"],
        "smaller": round(record["smaller"], 1),
        "parameters": record["parameters"],
        "macs": record["macs"],
    } | latency


def run_whole(teacher: Teacher, data: Path, kind: str) -> dict[str, Any]:
    """The network as it is, as a file in its runtime; a record as of `run`."""
    x, y = load_images(data, teacher.input_spec, teacher.num_classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"whole.{kind}"
        size = export(teacher.module, path, teacher.input_spec).bytes
        runtime = load_exported(path)
        logits = answers(runtime, teacher.input_spec, x)
        whole = measure_size(teacher.module, teacher.input_spec)
        latency = measure_latency(runtime, teacher.input_spec, runtime=RUNTIMES[kind])
    return {
        "accuracy": round(100 * accuracy(logits, y), 2),
        "bytes": size,
        "smaller": 1.0,
        "parameters": whole.parameters,
        "macs": whole.macs,
        "latency_ms": round(latency.median, 3),
    }


def made_runs(record: dict[str, Any], row: str, source: str) -> list[dict[str, Any]]:
    """A row's runs on a source, by seed."""
    runs: list[dict[str, Any]] = record["rows"].get(row, {}).get(source, {"runs": []})["runs"]
    return runs


def looks_at_images(row: str) -> bool:
    """Whether a row is of one source of images."""
    if row in FP32 or ROWS[row].get("without_inputs"):
        return False
    return ROWS[row]["task"] != "merge" or ROWS[row].get("reconstruct") != 0


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread of a source's runs, how much smaller the file is, and the runs themselves."""
    return {
        **mean_and_std([run["accuracy"] for run in runs]),
        "smaller": round(statistics.mean(run["smaller"] for run in runs), 1),
        "runs": runs,
    }


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description="Compression on real, noise and ours.")
    parser.add_argument("teacher", choices=DATA)
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--teachers", type=Path, default=Path("benchmarks/teachers"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    rows = [*FP32, *ROWS]
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows, metavar="ROW")
    parser.add_argument("--resume", action="store_true", help="add the runs the record lacks")
    parser.add_argument("--tiny", action="store_true", help="a minute's run; writes no record")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    weights = args.teachers / f"{args.teacher}.safetensors"
    data = args.data / f"{DATA[args.teacher]}.npz"
    teacher = open_from(TeacherFile(weights=str(weights)))
    sources = (*SOURCES, *(WITHIN if teacher.capabilities.batch_norm else ()))
    card = json.loads(weights.with_suffix(".json").read_text())
    name = f"compress_{args.teacher}"
    out = args.out or Path(f"benchmarks/records/{name}.json")
    record: dict[str, Any] = {
        "name": name,
        "data": DATA[args.teacher],
        "teacher": {k: card[k] for k in ("factory", "accuracy", "trained_on", "settings")},
        "num_images": NUM_IMAGES,
        "settings": settings_of(sources, drawing_of(data)),
        "environment": environment("cpu"),
        "rows": {},
    }
    commit = record["environment"]["commit"]
    if args.resume and (made := made_rows(out, record)):
        record["rows"] = made
        record["environment"] = json.loads(out.read_text())["environment"]
    for seed in range(1 if args.tiny else args.seeds):
        todo = [
            (row, source)
            for row in args.rows
            for source in (sources if looks_at_images(row) else ("ours",))
            if len(made_runs(record, row, source)) <= seed
        ]
        with tempfile.TemporaryDirectory() as temporary:
            for source in {source for row, source in todo if row not in FP32}:
                num = 64 if args.tiny else NUM_IMAGES
                x = source_images(source, teacher, data, num, seed).numpy()
                np.savez(Path(temporary) / f"{source}.npz", x=x)
            for row, source in todo:
                runs = made_runs(record, row, source)
                if row in FP32:
                    made = run_whole(teacher, data, FP32[row])
                else:
                    stage = ROWS[row]
                    if args.tiny and "finetune" in stage:
                        stage = stage | {"finetune": TUNE | {"steps": 2, "num_validation": 8}}
                    made = run(weights, data, stage, Path(temporary) / f"{source}.npz", seed)
                # runs of one record may be of different days
                runs.append(made | {"commit": commit})
                record["rows"].setdefault(row, {})[source] = summary(runs)
                record["rows"] = {row: record["rows"][row] for row in rows if row in record["rows"]}
                print(row, source, "seed", seed, runs[-1], flush=True)
                if not args.tiny:
                    out.parent.mkdir(parents=True, exist_ok=True)
                    out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
