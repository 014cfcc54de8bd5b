"""The page of a network that learned new classes: what it learned from, gained and forgot."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamstill.errors import RunError
from dreamstill.report import figures
from dreamstill.report.page import MOST_CLASSES, Figure, read_arrays, read_table, write_page

__all__ = ["write_continual_report"]


def write_continual_report(folder: Path) -> Path:
    """Write FOLDER/report.html from summary.json and pictures.npz; RunError where none is."""
    summary = read_table(folder / "summary.json")
    if "old_classes" not in summary:
        raise RunError(f"{folder} holds no network that learned new classes")
    return write_page(
        folder,
        "continual.html",
        settings=read_table(folder / "settings.json"),
        figures=list(continual_figures(summary, read_arrays(folder / "pictures.npz"))),
        summary=summary,
        files=summary["files"],
    )


def continual_figures(
    summary: dict[str, Any], pictures: Mapping[str, figures.Array]
) -> Iterator[Figure]:
    """Pictures by class, accuracy by class, confusion."""
    if "images" in pictures:
        images, classes = pictures["images"] / 255, pictures["classes"]
        present = sorted(set(classes.tolist()))[:MOST_CLASSES]
        names = [f"{k}, {'old' if k < summary['old_classes'] else 'new'}" for k in present]
        rows = [list(images[classes == k]) for k in present]
        yield Figure("What it learned from", figures.class_rows(rows, names))
    if by_class := summary.get("by_class", [])[:MOST_CLASSES]:
        before = [100 * (of["before"] or 0) for of in by_class]
        after = [100 * of["after"] for of in by_class]
        names = [str(of["class"]) for of in by_class]
        yield Figure("Accuracy of each class, %", figures.before_after(names, before, after))
    if "confusion" in pictures:
        yield Figure("Confusion", figures.matrix(pictures["confusion"], whose="network"))
