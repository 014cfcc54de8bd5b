"""The one protocol of every row: same teacher, student, steps and schedule; 3 seeds; one record.

A benchmark names the teacher, the student and its rows; a row is a method with its settings. Beside
the methods stand the noise baseline, the structured baseline and the real-data bound: the same
student, steps and schedule on clipped Gaussian noise, on structured noise and on the real training
set. Each student is chosen without real data and meets the test set once, at the end; that of the
real-data bound on training images, drawn with replacement: some are held out and trained on.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dreamstill.config import Precision, to_plain
from dreamstill.data.batch import Batch, answered
from dreamstill.data.config import Augmentation
from dreamstill.data.images import load_images
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.distillation import Distillation
from dreamstill.distillation.weight_inheritance import inherit
from dreamstill.evaluation import accuracy, agreement, predict
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.distill import open_student
from dreamstill.pipelines.process import settle_process
from dreamstill.pipelines.run_directory import environment
from dreamstill.synthesis.activation_statistics import Kind, record_metadata
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import NoiseConfig, StructuredNoiseConfig
from dreamstill.synthesis.registry import open_synthesizer
from dreamstill.teacher import Teacher

__all__ = ["Benchmark", "Row", "floors", "made_rows", "main", "mean_and_std", "training_images"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One student: what made its images, and how it was trained."""

    method: str
    """A synthesizer's name; or real, the real training set; or unrelated, images of another set."""
    synthesis: Any = None
    distill: DistillConfig
    inherit: bool = False
    """The student starts from the teacher's channels in place of random weights."""
    reconstruct: int = 0
    """Images on which the layers of such a student are solved."""
    after: int = 0
    """Of the steps, those on the structured noise of the benchmark, before the method's images."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Rows of one teacher and student."""

    name: str
    data: str
    """Name of the data set's .npz, whose test half is read once."""
    teacher: str
    """Name of the teacher's weights in the folder of teachers."""
    student: str
    rows: dict[str, Row]
    precision: Precision = Precision.FLOAT32
    published: dict[str, float] = field(default_factory=dict)
    """Accuracies in percent as printed, by source."""


def floors(distill: DistillConfig, structured: StructuredNoiseConfig) -> dict[str, Row]:
    """The two noise floors and the real-data bound at a row's schedule."""
    plain, size = replace(distill, prefill=0, fresh_every=1), distill.batch_size
    structured = replace(structured, batch_size=size)
    return {
        "structured_noise": Row(method="structured_noise", synthesis=structured, distill=plain),
        "noise": Row(method="noise", synthesis=NoiseConfig(batch_size=size), distill=plain),
        "real": Row(method="real", distill=plain),
    }


def training_images(path: Path, spec: InputSpec) -> torch.Tensor:
    """uint8 (N, C, H, W) of an .npz, brought to the teacher's channels and size."""
    with np.load(path) as archive:
        x = torch.from_numpy(archive["x_train"])
    channels, height, width = spec.shape
    if x.shape[1] != channels:
        x = x.float().mean(1, keepdim=True).repeat(1, channels, 1, 1)
    if x.shape[2:] != (height, width):
        x = F.interpolate(x.float(), (height, width), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8)


