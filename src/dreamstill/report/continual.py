"""The page of a network that learned new classes: what it learned from, gained and forgot."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamstill.errors import RunError
from dreamstill.report import figures
from dreamstill.report.page import (
    MOST_CLASSES,
    Figure,
    from_records,
    read_arrays,
    read_table,
    write_page,
)

__all__ = ["write_continual_report"]


@from_records
def write_continual_report(folder: Path) -> Path:
    """Write FOLDER/report.html from summary.json and pictures.npz; RunError where none is."""
    summary = read_table(folder / "summary.json")
    if "old_classes" not in summary:
        raise RunError(f"{folder} holds no network that learned new classes")
    config = read_table(folder / "config.json")
    return write_page(
        folder,
        "continual.html",
        config=config,
        figures=list(continual_figures(summary, read_arrays(folder / "pictures.npz"))),
        summary=summary,
        warnings=summary.get("warnings", []),
        files=summary["files"],
        not_exported=summary.get("not_exported"),
    )


def most_shown(classes: set[int], num_old: int) -> list[int]:
    """The classes to draw, in order: the new ones, and old ones where there is room.

    >>> most_shown(set(range(30)), 28)[-4:]
    [16, 17, 28, 29]
    """
    new = sorted(k for k in classes if k >= num_old)[:MOST_CLASSES]
    return sorted(classes - set(new))[: MOST_CLASSES - len(new)] + new


def continual_figures(
    summary: dict[str, Any], pictures: Mapping[str, figures.Array]
) -> Iterator[Figure]:
    """Pictures by class, accuracy by class, confusion."""
    num_old = summary["old_classes"]
    if "images" in pictures:
        images, classes = pictures["images"] / 255, pictures["classes"]
        present = most_shown(set(classes.tolist()), num_old)
        names = [f"{k}, {'old' if k < num_old else 'new'}" for k in present]
        rows = [list(images[classes == k]) for k in present]
        yield Figure("What it learned from", figures.class_rows(rows, names))
    if measured := {of["class"]: of for of in summary.get("by_class", [])}:
        by_class = [measured[k] for k in most_shown(set(measured), num_old)]
        before = [100 * (of["before"] or 0) for of in by_class]
        after = [100 * of["after"] for of in by_class]
        names = [str(of["class"]) for of in by_class]
        yield Figure("Accuracy of each class, %", figures.before_after(names, before, after))
    if "confusion" in pictures:
        yield Figure("Confusion", figures.matrix(pictures["confusion"], whose="network"))
