"""The one protocol of every row: same teacher, student, steps and schedule; 3 seeds; one record.

A recipe names the teacher, the student, a method and its settings. Beside the method stand its
noise floor, its structured floor and its real-data bound: the same student, steps and schedule on
clipped Gaussian noise, on structured noise and on the real training set. Each student is chosen
without real data and meets the test set once, at the end.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from dreamstill.evaluate import accuracy, agreement, load_images, predict
from dreamstill.pool import Pool
from dreamstill.run import TeacherFile, environment, open_from, open_student
from dreamstill.settings import to_plain
from dreamstill.synthesis import Batch, Synthesizer, open_synthesizer
from dreamstill.synthesis.noise import NoiseSettings
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.tasks.distill import Distillation, DistillSettings
from dreamstill.teacher import Teacher

__all__ = ["Recipe", "main"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published row, and ours."""

    name: str
    data: str
    """Name of the data set's .npz, whose test half is read once."""
    teacher: str
    """Name of the teacher's weights in the folder of teachers."""
    student: str
    method: str
    synthesis: Any
    distill: DistillSettings
    structured: StructuredNoiseSettings
    """Of the structured floor."""
    published: dict[str, float]
    """Accuracies in percent as printed, by source."""
    tiny: Callable[["Recipe"], "Recipe"]
    """The same recipe, to end within a minute."""


class RealImages:
    """The real training set as a synthesizer: the real-data bound alone may use it."""

    streams: ClassVar[bool] = True
    adversarial: ClassVar[bool] = False
    repeat: ClassVar[int] = 1
    warm_up: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, teacher: Teacher, images: torch.Tensor, batch_size: int, *, rng: torch.Generator
    ) -> None:
        self.teacher, self.images, self.batch_size, self.rng = teacher, images, batch_size, rng

    @torch.no_grad()
    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Random real images with the teacher's answers."""
        index = torch.randint(len(self.images), (self.batch_size,), generator=self.rng)
        images = self.teacher.spec.encode(self.images[index])
        return Batch(images, self.teacher(images))

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


def train(
    recipe: Recipe, row: str, teacher: Teacher, real: torch.Tensor, seed: int
) -> tuple[nn.Module, dict[str, float]]:
    """Train one student; row is "method", "noise", "structured_noise" or "real"."""
    rng = torch.Generator().manual_seed(seed)
    student = open_student(recipe.student, teacher, rng)
    distill, size = recipe.distill, recipe.distill.batch_size
    synthesizer: Synthesizer
    if row == "method":
        synthesizer = open_synthesizer(recipe.method, teacher, recipe.synthesis, rng=rng)
    else:
        distill = replace(distill, prefill=0, fresh_every=1)
        if row == "real":
            synthesizer = RealImages(teacher, real, size, rng=rng)
        elif row == "noise":
            settings = NoiseSettings(batch_size=size)
            synthesizer = open_synthesizer("noise", teacher, settings, rng=rng)
        else:
            structured = replace(recipe.structured, batch_size=size)
            synthesizer = open_synthesizer(row, teacher, structured, rng=rng)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(Path(folder), teacher.spec, distill.pool, {})
        work = Distillation(teacher, student, synthesizer, pool, distill, rng=rng)
        for progress in work.run():
            if "agreement" in progress.record and progress.done % (10 * distill.judge_every) == 0:
                shown = {k: round(v, 4) for k, v in progress.record.items()}
                print(f"  {row} seed {seed} {shown}", flush=True)
        return work.chosen, {
            "seconds": round(time.monotonic() - start, 1),
            "queries": teacher.queries,
            "chosen_at_step": work.judge.champion_step,
        }


def measure(recipe: Recipe, row: str, weights: Path, data: Path, seed: int) -> dict[str, float]:
    """Train one student and read the test set once."""
    teacher = open_from(TeacherFile(weights=str(weights)))
    real = torch.empty(0)
    if row == "real":
        with np.load(data) as archive:
            real = torch.from_numpy(archive["x_train"])
    student, record = train(recipe, row, teacher, real, seed)
    x, y = load_images(data, teacher.spec, teacher.num_classes)
    logits = predict(student, teacher.spec, x)
    record["accuracy"] = round(100 * accuracy(logits, y), 2)
    record["agreement"] = round(
        100 * agreement(logits, predict(teacher.module, teacher.spec, x)), 2
    )
    return record


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Mean, spread (sample standard deviation) and the runs themselves."""
    values = [run["accuracy"] for run in runs]
    return {
        "accuracy_mean": round(statistics.mean(values), 2),
        "accuracy_std": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "agreement_mean": round(statistics.mean(run["agreement"] for run in runs), 2),
        "seconds_mean": round(statistics.mean(run["seconds"] for run in runs), 1),
        "queries": runs[0]["queries"],
        "runs": runs,
    }


def floors_of(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Floors and bound of another record of the same teacher, student, steps and schedule."""
    other = json.loads(path.read_text())
    schedule = ("steps", "batch_size", "lr", "anneal", "transfer", "temperature", "clip_gradient")
    for key in ("data", "teacher", "student", "structured_noise"):
        if other[key] != record[key]:
            raise SystemExit(f"{path} has another {key}")
    for key in schedule:
        if other["distill"][key] != record["distill"][key]:
            raise SystemExit(f"{path} has another distill.{key}")
    return {row: other["rows"][row] for row in ("structured_noise", "noise", "real")}


def main(recipe: Recipe) -> None:
    """Run a recipe from the command line and write its record after every run."""
    parser = argparse.ArgumentParser(description=f"Recipe {recipe.name}.")
    data_default = os.environ.get("DREAMSTILL_DATA")
    parser.add_argument("--data", type=Path, default=data_default, help="folder of data .npz")
    parser.add_argument("--teachers", type=Path, default=Path("benchmarks/teachers"))
    parser.add_argument("--out", type=Path, help="JSON record [benchmarks/records/NAME.json]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", default="method,structured_noise,noise,real")
    parser.add_argument("--floors", type=Path, help="take floors and bound from this record")
    parser.add_argument("--tiny", action="store_true", help="a minute's run; writes no record")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    if args.tiny:
        recipe = recipe.tiny(recipe)
    weights, data = (
        args.teachers / f"{recipe.teacher}.safetensors",
        args.data / f"{recipe.data}.npz",
    )
    card = json.loads(weights.with_suffix(".json").read_text())
    out = args.out or Path(f"benchmarks/records/{recipe.name}.json")
    record: dict[str, Any] = {
        "recipe": recipe.name,
        "data": recipe.data,
        "teacher": {k: card[k] for k in ("factory", "accuracy", "trained_on", "settings")},
        "student": recipe.student,
        "method": recipe.method,
        "synthesis": to_plain(recipe.synthesis),
        "distill": to_plain(recipe.distill),
        "structured_noise": to_plain(recipe.structured),
        "published": recipe.published,
        "environment": environment("cpu"),
        "rows": {},
    }
    if out.exists() and not args.tiny:
        record["rows"] = json.loads(out.read_text())["rows"]
    if args.floors:
        record["rows"] |= floors_of(args.floors, record)
    seeds = 1 if args.tiny else args.seeds
    for row in filter(None, args.rows.split(",")):
        runs = []
        for seed in range(seeds):
            runs.append(measure(recipe, row, weights, data, seed))
            print(recipe.name, row, "seed", seed, runs[-1], flush=True)
            record["rows"][row] = summary(runs)
            if not args.tiny:
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(record, indent=2) + "\n")
