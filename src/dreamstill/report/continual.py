"""The page of a network that learned new classes: what it learned from, gained and forgot."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dreamstill.errors import RunError
from dreamstill.report import MOST_CLASSES, figures, flatten, read_arrays, read_table, write_page

__all__ = ["write_continual_report"]


def write_continual_report(folder: Path) -> Path:
    """Write FOLDER/report.html from summary.json and pictures.npz; RunError where none is."""
    summary = read_table(folder / "summary.json")
    if "old_classes" not in summary:
        raise RunError(f"{folder} holds no network that learned new classes")
    environment = Environment(
        loader=PackageLoader("dreamstill.report", "."), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("continual.html").render(
        summary=summary,
        figures=[
            (title, base64.b64encode(png).decode())
            for title, png in continual_figures(summary, read_arrays(folder / "pictures.npz"))
        ],
        settings=flatten(read_table(folder / "settings.json")),
        environment=flatten(read_table(folder / "environment.json")),
    )
    return write_page(folder / "report.html", page)


def continual_figures(
    summary: dict[str, Any], pictures: dict[str, figures.Array]
) -> list[tuple[str, bytes]]:
    """Pictures by class, accuracy by class, confusion, as (title, PNG)."""
    drawn = []
    if "images" in pictures:
        images, classes = pictures["images"] / 255, pictures["classes"]
        present = sorted(set(classes.tolist()))[:MOST_CLASSES]
        names = [f"{k}, {'old' if k < summary['old_classes'] else 'new'}" for k in present]
        rows = [list(images[classes == k]) for k in present]
        drawn += [("What it learned from", figures.class_rows(rows, names))]
    if by_class := summary.get("by_class", [])[:MOST_CLASSES]:
        before = [100 * (of["before"] or 0) for of in by_class]
        after = [100 * of["after"] for of in by_class]
        names = [str(of["class"]) for of in by_class]
        drawn += [("Accuracy of each class, %", figures.before_after(names, before, after))]
    if "confusion" in pictures:
        confusion = pictures["confusion"]
        names = [str(k) for k in range(len(confusion))]
        drawn += [("Confusion", figures.matrix(confusion, names, whose="network"))]
    return drawn
