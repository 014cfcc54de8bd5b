"""Compression of one teacher on images of several sources side by side: real, noise, synthesized.

Every row is one task with the same settings and number of images for each source; the seeds are of
the images and of the task. The source `default` is structured noise with nothing set.
"""

import statistics
import tempfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dreamstill as ds
from benchmarks.kinds.distill import Row, open_row
from benchmarks.runner import TINY, Cell, SummarizedKind, mean_and_std, rows_of, shrunk
from dreamstill.compression.config import PruneConfig, QuantizeConfig
from dreamstill.compression.prune import prune
from dreamstill.compression.quantization.quantize import quantize, quantize_without_inputs
from dreamstill.config import from_plain, to_plain
from dreamstill.distillation.config import DistillConfig
from dreamstill.evaluation import accuracy, agreement, answers, predict, scores
from dreamstill.exporters.formats import RUNTIMES, export, load_exported
from dreamstill.exporters.int8 import export_int8
from dreamstill.files.reading import read_toml
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.config import CompressJob, read_job
from dreamstill.profiling import measure_latency, measure_size
from dreamstill.synthesis.registry import DEFAULT_METHOD
from dreamstill.synthesis.validation_set import validation_set
from dreamstill.teacher import Teacher

__all__ = ["AnyTeacher", "Compress", "CompressInMemory", "Pipeline"]

CONFIGS = {"distill": DistillConfig, "prune": PruneConfig, "quantize": QuantizeConfig}
WHOLE = ("whole", "export")
"""Tasks that leave the network as it is: in memory, and as a file in its runtime."""
NUM_VALIDATION = 1024
"""Images of a teacher's validation set."""


def looks_at_images(stage: dict[str, Any]) -> bool:
    """Return whether a task is done anew for each source of images."""
    without = stage.get("without_inputs") or stage.get("reconstruct") == 0
    return stage["task"] not in WHOLE and not without


