"""Independent CIFAR-10 ResNets as teachers, images to compress them with, and a record by rows.

The weights were trained on lossless CIFAR-10; the data folder holds a JPEG copy (quality 75, PSNR
about 30 dB), on which ResNet-20 reaches 81.03 % where 91.78 is stated. Read each row against the
network's own and against the agreement with it. `default` is structured noise as it comes. The
other sources were chosen on CIFAR-10: `things` are drawn as its objects are, `scenes` are scenes
alone, of a lower contrast, and `inverted` are things after twenty steps of DeepInversion, which
bring the statistics at the BatchNorm layers near those of the training set.
"""

import argparse
import json
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.protocol import made_rows, mean_and_std, training_images
from dreamstill.config import to_plain
from dreamstill.data.images import load_images
from dreamstill.distillation.config import LossName
from dreamstill.evaluation import accuracy, agreement, predict
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.state_dict import load_module
from dreamstill.pipelines.process import settle_process
from dreamstill.pipelines.run_directory import environment
from dreamstill.synthesis.config import (
    SCENES,
    NoiseConfig,
    RandomShapes,
    Start,
    StructuredNoiseConfig,
)
from dreamstill.synthesis.methods.deepinversion import CIFAR10
from dreamstill.synthesis.registry import open_synthesizer
from dreamstill.teacher import Teacher

__all__ = [
    "BY_LOGITS",
    "SOURCES",
    "SPEC",
    "THINGS",
    "Study",
    "open_resnet",
    "open_study",
    "source_images",
]

SPEC = InputSpec(shape=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
THINGS = RandomShapes(stroke_share=0.2, texture_share=0.6, centered_share=0.5, symmetry_share=0.2)
BY_LOGITS = (LossName.KL, LossName.L1)
SOURCES: dict[str, tuple[str, Any]] = {
    "noise": ("noise", NoiseConfig(batch_size=256)),
    "default": ("structured_noise", StructuredNoiseConfig()),
    "things": (
        "structured_noise",
        StructuredNoiseConfig(batch_size=256, oversample=4, shapes=THINGS),
    ),
    "scenes": (
        "structured_noise",
        StructuredNoiseConfig(batch_size=256, oversample=4, shapes=SCENES),
    ),
    "inverted": (
        "deepinversion",
        replace(CIFAR10, steps=20, lr=0.05, start=Start.STRUCTURED, shapes=THINGS),
    ),
}


def open_resnet(path: Path, depth: int) -> Teacher:
    """The independent weights of a ResNet of 20 or 56 layers."""
    return Teacher(load_module(f"dreamstill.nn.resnet_cifar:resnet{depth}", path), SPEC)


def source_images(source: str, teacher: Teacher, data: Path, num_images: int, seed: int) -> Tensor:
    """uint8 (num_images, 3, 32, 32); `real` ones come from the training half of `data`."""
    rng = torch.Generator().manual_seed(seed)
    if source == "real":
        images = training_images(data, SPEC)
        return images[torch.randperm(len(images), generator=rng)[:num_images]]
    name, config = SOURCES[source]
    method = open_synthesizer(name, teacher, config, rng=rng)
    parts = [SPEC.decode(method.next_batch().images) for _ in range(num_images // 256)]
    return torch.cat(parts)


@dataclass
class Study:
    """One network, the test set, and a record to which rows are added and kept."""

    teacher: Teacher
    data: Path
    x: Tensor
    y: Tensor
    whole: Tensor
    """The teacher's logits."""
    out: Path
    record: dict[str, Any]
    seeds: int
    sources: list[str]

    def lacks(self, row: str, seed: int = 0) -> bool:
        """The record has no run of this row and seed yet."""
        return len(self._runs(row)) <= seed

    def add(self, row: str, logits: Tensor, **more: Any) -> None:
        """Measure the logits of the row's next run on the test set and write the record."""
        run = {
            "accuracy": round(100 * accuracy(logits, self.y), 2),
            "agreement": round(100 * agreement(logits, self.whole), 2),
            **more,
            "commit": environment("cpu")["commit"],  # runs of a record may be of different days
        }
        self.record["rows"][row] = summary([*self._runs(row), run])
        print(row, run, flush=True)
        self.out.write_text(json.dumps(self.record, indent=2) + "\n")

    def _runs(self, row: str) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = self.record["rows"].get(row, {"runs": []})["runs"]
        return runs


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over the seeds, the median latency, what else the first run has, the runs."""
    own = ("accuracy", "agreement", "commit")
    more = {key: value for key, value in runs[0].items() if key not in own}
    if "latency_ms" in more:
        more["latency_ms"] = statistics.median(run["latency_ms"] for run in runs)
    return {
        **mean_and_std([run["accuracy"] for run in runs]),
        "agreement_mean": round(statistics.mean(run["agreement"] for run in runs), 2),
        **more,
        "runs": runs,
    }


def open_study(name: str, depth: int, config: dict[str, Any]) -> Study:
    """Read the command line, open the network and the record."""
    settle_process()
    parser = argparse.ArgumentParser(description=f"Benchmark {name}.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--weights", type=Path, required=True, help="of the independent ResNet")
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/records/{name}.json"))
    parser.add_argument("--seeds", type=int, default=3)
    every = ["real", *SOURCES]
    parser.add_argument("--sources", nargs="+", choices=every, default=every, metavar="SOURCE")
    parser.add_argument("--resume", action="store_true", help="add the runs the record lacks")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    data, teacher = args.data / "cifar10.npz", open_resnet(args.weights, depth)
    sources = {name: [method, to_plain(made)] for name, (method, made) in SOURCES.items()}
    record: dict[str, Any] = {
        "name": name,
        "data": "CIFAR-10 (JPEG copy)",
        "settings": config | {"sources": sources},
        "environment": environment("cpu"),
        "rows": {},
    }
    if args.resume and (made := made_rows(args.out, record)):
        record["rows"] = made
        record["environment"] = json.loads(args.out.read_text())["environment"]
    x, y = load_images(data, SPEC, 10)
    whole = predict(teacher.module, SPEC, x)
    return Study(teacher, data, x, y, whole, args.out, record, args.seeds, args.sources)
