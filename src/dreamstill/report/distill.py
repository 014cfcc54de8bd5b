"""The page of a distillation: the student beside its teacher, and what it learned from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamstill.errors import RunError
from dreamstill.formatting import percent, shown
from dreamstill.report import figures
from dreamstill.report.page import (
    MOST_CLASSES,
    Figure,
    from_records,
    read_arrays,
    read_log,
    read_table,
    write_page,
)

__all__ = ["write_report"]


@from_records
def write_report(run: Path) -> Path:
    """Write RUN/report.html from the run's records and return its path.

    Reads config.json and, where they are, environment.json, log.jsonl, summary.json and
    pictures.npz; what is absent is left out of the page.

    Raises:
        RunError: there is no run at `run`, or the page cannot be written.

    """
    config = read_table(run / "config.json")
    if not config:
        raise RunError(f"{run} holds no run: config.json is missing")
    if "student" not in config:
        raise RunError(f"{run} holds no run of distill")
    summary = read_table(run / "summary.json")
    pictures = read_arrays(run / "pictures.npz")
    log = read_log(run / "log.jsonl")
    return write_page(
        run,
        "distill.html",
        config=config,
        figures=[*image_figures(pictures), *student_figures(pictures, log)],
        method=config.get("method", ""),
        inherits=config.get("inherit", False),
        student_factory=str(config.get("student", "")).rpartition(":")[2],
        teacher_file=Path(str(config.get("teacher", {}).get("weights", ""))).stem,
        summary=summary,
        warnings=summary.get("warnings", []),
        rows=table_rows(summary),
    )


def table_rows(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The main table: a label and the cells of teacher, student, ratio and noise baseline."""
    networks = [summary.get(name, {}) for name in ("teacher", "student", "noise_baseline")]
    runtime = networks[0].get("latency_ms", {}).get("runtime", "PyTorch")

    def latency(value: dict[str, float]) -> str:
        return f"{value['median']:.3f} ({value['low']:.3f} to {value['high']:.3f})"

    def row(label: str, key: str, show: Callable[[Any], str]) -> tuple[str, list[str]]:
        teacher, student, baseline = ((show(n[key]) if key in n else "-") for n in networks)
        ratio = ""
        values = [n.get(key) for n in networks[:2]]
        if key in ("parameters", "macs", "bytes") and all(values):
            ratio = f"{values[0] / values[1]:.1f} x"
        return label, [teacher, student, ratio, baseline]

    return [
        row("Accuracy on real images", "accuracy", percent),
        row("Agreement with the teacher", "agreement", percent),
        row("Expected calibration error", "ece", percent),
        row("Parameters", "parameters", shown),
        row("Multiply-accumulates an image", "macs", shown),
        row("Bytes of weights", "bytes", shown),
        row(f"Latency in {runtime}, ms (10th to 90th percentile)", "latency_ms", latency),
    ]


def image_figures(pictures: Mapping[str, figures.Array]) -> Iterator[Figure]:
    """What the student learned from, as far as it was kept."""
    if "synthetic_images" in pictures:
        images, classes = pictures["synthetic_images"] / 255, pictures["synthetic_classes"]
        present = list(np.unique(classes))[:MOST_CLASSES]
        rows = [list(images[classes == k][:12]) for k in present]
        yield Figure(
            "Synthetic images",
            figures.class_rows(rows, [str(k) for k in present]),
            "What the student learned from: a row for each class that the teacher names.",
        )
    if "synthetic_mean" in pictures:
        means = {who: f"{who}_mean" for who in ("synthetic", "real") if f"{who}_mean" in pictures}
        rows = [list(pictures[key][:MOST_CLASSES]) for key in means.values()]
        yield Figure(
            "Mean image of each class",
            figures.class_rows(rows, list(means)),
            "Classes from left to right.",
        )


def student_figures(
    pictures: Mapping[str, figures.Array], log: Sequence[dict[str, Any]]
) -> Iterator[Figure]:
    """What became of it, as far as it was recorded."""
    filters = {who: f"{who}_filters" for who in ("teacher", "student")}
    if shown := {who: pictures[key] for who, key in filters.items() if key in pictures}:
        yield Figure(
            "First-layer filters",
            figures.filters(shown),
            "Grey is zero; each network is scaled by its largest weight.",
        )
    if records := [record for record in log if "loss" in record]:
        yield Figure(
            "Loss and agreement",
            figures.curves(records),
            "Held-out synthetic images choose the student; no real image has a say.",
        )
    if "class_histogram" in pictures:
        yield Figure(
            "Classes of the synthetic set",
            figures.bars(pictures["class_histogram"]),
            "Images in the replay buffer as the teacher names them.",
        )
    if "confusion" in pictures:
        yield Figure(
            "Confusion on real images",
            figures.matrix(pictures["confusion"]),
            "Rows are true classes, columns the student's answers.",
        )