class OfTasks(SummarizedKind):
    """Rows of one task each, on every source of images."""

    no_source: str | None = None
    """The source that rows have which look at no image."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        rows = rows_of(self.config)
        self.rows = {name: shrunk(row) for name, row in rows.items()} if self.tiny else rows

    def cells(self) -> list[Cell]:
        return [
            Cell(name, source)
            for name, stage in self.rows.items()
            for source in (("real", *self.sources) if looks_at_images(stage) else (self.no_source,))
        ]


class Compress(OfTasks):
    """Chains of one task on a teacher's file; a row's figures are by source.

    The whole network in the runtimes of the int8 files says what their latency is to be compared
    with.
    """

    names_teacher = True
    no_source = "ours"

    def described(self) -> dict[str, Any]:
        configured = {name: row for name, row in self.rows.items() if row["task"] not in WHOLE}
        methods = {source: to_plain(made) for source, made in self.sources.items()}
        return {
            "data": self.config["data"],
            "num_images": self.num_images,
            "settings": {"rows": configured, "methods": methods},
        }

    def place(self, cell: Cell) -> tuple[str, ...]:
        return cell.row, str(cell.source)

    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        stage, teacher = self.rows[cell.row], self.teacher()
        if stage["task"] == "export":
            return self.exported(teacher, stage["format"])
        with tempfile.TemporaryDirectory() as folder:
            images = Path(folder) / "images.npz"
            np.savez(images, x=self.source_images(str(cell.source), teacher, seed).numpy())
            plain = {
                "teacher": {"weights": str(self.weights)},
                "images": str(images),
                "stage": [stage],
                "seed": seed,
            }
            summary = run_compression(
                Path(folder) / "run", read_job(CompressJob, plain), real=self.data
            )
        record = summary["stages"][0]
        latency = {}
        if "latency_ms" in record:  # simulated quantization has none
            latency["latency_ms"] = round(record["latency_ms"]["median"], 3)
        return {
            "accuracy": round(100 * record["accuracy"], 2),
            "bytes": record["bytes"],
            "smaller": round(record["smaller"], 1),
            "parameters": record["parameters"],
            "macs": record["macs"],
        } | latency

    def exported(self, teacher: Teacher, kind: str) -> dict[str, Any]:
        """Measure the whole network as a file in its runtime."""
        x, y = self.test_set(teacher.input_spec)
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

    def summary(self, cell: Cell, runs: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **mean_and_std([run["accuracy"] for run in runs]),
            "smaller": round(statistics.mean(run["smaller"] for run in runs), 1),
            "runs": runs,
        }


class CompressInMemory(OfTasks):
    """Single tasks on a network in memory, also measured by agreement with the whole network."""

    def described(self) -> dict[str, Any]:
        sources = {name: [method, to_plain(made)] for name, (method, made) in self.sources.items()}
        settings: dict[str, Any] = {"num_images": self.num_images, "sources": sources}
        if "recorded" in self.config:  # a row in full, and the losses of another one
            tuned, by_logits = (self.task_config(name) for name in self.config["recorded"])
            settings |= to_plain(tuned) | {"by_logits": to_plain(by_logits.finetune.losses)}
        return {"data": self.config["data_title"], "settings": settings}

    def num_seeds(self, cell: Cell, seeds: int) -> int:
        return seeds if cell.source else 1

    def task_config(self, row: str) -> Any:
        """Return the configuration of a row's task."""
        table = dict(self.rows[row])
        return from_plain(CONFIGS[table.pop("task")], table, row)

    @cached_property
    def network(self) -> Teacher:
        """The teacher, opened once."""
        return self.teacher()

    @cached_property
    def tested(self) -> tuple[Tensor, Tensor, Tensor]:
        """Test images, the truth and the teacher's outputs."""
        x, y = self.test_set(self.network.input_spec, self.network.output_spec)
        return x, y, predict(self.network.module, self.network.input_spec, x)

    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        stage, teacher = self.rows[cell.row], self.network
        if stage["task"] in ("export", "int8"):
            return self.as_file(stage, self.images(cell, seed))
        model = self.model(cell, seed)
        figures = self.compared(predict(model, teacher.input_spec, self.tested[0]))
        if self.config.get("parameters"):
            figures["parameters"] = sum(p.numel() for p in model.parameters())
        return figures

    def images(self, cell: Cell, seed: int) -> Tensor:
        """Return the images of a cell, uint8 (N, C, H, W); a black one where it has none."""
        if cell.source:
            return self.source_images(cell.source, self.network, seed)
        return torch.zeros(1, *self.network.input_spec.shape, dtype=torch.uint8)

    def model(self, cell: Cell, seed: int) -> nn.Module:
        """Return the network that a cell makes."""
        stage, teacher = self.rows[cell.row], self.network
        rng = torch.Generator().manual_seed(seed)
        if stage["task"] == "whole":
            return teacher.module
        if stage.get("without_inputs"):
            return quantize_without_inputs(teacher, self.task_config(cell.row))
        images, config = self.images(cell, seed), self.task_config(cell.row)
        if stage["task"] == "prune":
            return prune(teacher, images, config, rng=rng)[0]
        return quantize(teacher, images, config, rng=rng)

    def as_file(self, stage: dict[str, Any], images: Tensor) -> dict[str, Any]:
        """Write a file, as floats or as int8, and measure it in its runtime."""
        module, spec = self.network.module, self.network.input_spec
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"network.{stage['format']}"
            if stage["task"] == "export":
                export(module, path, spec)
            else:
                export_int8(module, spec, images, path, outputs=self.network.output_kind)
            runtime = load_exported(path)
            figures = self.compared(answers(runtime, spec, self.tested[0]))
            latency = round(measure_latency(runtime, spec).median, 2)
            return figures | {"bytes": path.stat().st_size, "latency_ms": latency}

    def compared(self, logits: Tensor) -> dict[str, Any]:
        """Return the score on the test set and agreement with the whole network, in percent."""
        _, y, whole = self.tested
        kind = self.network.output_kind
        return {
            "accuracy": round(100 * scores(logits, y, kind)["accuracy"], 2),
            "agreement": round(100 * agreement(logits, whole, kind), 2),
        }

    def summary(self, cell: Cell, runs: list[dict[str, Any]]) -> dict[str, Any]:
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


