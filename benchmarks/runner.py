"""Run what a TOML file of configs/ describes: every cell of it, seed by seed, into one JSON record.

A benchmark's kind says what a cell is and how it is measured; see `benchmarks.kinds`. Here is what
all kinds share: a configuration with its bases, the sources of images, and the record, which is
written after each run so that `--resume` can go on from it.
"""

import json
import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamstill.config import Precision, from_plain, to_plain
from dreamstill.data.images import load_images, load_real
from dreamstill.files.reading import read_toml
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.output_spec import OutputSpec
from dreamstill.pipelines.run_directory import environment
from dreamstill.pipelines.synthesize import draw_images
from dreamstill.synthesis.config import CLOTHES, SCENES, RandomShapes
from dreamstill.synthesis.presets import method_config
from dreamstill.teacher import Teacher

__all__ = [
    "CONFIGS",
    "RECORDS",
    "Cell",
    "Kind",
    "Record",
    "SummarizedKind",
    "mean_and_std",
    "method_of",
    "read_config",
    "rows_of",
    "run",
    "shrunk",
    "training_images",
]

CONFIGS = Path(__file__).with_name("configs")
RECORDS = Path("benchmarks/records")
THINGS = RandomShapes(stroke_share=0.2, texture_share=0.6, centered_share=0.5, symmetry_share=0.2)
SHAPES = {"clothes": CLOTHES, "scenes": SCENES, "things": THINGS}
"""Random shapes that a configuration may name; things were chosen on CIFAR-10."""
TINY = {
    "batch_size": 64,
    "buffer_size": 64,
    "generator_steps": 4,
    "low_resolution_steps": 0,
    "num_images": 64,
    "num_validation": 64,
    "steps": 4,
}
"""The most that a tiny run has of each."""


def merged(base: Any, over: Any) -> Any:
    """Return `over` laid upon `base`, table by table; the string "none" stands for None.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": "none"}})
    {'a': {'b': None, 'c': 2}}
    """
    if not isinstance(over, dict):
        return None if over == "none" else over
    under = base if isinstance(base, dict) else {}
    return under | {key: merged(under.get(key), value) for key, value in over.items()}


def read_config(name: str) -> dict[str, Any]:
    """Return the configuration of a benchmark, laid upon those that it names as its bases."""
    own = read_toml(CONFIGS / f"{name}.toml")
    config: dict[str, Any] = {}
    for base in own.pop("base", []):
        config = merged(config, read_config(base))
    return merged(config, own)  # type: ignore[no-any-return]


def rows_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of a configuration by name, as plain values.

    A row is laid upon the row or template that it is `from`, or else upon `defaults`. A variant
    adds a row for each row or template whose name matches a pattern in its `of`, with its changes
    laid upon that. `only` lists the rows that remain.
    """
    templates, written = config.get("templates", {}), config["rows"]
    bases = written | templates  # a row may share its template's name

    def whole(row: dict[str, Any]) -> dict[str, Any]:
        base = whole(bases[row["from"]]) if "from" in row else config.get("defaults", {})
        return {key: value for key, value in merged(base, row).items() if key != "from"}

    rows = {name: whole(row) for name, row in written.items()}
    for pattern, variant in config.get("variants", {}).items():
        changes = {key: value for key, value in variant.items() if key != "of"}
        for name, row in (templates | written).items():
            if any(fnmatchcase(name, of) for of in variant["of"]):
                rows[pattern.format(name)] = merged(whole(row), changes)
    return {name: rows[name] for name in config.get("only", rows)}


def method_of(table: dict[str, Any]) -> tuple[str, Any]:
    """Return a method's name and configuration from a table of method, preset and synthesis."""
    synthesis = dict(table.get("synthesis", {}))
    if isinstance(shapes := synthesis.get("shapes"), str):
        synthesis["shapes"] = to_plain(SHAPES[shapes])
    return table["method"], method_config(table["method"], synthesis, table.get("preset"))


def shrunk(config: Any) -> Any:
    """Return a configuration, or a table of plain values, that ends within seconds."""
    if isinstance(config, dict):
        return {
            key: min(value, TINY[key]) if key in TINY and value else shrunk(value)
            for key, value in config.items()
        }
    plain = to_plain(config)
    return from_plain(type(config), shrunk(plain)) if isinstance(plain, dict) else config


