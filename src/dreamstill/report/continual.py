"""Draw a network that learned new classes: its images, gains and forgetting."""

from collections.abc import Iterator, Mapping
from typing import Any

from dreamstill.report import figures
from dreamstill.report.page import MOST_CLASSES, Figure, class_label

__all__ = ["continual_figures"]


def most_shown(classes: set[int], num_old: int) -> list[int]:
    """Return the classes to draw, in order: the new ones, and old ones where there is room.

    >>> most_shown(set(range(30)), 28)[-4:]
    [16, 17, 28, 29]
    """
    new = sorted(k for k in classes if k >= num_old)[:MOST_CLASSES]
    return sorted(classes - set(new))[: MOST_CLASSES - len(new)] + new


def continual_figures(
    stage: dict[str, Any], pictures: Mapping[str, figures.Array]
) -> Iterator[Figure]:
    """Yield images by class, accuracy by class and the confusion matrix."""
    num_old: int = stage["old_classes"]
    names = stage.get("class_names", [])

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
    if measured := {of["class"]: of for of in stage.get("by_class", [])}:
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
