"""One self-contained HTML page from a run's records. It imports no torch."""

import base64
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from dreamstill.errors import RunError, first_line
from dreamstill.report import figures
from dreamstill.settings import read_plain

__all__ = ["MOST_CLASSES", "write_report"]

MOST_CLASSES = 20
"""Rows shown in pictures of classes; a thousand would not be looked at."""


def write_report(run: Path) -> Path:
    """Write RUN/report.html from the run's records and return its path.

    Reads settings.json and, where they are, environment.json, log.jsonl, summary.json and
    pictures.npz; what is absent is left out of the page.

    Raises:
        RunError: there is no run at `run`, or the page cannot be written.

    """
    settings = read_table(run / "settings.json")
    if not settings:
        raise RunError(f"{run} holds no run: settings.json is missing")
    if "student" not in settings:
        raise RunError(f"{run} holds no run of distill")
    environment = Environment(
        loader=PackageLoader("dreamstill.report", "."), autoescape=True, undefined=StrictUndefined
    )
    summary = read_table(run / "summary.json")
    page = environment.get_template("page.html").render(
        method=settings.get("method", ""),
        inherits=settings.get("inherit", False),
        student_factory=str(settings.get("student", "")).rpartition(":")[2],
        teacher_file=Path(str(settings.get("teacher", {}).get("weights", ""))).stem,
        summary=summary,
        rows=table_rows(summary),
        figures=_figures(run),
        settings=flatten(settings),
        environment=flatten(read_table(run / "environment.json")),
    )
    return write_page(run / "report.html", page)


def write_page(target: Path, page: str) -> Path:
    """Write a page whole or not at all; RunError if it cannot."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


def read_table(path: Path) -> dict[str, Any]:
    """What a JSON file holds, nothing where there is none; RunError for a damaged one."""
    return read_plain(path) if path.is_file() else {}


def read_arrays(path: Path) -> dict[str, figures.Array]:
    """What an .npz file holds, nothing where there is none; RunError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise RunError(f"{path} is damaged: {first_line(error)}") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of log.jsonl; from a line torn by a kill on they are left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


def flatten(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows.

    >>> flatten({"seed": 0, "distill": {"steps": 5}})
    [('seed', '0'), ('distill.steps', '5')]
    """
    rows = []
    for name, value in settings.items():
        if isinstance(value, dict):
            rows += flatten(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, str(value)))
    return rows


def table_rows(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The main table: a label and the cells of teacher, student, ratio and noise floor."""
    networks = [summary.get(name, {}) for name in ("teacher", "student", "noise_floor")]

    def percent(value: float) -> str:
        return f"{100 * value:.2f} %"

    def count(value: int) -> str:
        return f"{value:,}"

    def latency(value: dict[str, float]) -> str:
        return f"{value['median']:.3f} ({value['low']:.3f} to {value['high']:.3f})"

    def row(label: str, key: str, show: Callable[[Any], str]) -> tuple[str, list[str]]:
        teacher, student, floor = ((show(n[key]) if key in n else "-") for n in networks)
        ratio = ""
        values = [n.get(key) for n in networks[:2]]
        if key in ("parameters", "macs", "bytes") and all(values):
            ratio = f"{values[0] / values[1]:.1f} x"
        return label, [teacher, student, ratio, floor]

    return [
        row("Accuracy on real images", "accuracy", percent),
        row("Agreement with the teacher", "agreement", percent),
        row("Expected calibration error", "ece", percent),
        row("Parameters", "parameters", count),
        row("Multiply-accumulates an image", "macs", count),
        row("Bytes of weights", "bytes", count),
        row("Latency, ms (10th to 90th percentile)", "latency_ms", latency),
    ]


def _figures(run: Path) -> list[dict[str, str]]:
    """Title, caption, alternative text and data URI of every figure that the records allow."""
    pictures = read_arrays(run / "pictures.npz")
    made: list[dict[str, str]] = []

    def add(title: str, caption: str, png: bytes) -> None:
        uri = "data:image/png;base64," + base64.b64encode(png).decode()
        made.append({"title": title, "caption": caption, "uri": uri})

    def names(number: int) -> list[str]:
        return [str(n) for n in range(number)]

    if "synthetic_images" in pictures:
        images, classes = pictures["synthetic_images"] / 255, pictures["synthetic_classes"]
        present = list(np.unique(classes))[:MOST_CLASSES]
        rows = [list(images[classes == k][:12]) for k in present]
        labels = names(int(classes.max()) + 1)
        add(
            "Synthetic images",
            "What the student learned from: a row for each class that the teacher names.",
            figures.class_rows(rows, [labels[k] for k in present]),
        )
    if "synthetic_mean" in pictures:
        rows = [list(pictures["synthetic_mean"][:MOST_CLASSES])]
        labels = ["synthetic"]
        if "real_mean" in pictures:
            rows.append(list(pictures["real_mean"][:MOST_CLASSES]))
            labels.append("real")
        add(
            "Mean image of each class",
            "Classes from left to right.",
            figures.class_rows(rows, labels),
        )
    filters = {
        n: pictures[f"{n}_filters"] for n in ("teacher", "student") if f"{n}_filters" in pictures
    }
    if filters:
        add(
            "First-layer filters",
            "Grey is zero; each network is scaled by its largest weight.",
            figures.filters(filters),
        )
    records = [r for r in read_log(run / "log.jsonl") if "loss" in r]
    if records:
        add(
            "Loss and agreement",
            "Held-out synthetic images choose the student; no real image has a say.",
            figures.curves(records),
        )
    if "class_histogram" in pictures:
        counts = pictures["class_histogram"]
        add(
            "Classes of the synthetic set",
            "Images in the pool as the teacher names them.",
            figures.bars(counts, names(len(counts))),
        )
    if "confusion" in pictures:
        confusion = pictures["confusion"]
        add(
            "Confusion on real images",
            "Rows are true classes, columns the student's answers.",
            figures.matrix(confusion, names(len(confusion))),
        )
    return made