class StoredImages(Method):
    """Batches of a fixed set of images, drawn with replacement: what every method is up against."""

    streams = True

    def __init__(
        self, teacher: Teacher, images: torch.Tensor, batch_size: int, *, rng: torch.Generator
    ) -> None:
        super().__init__(teacher, NoiseConfig(batch_size=batch_size), rng=rng)
        self.images = images

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Draw images of the set and ask the teacher."""
        size, device = (self.config.batch_size,), self.rng.device
        index = torch.randint(len(self.images), size, generator=self.rng, device=device)
        chosen = self.images[index.to(self.images.device)].to(device)
        return answered(self.teacher, self.teacher.input_spec.encode(chosen))


def open_row(row: Row, teacher: Teacher, data: Path, folder: Path, rng: torch.Generator) -> Method:
    """The synthesizer of a row; `data` is what real, unrelated and metadata may look at."""
    if row.method in ("real", "unrelated"):
        path = data if row.method == "real" else data.with_name(f"{row.synthesis}.npz")
        images = training_images(path, teacher.input_spec)
        return StoredImages(teacher, images, row.distill.batch_size, rng=rng)
    config = row.synthesis
    if row.method == "metadata":  # the owner's side: settings.file names the kind to record
        file = folder / "metadata.safetensors"
        images = training_images(data, teacher.input_spec)
        images = images[:: max(1, len(images) // 10_000)]  # they may be sorted by class
        record_metadata(teacher, images, file, kind=Kind(config.file))
        config = replace(config, file=str(file))
    return open_synthesizer(row.method, teacher, config, rng=rng)


def train(
    benchmark: Benchmark, name: str, teacher: Teacher, data: Path, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Train one student of a row."""
    row = benchmark.rows[name]
    rng = torch.Generator().manual_seed(seed)
    student = open_student(benchmark.student, teacher, rng)
    kept = inherit(teacher.module, student) if row.inherit else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        synthesizer = open_row(row, teacher, data, folder, rng)
        start, teacher.queries = time.monotonic(), 0
        if row.after:
            first = replace(
                row.distill, steps=row.after, prefill=0, fresh_every=1, augment=Augmentation()
            )
            warm = replace(benchmark.rows["structured_noise"], distill=first)
            structured = open_row(warm, teacher, data, folder, rng)
            buffer = ReplayBuffer(folder / "warm", teacher.input_spec, row.distill.batch_size)
            for _ in Distillation(
                teacher, student, structured, buffer, warm.distill, rng=rng
            ).run():
                pass
        distill = replace(row.distill, steps=row.distill.steps - row.after)
        buffer = ReplayBuffer(folder / "replay_buffer", teacher.input_spec, distill.buffer_size)
        work = Distillation(
            teacher,
            student,
            synthesizer,
            buffer,
            distill,
            rng=rng,
            inherited=kept,
            reconstruct=row.reconstruct,
            pretrained=row.after > 0,
        )
        for progress in work.run():
            if "agreement" in progress.record and progress.done % 1000 == 0:
                shown = {k: round(v, 4) for k, v in progress.record.items()}
                print(f"  {name} seed {seed} {shown}", flush=True)
        return work.chosen, {
            "seconds": round(time.monotonic() - start, 1),
            "queries": teacher.queries,
            "chosen_at_step": work.selector.best_step,
        }


def measure(
    benchmark: Benchmark, name: str, weights: Path, data: Path, seed: int, *, num_test: int | None
) -> dict[str, Any]:
    """Train one student and read the test set once, or the first `num_test` images of it."""
    teacher = open_from(TeacherFile(weights=str(weights)), precision=benchmark.precision)
    student, record = train(benchmark, name, teacher, data, seed)
    x, y = (part[:num_test] for part in load_images(data, teacher.input_spec, teacher.num_classes))
    logits = predict(student, teacher.input_spec, x)
    record["commit"] = environment("cpu")["commit"]  # runs of one record may be of different days
    record["accuracy"] = round(100 * accuracy(logits, y), 2)
    record["agreement"] = round(
        100 * agreement(logits, predict(teacher.module, teacher.input_spec, x)), 2
    )
    return record


def mean_and_std(accuracies: list[float]) -> dict[str, float | None]:
    """Over the seeds; the sample standard deviation is None where there is one."""
    return {
        "accuracy_mean": round(statistics.mean(accuracies), 2),
        "accuracy_std": round(statistics.stdev(accuracies), 2) if len(accuracies) > 1 else None,
    }


