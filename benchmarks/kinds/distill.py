"""Students of one teacher: the same architecture, steps and schedule for every method.

A row is a method with its settings. Beside the methods stand the noise baseline, the structured
baseline and the real-data bound: the same student and schedule on clipped Gaussian noise, on
structured noise and on the real training set. Each student is selected without real data and meets
the test set once, at the end; that of the real-data bound is selected on training images, which are
drawn with replacement: some are both held out and trained on.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.runner import (
    Cell,
    SummarizedKind,
    mean_and_std,
    method_of,
    rows_of,
    shrunk,
    training_images,
)
from dreamstill.config import from_plain, to_plain
from dreamstill.data.config import NO_AUGMENTATION
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.budget import within_budget
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.distillation import Distillation
from dreamstill.distillation.weight_inheritance import inherit
from dreamstill.evaluation import agreement, predict, scores
from dreamstill.pipelines.distill import open_student
from dreamstill.synthesis.activation_statistics import Kind as Metadata
from dreamstill.synthesis.activation_statistics import record_metadata
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.registry import METHODS, open_synthesizer
from dreamstill.synthesis.stored_images import StoredImages
from dreamstill.teacher import Teacher

__all__ = ["Distill", "Row", "open_row"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One student: what made its images, and how it was trained."""

    method: str
    """A synthesizer's name; or real, the real training set; or unrelated, images of another set."""
    synthesis: Any = None
    """The method's configuration; of unrelated images, the name of their set."""
    distill: DistillConfig
    after: int = 0
    """Of the steps, those on the benchmark's structured noise, before the method's images."""


def row_of(table: dict[str, Any], *, tiny: bool) -> Row:
    """Build a row from its table of plain values."""
    more = {key: value for key, value in table.items() if key != "preset"}
    if table["method"] in METHODS:
        more["synthesis"] = method_of(table)[1]
    row = Row(**more | {"distill": from_plain(DistillConfig, table["distill"], "distill")})
    if not tiny:
        return row
    given = row.distill.minutes is None and row.distill.visits is None
    steps = min(row.distill.steps, 20) if given else 20
    small = replace(row.distill, minutes=None, visits=None, steps=steps, batch_size=64)
    small = replace(small, num_validation=64, buffer_size=64)
    return replace(row, synthesis=shrunk(row.synthesis), distill=small, after=min(row.after, 5))


def open_row(row: Row, teacher: Teacher, data: Path, folder: Path, rng: torch.Generator) -> Method:
    """Open the synthesizer of a row.

    Args:
        row, teacher, rng: what makes the images.
        data: .npz of the data set, which real and metadata may look at; unrelated images are in
            another one beside it.
        folder: for the metadata that the teacher's owner would have recorded.

    """
    if row.method in ("real", "unrelated"):
        path = data if row.method == "real" else data.with_name(f"{row.synthesis}.npz")
        images = training_images(path, teacher.input_spec)
        return StoredImages(teacher, images, row.distill.batch_size, rng=rng)
    config = row.synthesis
    if row.method == "metadata":  # its `file` names the kind to record
        file = folder / "metadata.safetensors"
        images = training_images(data, teacher.input_spec)
        images = images[:: max(1, len(images) // 10_000)]  # they may be sorted by class
        record_metadata(teacher, images, file, kind=Metadata(config.file))
        config = replace(config, file=str(file))
    return open_synthesizer(row.method, teacher, config, rng=rng)


class Distill(SummarizedKind):
    """Rows of one teacher and student."""

    names_teacher = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        rows = rows_of(self.config)
        self.rows = {name: row_of(table, tiny=self.tiny) for name, table in rows.items()}

    def described(self) -> dict[str, Any]:
        return {
            "data": self.config["data"],
            "student": self.config["student"],
            "precision": self.precision.value,
            "published": self.config.get("published", {}),
        }

    def cells(self) -> list[Cell]:
        return [Cell(name) for name in self.rows]

    def settings(self, cell: Cell) -> Any:
        return to_plain(self.rows[cell.row])

    def needed(self, cells: Sequence[Cell]) -> list[Path]:
        rows = [self.rows[cell.row] for cell in cells]
        others = {row.synthesis for row in rows if row.method == "unrelated"}
        return [*super().needed(cells), *(self.data.with_name(f"{name}.npz") for name in others)]

    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        teacher = self.teacher()
        student, run = self.train(cell.row, teacher, seed)
        x, y = self.test_set(teacher.input_spec, teacher.output_spec)
        logits, wanted = (predict(m, teacher.input_spec, x) for m in (student, teacher.module))
        kind = teacher.output_kind
        run["accuracy"] = round(100 * scores(logits, y, kind)["accuracy"], 2)
        run["agreement"] = round(100 * agreement(logits, wanted, kind), 2)
        return run

    def train(self, name: str, teacher: Teacher, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """Train one student of a row; return it with its seconds and queries."""
        row = self.rows[name]
        rng = torch.Generator().manual_seed(seed)
        student = open_student(self.config["student"], teacher, rng)
        spec = teacher.input_spec
        kept = inherit(teacher.module, student, spec) if row.distill.inherit else None
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            synthesizer = open_row(row, teacher, self.data, folder, rng)
            start, teacher.queries = time.monotonic(), 0
            if row.after:
                self.warm_up(row, teacher, student, folder, rng)
            distill = within_budget(teacher, student, row.distill, synthesizer, inherited=kept)
            distill = replace(distill, steps=distill.steps - row.after)
            buffer = ReplayBuffer(folder / "replay_buffer", teacher.input_spec, distill.buffer_size)
            work = Distillation(
                teacher,
                student,
                synthesizer,
                buffer,
                distill,
                rng=rng,
                inherited=kept,
                reconstruct=row.distill.reconstruct,
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
                **({"visits": work.visits} if row.distill.minutes else {}),
            }

    def warm_up(
        self, row: Row, teacher: Teacher, student: nn.Module, folder: Path, rng: torch.Generator
    ) -> None:
        """Train a student for the row's first steps on structured noise, in place."""
        distill = replace(
            row.distill, steps=row.after, prefill=0, fresh_every=1, augment=NO_AUGMENTATION
        )
        first = replace(self.rows["structured_noise"], distill=distill)
        structured = open_row(first, teacher, self.data, folder, rng)
        buffer = ReplayBuffer(folder / "warm", teacher.input_spec, distill.batch_size)
        for _ in Distillation(teacher, student, structured, buffer, distill, rng=rng).run():
            pass

    def summary(self, cell: Cell, runs: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "settings": self.settings(cell),
            **mean_and_std([run["accuracy"] for run in runs]),
            "agreement_mean": round(statistics.mean(run["agreement"] for run in runs), 2),
            "seconds_mean": round(statistics.mean(run["seconds"] for run in runs), 1),
            "queries": runs[0]["queries"],
            "runs": runs,
        }