class AnyTeacher(CompressInMemory):
    """A teacher made small by several tasks, also measured on the teacher's validation set."""

    names_teacher = True

    def described(self) -> dict[str, Any]:
        return {
            "data": self.config["data"],
            "precision": self.precision.value,
            "num_images": self.num_images,
            "settings": {"rows": self.rows, "sources": self.config["sources"]},
        }

    def place(self, cell: Cell) -> tuple[str, ...]:
        return cell.row, str(cell.source)

    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        teacher = self.network
        known = validation_set(teacher, TINY["num_validation"] if self.tiny else NUM_VALIDATION)
        model = self.model(cell, seed)
        figures = self.compared(predict(model, teacher.input_spec, self.tested[0]))
        drawn = predict(model, teacher.input_spec, known.images)
        validation = agreement(drawn, known.logits, teacher.output_kind)
        return figures | {"validation": round(100 * validation, 2)}

    def model(self, cell: Cell, seed: int) -> nn.Module:
        if self.rows[cell.row]["task"] != "distill":
            return super().model(cell, seed)
        config = self.task_config(cell.row)
        if cell.source == "real":
            row = Row(method="real", distill=config)
            rng = torch.Generator().manual_seed(seed)
            images: Any = open_row(row, self.network, self.data, Path(), rng)
        else:
            _, images = self.sources[str(cell.source)]
            if cell.source == DEFAULT_METHOD:  # with nothing set another may follow it
                images = None
        return ds.distill(self.network, self.config["student"], images, config, seed=seed).model

    def summary(self, cell: Cell, runs: list[dict[str, Any]]) -> dict[str, Any]:
        validation = round(statistics.mean(run["validation"] for run in runs), 2)
        return super().summary(cell, runs) | {"validation": validation}


class Pipeline(SummarizedKind):
    """One pipeline of several stages: a row is a network of it, on one source of images.

    `ours` are the images that the pipeline synthesizes itself; its network's row is named by the
    task alone.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.plain = read_toml(self.config["pipeline"])
        if self.tiny:
            stages = [shrunk(stage) for stage in self.plain["stage"]]
            self.plain = shrunk(self.plain) | {"stage": stages}
        self.num_images = self.plain["num_images"]
        self.networks = lru_cache(len(self.sources) + 2)(self._networks)

    def described(self) -> dict[str, Any]:
        return {"data": self.config["data"], "settings": self.plain}

    def cells(self) -> list[Cell]:
        tasks = [stage["task"] for stage in self.plain["stage"]]
        others = [Cell(task, source) for source in ("real", *self.sources) for task in tasks]
        return [*map(Cell, ("teacher", *tasks)), *others]

    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        network = self.networks(cell.source, seed)[cell.row]
        return {
            "accuracy": round(100 * network["accuracy"], 2),
            "bytes": network["bytes"],
            "macs": network["macs"],
            "latency_ms": network["latency_ms"]["median"],
        }

    def _networks(self, source: str | None, seed: int) -> dict[str, Any]:
        """Run the pipeline; return the records of its networks by task."""
        plain = self.plain | {"seed": seed}
        with tempfile.TemporaryDirectory() as folder:
            if source:
                images = Path(folder) / "images.npz"
                np.savez(images, x=self.source_images(source, self.teacher(), seed).numpy())
                del plain["num_images"]
                plain["images"] = str(images)
            made = run_compression(
                Path(folder) / "run", read_job(CompressJob, plain), real=self.data
            )
        return {"teacher": made["teacher"], **{stage["task"]: stage for stage in made["stages"]}}

    def summary(self, cell: Cell, runs: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **mean_and_std([run["accuracy"] for run in runs]),
            "bytes": round(statistics.mean(run["bytes"] for run in runs)),
            "macs": round(statistics.mean(run["macs"] for run in runs)),
            "latency_ms": round(statistics.median(run["latency_ms"] for run in runs), 3),
            "runs": runs,
        }
