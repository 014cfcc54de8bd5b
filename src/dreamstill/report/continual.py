"""Write the page of a network that learned new classes: its images, gains and forgetting."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamstill.errors import RunError
from dreamstill.report import figures
from dreamstill.report.page import (
    MOST_CLASSES,
    Figure,
    class_label,
    from_records,
    read_arrays,
    read_table,
    write_page,
)
from dreamstill.report.verdict import verdict_of_continual

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
        command="dreamstill learn_classes --config run.toml --out runs/again",
        verdict=verdict_of_continual(summary),
        figures=list(continual_figures(summary, read_arrays(folder / "pictures.npz"))),
        summary=summary,
        warnings=summary.get("warnings", []),
        files=summary["files"],
        not_exported=summary.get("not_exported"),
    )


def most_shown(classes: set[int], num_old: int) -> list[int]:
    """Return the classes to draw, in order: the new ones, and old ones where there is room.

    >>> most_shown(set(range(30)), 28)[-4:]
    [16, 17, 28, 29]
    """
    new = sorted(k for k in classes if k >= num_old)[:MOST_CLASSES]
    return sorted(classes - set(new))[: MOST_CLASSES - len(new)] + new


def continual_figures(
    summary: dict[str, Any], pictures: Mapping[str, figures.Array]
) -> Iterator[Figure]:
    """Yield images by class, accuracy by class and the confusion matrix."""
    num_old: int = summary["old_classes"]
    names = summary.get("class_names", [])

    def label(k: int) -> str:
        return class_label(k, names) + ", new" * (k >= num_old)

    if "images" in pictures:
        images, classes = pictures["images"] / 255, pictures["classes"]
        present = most_shown(set(classes.tolist()), num_old)
        yield Figure(
            "Training images",
            figures.class_rows(
                [list(images[classes == k]) for k in present], list(map(label, present))
            ),
            "Those of new classes are real, and labeled by the user; those of old classes are as "
            "the old network predicts, and no labels of theirs were given.",
            wide=True,
        )
    if measured := {of["class"]: of for of in summary.get("by_class", [])}:
        by_class = [measured[k] for k in most_shown(set(measured), num_old)]
        before = [100 * (of["before"] or 0) for of in by_class]
        after = [100 * of["after"] for of in by_class]
        yield Figure(
            "Accuracy of each class",
            figures.before_after(
                [label(of["class"]) for of in by_class], before, after, unit="accuracy, %"
            ),
            "On test images; a new class has no accuracy before.",
        )
    if "confusion" in pictures:
        counts = pictures["confusion"]
        yield Figure(
            "Confusion",
            figures.matrix(counts, list(map(label, range(len(counts)))), whose="network"),
            "A row is a true class, a column the network's answer; the stronger the color, the "
            "larger the share of the row.",
        )