def summary(row: Row, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings, mean, spread and the runs themselves."""
    return {
        "settings": to_plain(row),
        **mean_and_std([run["accuracy"] for run in runs]),
        "agreement_mean": round(statistics.mean(run["agreement"] for run in runs), 2),
        "seconds_mean": round(statistics.mean(run["seconds"] for run in runs), 1),
        "queries": runs[0]["queries"],
        "runs": runs,
    }


def tiny(row: Row) -> Row:
    """The same row, to end within seconds."""
    small: dict[str, Any] = {"batch_size": 64, "steps": 4, "generator_steps": 4}
    synthesis = row.synthesis
    if not isinstance(synthesis, str | None):
        known = {f.name for f in fields(synthesis)}
        if "low_resolution_steps" in known:
            small["low_resolution_steps"] = 0
        synthesis = replace(synthesis, **{k: v for k, v in small.items() if k in known})
    steps = min(row.distill.steps, 20)
    distill = replace(row.distill, steps=steps, batch_size=64, num_validation=64, buffer_size=64)
    return replace(row, synthesis=synthesis, distill=distill, after=min(row.after, 5))


def same_network(path: Path, other: dict[str, Any], record: dict[str, Any]) -> None:
    """Rows of two records may stand in one."""
    for key in ("data", "teacher", "student", "precision"):
        if other.get(key, Precision.FLOAT32) != record[key]:
            raise SystemExit(f"{path} has another {key}")


def reused(path: Path, record: dict[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    """Rows of another record of the same data, teacher, student and settings."""
    other = json.loads(path.read_text())
    same_network(path, other, record)
    return {
        name: other["rows"][name]
        for name, row in benchmark.rows.items()
        if name in other["rows"] and other["rows"][name]["settings"] == to_plain(row)
    }


def made_rows(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The rows that a record in `path` has, to go on from; its settings must be the same."""
    if not path.exists():
        return {}
    made = json.loads(path.read_text())
    if made["settings"] != json.loads(json.dumps(record["settings"])):
        raise SystemExit(f"{path} was made with other settings: leave --resume out")
    rows: dict[str, Any] = made["rows"]
    return rows


def main(benchmark: Benchmark) -> None:
    """Run a benchmark from the command line and write its record after every run."""
    settle_process()
    parser = argparse.ArgumentParser(description=f"Benchmark {benchmark.name}.")
    data_default = os.environ.get("DREAMSTILL_DATA")
    parser.add_argument("--data", type=Path, default=data_default, help="folder of data .npz")
    parser.add_argument("--teachers", type=Path, default=Path("benchmarks/teachers"))
    parser.add_argument("--out", type=Path, help="JSON record [benchmarks/records/NAME.json]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", help=f"of {'; '.join(benchmark.rows)} [all]")
    parser.add_argument("--resume", action="store_true", help="add the runs the record lacks")
    parser.add_argument("--reuse", type=Path, help="take rows of the same settings from a record")
    parser.add_argument("--tiny", action="store_true", help="a minute's run; writes no record")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    names = args.rows or list(benchmark.rows)
    if unknown := set(names) - set(benchmark.rows):
        parser.error(f"unknown row {sorted(unknown)[0]}; known: {'; '.join(benchmark.rows)}")
    if args.tiny:
        rows = {name: tiny(row) for name, row in benchmark.rows.items()}
        benchmark = replace(benchmark, rows=rows)
    weights = args.teachers / f"{benchmark.teacher}.safetensors"
    data = args.data / f"{benchmark.data}.npz"
    if not weights.is_file():
        parser.error(f"no teacher at {weights}: give --teachers FOLDER")
    chosen = [benchmark.rows[name] for name in names]
    sets = [benchmark.data, *(row.synthesis for row in chosen if row.method == "unrelated")]
    for path in (args.data / f"{name}.npz" for name in sets):
        if not path.is_file():
            parser.error(f"no data at {path}: give --data FOLDER")
    card = json.loads(weights.with_suffix(".json").read_text())
    out = args.out or Path(f"benchmarks/records/{benchmark.name}.json")
    record: dict[str, Any] = {
        "name": benchmark.name,
        "data": benchmark.data,
        "teacher": {k: card[k] for k in ("factory", "accuracy", "trained_on", "settings")},
        "student": benchmark.student,
        "precision": benchmark.precision,
        "published": benchmark.published,
        "environment": environment("cpu"),
        "rows": {},
    }
    if out.exists() and not args.tiny:
        found = json.loads(out.read_text())
        same_network(out, found, record)
        record["rows"] = found["rows"]
    if args.reuse:
        record["rows"] |= reused(args.reuse, record, benchmark)
        names = [name for name in names if name not in record["rows"]]
    for name in names:
        runs, made = [], record["rows"].get(name, {})
        current = made.get("settings") == to_plain(benchmark.rows[name])
        if args.resume and current and not made.get("outdated"):
            runs = made["runs"]
        for seed in range(len(runs), 1 if args.tiny else args.seeds):
            num_test = 200 if args.tiny else None
            runs.append(measure(benchmark, name, weights, data, seed, num_test=num_test))
            print(benchmark.name, name, "seed", seed, runs[-1], flush=True)
            record["rows"][name] = summary(benchmark.rows[name], runs)
            if not args.tiny:
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(record, indent=2) + "\n")
    if args.reuse and not args.tiny:
        out.write_text(json.dumps(record, indent=2) + "\n")
