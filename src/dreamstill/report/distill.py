"""Write the page of a distillation: the student beside its teacher, and its training images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dreamstill.errors import RunError
from dreamstill.files.reading import check_run
from dreamstill.formatting import (
    BASELINES,
    agreement_of,
    bytes_of_memory,
    capitalized,
    more_scores,
    percent,
    shown,
    words_of,
)
from dreamstill.report import figures
from dreamstill.report.page import (
    MOST_CLASSES,
    Figure,
    class_label,
    from_records,
    read_arrays,
    read_log,
    read_table,
    write_page,
)
from dreamstill.report.verdict import verdict_of_distill

__all__ = ["write_report"]


@from_records
def write_report(run: Path) -> Path:
    """Write RUN/report.html from the run's records and return its path.

    Reads config.json and, where they are, environment.json, log.jsonl, summary.json and
    pictures.npz; what is absent is left out of the page.

    Raises:
        RunError: there is no run at `run`, or the page cannot be written.

    """
    check_run(run)
    config = read_table(run / "config.json")
    if "student" not in config:
        raise RunError(f"{run} holds no run of distill")
    summary = read_table(run / "summary.json")
    pictures = read_arrays(run / "pictures.npz")
    log, names = read_log(run / "log.jsonl"), summary.get("class_names", [])
    return write_page(
        run,
        "distill.html",
        config=config,
        command="dreamstill distill --config run.toml --out runs/again",
        verdict=verdict_of_distill(summary),
        figures=[*image_figures(pictures, names), *student_figures(pictures, log, names)],
        method=summary.get("method", ""),
        memory=bytes_of_memory(memory) if (memory := summary.get("memory_estimate")) else "",
        baselines=[title for name, title in BASELINES.items() if name in summary],
        student_factory=str(config.get("student", "")).rpartition(":")[2],
        teacher_file=Path(str(config.get("teacher", {}).get("weights", ""))).stem,
        summary=summary,
        score=capitalized(words_of(summary).score),
        warnings=summary.get("warnings", []),
        rows=table_rows(summary),
    )


def table_rows(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the main table: labels, and the cells of teacher, student, ratio and baselines.

    What was measured of none of them has no row.
    """
    names = ["teacher", "student", *(name for name in BASELINES if name in summary)]
    networks = [summary.get(name, {}) for name in names]
    runtime = networks[0].get("latency_ms", {}).get("runtime", "PyTorch")

    def median(latency: dict[str, float]) -> str:
        return f"{latency['median']:.3f}"

    def spread(latency: dict[str, float]) -> str:
        return f"{latency['low']:.3f} to {latency['high']:.3f}"

    def row(label: str, key: str, show: Callable[[Any], str]) -> tuple[str, list[str]]:
        teacher, student, *baselines = ((show(n[key]) if key in n else "-") for n in networks)
        ratio = ""
        values = [n.get(key) for n in networks[:2]]
        if key in ("parameters", "macs", "bytes") and all(values):
            ratio = f"{values[0] / values[1]:.1f} x"
        return label, [teacher, student, ratio, *baselines]

    validated = partial(agreement_of, summary)
    rows: list[tuple[str, str, Callable[[Any], str]]] = [
        (f"{capitalized(words_of(summary).score)} on real images", "accuracy", percent),
        ("Agreement with the teacher", "agreement", percent),
        ("Agreement on the validation images", "validation_agreement", validated),
        ("Image visits", "image_visits", shown),
        *((capitalized(title), key, show) for title, key, show in more_scores()),
        ("Parameters", "parameters", shown),
        ("Multiply-accumulates per image", "macs", shown),
        ("Bytes of weights", "bytes", shown),
        (f"Latency in {runtime}, ms (median)", "latency_ms", median),
        ("10th to 90th percentile of it", "latency_ms", spread),
    ]
    return [row(label, key, show) for label, key, show in rows if any(key in n for n in networks)]


ROWS = {True: ": a row for each class that the teacher predicts", False: ""}


def image_figures(pictures: Mapping[str, figures.Array], names: Sequence[str]) -> Iterator[Figure]:
    """Yield figures of the images that the student learned from, as far as they were kept."""
    if "synthetic_images" in pictures:
        images, classes = pictures["synthetic_images"] / 255, pictures["synthetic_classes"]
        present = list(np.unique(classes))[:MOST_CLASSES]
        rows = [list(images[classes == k][:12]) for k in present]
        yield Figure(
            "Synthetic images",
            figures.class_rows(rows, [class_label(k, names) for k in present]),
            f"The student learned from images like these{ROWS[len(rows) > 1]}.",
            wide=True,
        )
    if "synthetic_mean" in pictures:
        means = {who: f"{who}_mean" for who in ("synthetic", "real") if f"{who}_mean" in pictures}
        rows = [list(pictures[key][:MOST_CLASSES]) for key in means.values()]
        shown = [class_label(k, names) for k in range(len(rows[0]))]
        yield Figure(
            "Mean image of each class",
            figures.class_rows(rows, list(means)),
            f"From left to right: {', '.join(shown)}.",
            wide=True,
        )


def student_figures(
    pictures: Mapping[str, figures.Array], log: Sequence[dict[str, Any]], names: Sequence[str]
) -> Iterator[Figure]:
    """Yield figures of the training and of the student, as far as they were recorded."""
    filters = {who: f"{who}_filters" for who in ("teacher", "student")}
    if shown := {who: pictures[key] for who, key in filters.items() if key in pictures}:
        yield Figure(
            "First-layer filters",
            figures.filters(shown),
            "Grey is zero; each network is scaled by its largest weight.",
            wide=True,
        )
    if records := [record for record in log if "loss" in record]:
        yield Figure(
            "Training loss",
            figures.loss_curve(records),
            "On the synthetic training images: each step (pale) and a moving average.",
        )
    if records := [record for record in log if "agreement" in record]:
        yield Figure(
            "Agreement during training",
            figures.agreement_curve(records),
            "On the teacher's validation set, which selects the student. It ranks students; it is "
            "not their accuracy on real images.",
        )
    if "class_histogram" in pictures:
        counts = pictures["class_histogram"]
        yield Figure(
            "Classes of the synthetic images",
            figures.bars(counts, [class_label(k, names) for k in range(len(counts))]),
            "Images in the replay buffer, by the class that the teacher predicts.",
        )
    if "confusion" in pictures:
        counts = pictures["confusion"]
        yield Figure(
            "Confusion on real images",
            figures.matrix(counts, [class_label(k, names) for k in range(len(counts))]),
            "A row is a true class, a column the student's answer; the stronger the color, the "
            "larger the share of the row.",
        )