def training_images(path: Path, spec: InputSpec) -> Tensor:
    """Return the training images of an .npz, uint8 (N, C, H, W), in the shape of the teacher's."""
    with np.load(path) as archive:
        x = torch.from_numpy(archive["x_train"])
    channels, height, width = spec.shape
    if x.shape[1] != channels:
        x = x.float().mean(1, keepdim=True).repeat(1, channels, 1, 1)
    if x.shape[2:] != (height, width):
        x = F.interpolate(x.float(), (height, width), mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8)


def mean_and_std(accuracies: list[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation over the seeds, None where there is one."""
    return {
        "accuracy_mean": round(statistics.mean(accuracies), 2),
        "accuracy_std": round(statistics.stdev(accuracies), 2) if len(accuracies) > 1 else None,
    }


class Cell(NamedTuple):
    """What is run once for each seed."""

    row: str
    source: str | None = None
    """Where the images come from; None: the row has none, or says so itself."""

    def __str__(self) -> str:
        return ", ".join(filter(None, self))


class Kind(ABC):
    """A kind of benchmark: a subclass says what its record holds and how a cell is measured.

    Args:
        config: the benchmark's configuration; see `read_config`.
        data: folder of .npz files with x_train, y_train, x_test, y_test (uint8 (N, C, H, W)).
        teachers: folder of the teachers' weights and cards.
        tiny: shrink everything, to end within seconds.

    """

    names_teacher = False
    """The record describes the teacher."""

    def __init__(
        self,
        config: dict[str, Any],
        data: Path = Path(),
        teachers: Path = Path("benchmarks/teachers"),
        *,
        tiny: bool = False,
    ) -> None:
        self.config, self.folder, self.tiny = config, data, tiny
        self.data = data / f"{config['data']}.npz"
        self.weights = teachers / f"{config.get('teacher')}.safetensors"
        self.precision = Precision(config.get("precision", "float32"))
        self.num_images = config.get("num_images", 0)
        self.sources = {name: method_of(of) for name, of in config.get("sources", {}).items()}
        if tiny:
            self.num_images = min(self.num_images, TINY["num_images"])
            self.sources = {name: (of, shrunk(made)) for name, (of, made) in self.sources.items()}
        self.source_images = lru_cache(len(self.sources) + 1)(self._source_images)

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """Return what stands in the record beside the rows, as the configuration has it."""

    @abstractmethod
    def cells(self) -> Sequence[Cell]:
        """Return what is run for each seed, in the record's order."""

    @abstractmethod
    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        """Return the figures of one run."""

    @abstractmethod
    def row(self, cell: Cell, made: dict[str, Any] | None, run: dict[str, Any]) -> dict[str, Any]:
        """Return what a record says of a cell: what it said of the runs before, and this one."""

    def settings(self, cell: Cell) -> Any:
        """Return the settings that the record keeps of this cell alone."""
        return None

    def place(self, cell: Cell) -> tuple[str, ...]:
        """Return the keys under which the record has a cell."""
        return (str(cell),)

    def closing(self) -> dict[str, Any]:
        """Return what else stands in the record once all cells are run."""
        return {}

    def num_runs(self, made: dict[str, Any]) -> int:
        """Return the number of runs that a record has of a cell."""
        return len(made["runs"])

    def num_seeds(self, cell: Cell, seeds: int) -> int:
        """Return how many runs a cell is to have."""
        return seeds

    def needed(self, cells: Sequence[Cell]) -> list[Path]:
        """Return the files that must be there to run these cells."""
        return [self.data, *([self.weights] if "teacher" in self.config else [])]

    def teacher(self) -> Teacher:
        """Open the teacher."""
        return open_from(TeacherFile(weights=str(self.weights)), precision=self.precision)

    def test_set(self, spec: InputSpec, outputs: OutputSpec | None = None) -> tuple[Tensor, Tensor]:
        """Return the test images, uint8 (N, C, H, W), and the truth; about 200 in a tiny run.

        The truth is classes, or what fits the outputs of a network.
        """
        if outputs is None:
            x, y = load_images(self.data, spec)
        else:
            x, y = load_real(self.data, spec, outputs)
        every = max(1, len(x) // 200) if self.tiny else 1  # they may be sorted by class
        return x[::every], y[::every]

    def _source_images(self, source: str, teacher: Teacher, seed: int) -> Tensor:
        """Return `num_images` images of a source, uint8 (N, C, H, W)."""
        if source == "real":
            images = training_images(self.data, teacher.input_spec)
            rng = torch.Generator().manual_seed(seed)
            return images[torch.randperm(len(images), generator=rng)[: self.num_images]]
        return draw_images(teacher, *self.sources[source], self.num_images, seed=seed)[0]


class SummarizedKind(Kind):
    """A kind whose record has of each cell its runs and a summary of them."""

    @abstractmethod
    def summary(self, cell: Cell, runs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what a record says of a cell's runs."""

    def row(self, cell: Cell, made: dict[str, Any] | None, run: dict[str, Any]) -> dict[str, Any]:
        return self.summary(cell, [*(made["runs"] if made else []), run])


class Record:
    """A benchmark's JSON record: rows that are measured join those that it has.

    Args:
        path: of the file, which is read if it is there; None: nothing is read or written.
        kind, head: the kind of benchmark, and what stands beside the rows.
        resume: keep the runs that the record has and add those that it lacks. Rows whose settings
            have changed, or that are marked `outdated`, begin anew.

    """

    def __init__(
        self, path: Path | None, kind: Kind, head: dict[str, Any], *, resume: bool = False
    ) -> None:
        found = json.loads(path.read_text()) if path and path.exists() else {}
        found = with_new_rows(found, head)
        check_same(path, found, head)
        self.path, self.kind, self.resume = path, kind, resume
        self.content = {**head, "environment": environment("cpu"), "rows": {}} | found
        self.content |= {"published": head["published"]} if "published" in head else {}
        self.commit = environment("cpu")["commit"]
        self.begun: set[Cell] = set()

    def made(self, cell: Cell) -> dict[str, Any] | None:
        """Return what the record says of a cell's runs that count, None if there are none."""
        row: Any = self.content["rows"]
        for key in self.kind.place(cell):
            row = row.get(key, {})
        current = not row.get("outdated") and row.get("settings") == self.kind.settings(cell)
        return row if row and (cell in self.begun or (self.resume and current)) else None

    def add(self, cell: Cell, run: dict[str, Any]) -> None:
        """Add a cell's next run and write the record."""
        row = self.kind.row(cell, self.made(cell), run | {"commit": self.commit})
        *outer, last = self.kind.place(cell)
        rows = self.content["rows"]
        for key in outer:
            rows = rows.setdefault(key, {})
        rows[last] = row
        self.begun.add(cell)
        self.write()

    def reuse(self, path: Path, cells: Sequence[Cell]) -> list[Cell]:
        """Take rows of the same settings from another record; return the cells that it lacks."""
        other = json.loads(path.read_text())
        same = {key: self.content[key] for key in ("data", "teacher", "student", "precision")}
        check_same(path, other, same)
        for cell in cells:
            row = other["rows"].get(cell.row, {})
            if row.get("settings") == self.kind.settings(cell):
                self.content["rows"][cell.row] = row
        self.write()
        return [cell for cell in cells if cell.row not in self.content["rows"]]

    def write(self) -> None:
        """Write the rows in the order of the cells; those of no cell come last."""
        order = list(dict.fromkeys(self.kind.place(cell)[0] for cell in self.kind.cells()))
        rows = self.content["rows"]
        known = {name: rows[name] for name in order if name in rows}
        self.content["rows"] = known | {k: row for k, row in rows.items() if k not in known}
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.content, indent=2) + "\n")


def check_same(path: Path | None, found: dict[str, Any], head: dict[str, Any]) -> None:
    """Exit if a record was made with other settings, or of another network, than `head`."""
    for key in (head.keys() & found.keys()) - {"published"}:
        if found[key] != json.loads(json.dumps(head[key])):
            raise SystemExit(f"{path} has another {key}: give --out FILE to begin a new record")


def with_new_rows(found: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the settings of the rows that its benchmark got after it was made."""
    if "rows" not in (settings := found.get("settings", {})):
        return found
    rows = head.get("settings", {}).get("rows", {}) | settings["rows"]
    return found | {"settings": settings | {"rows": rows}}


def run(kind: Kind, cells: Sequence[Cell], record: Record, seeds: int) -> None:
    """Measure the cells that the record lacks, seed by seed."""
    for seed, cell in product(range(seeds), cells):
        made = record.made(cell)
        if (kind.num_runs(made) if made else 0) <= seed < kind.num_seeds(cell, seeds):
            figures = kind.measure(cell, seed)
            record.add(cell, figures)
            print(record.content["name"], cell, "seed", seed, figures, flush=True)
    record.content |= kind.closing()
    record.write()
