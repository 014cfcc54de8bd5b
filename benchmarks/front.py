"""Render the table and the picture of the project's README, all of the default images.

python -m benchmarks front          # rewrites both in place, from the records
"""

import io
import json
from typing import Any, NamedTuple

import matplotlib.lines
import matplotlib.patches
from matplotlib.figure import Figure

from benchmarks.table import FOLDER, mean_and_spread

README = FOLDER.parent / "README.md"
PICTURE = FOLDER.parent / "docs" / "pictures" / "front.svg"
DEFAULT = "image_programs"
"""The default method, by which records name its images."""
HEAD = "| | whole network | ours, nothing set | clipped noise instead | real data instead |"


class Front(NamedTuple):
    """One line of the table."""

    title: str
    record: str
    row: str


FRONT = tuple(
    Front(f"{task}: {title}", f"any_{name}", row)
    for task, row, teachers in (
        (
            "Half of every width, no step",
            "inherited",
            {
                "mnist": "LeNet-5, MNIST",
                "fashion_mnist": "LeNet-5, Fashion-MNIST",
                "fashion_mnist_bn": "LeNet-5 with BatchNorm, Fashion-MNIST",
                "group_norm": "CNN with GroupNorm, Fashion-MNIST",
                "filled_shapes": "CNN, filled shapes 1x40x24",
                "usps": "CNN without normalization, USPS",
                "kegnet": "ResNet-14 of others, Fashion-MNIST",
            },
        ),
        (
            "Half of the MACs pruned, no step",
            "pruned",
            {
                "mnist_bn": "LeNet-5 with BatchNorm, MNIST",
                "filled_shapes": "CNN, filled shapes 1x40x24",
                "kegnet": "ResNet-14 of others, Fashion-MNIST",
            },
        ),
        (
            "Weights and activations of 4 bits",
            "W4A4",
            {
                "mnist": "LeNet-5, MNIST",
                "kegnet": "ResNet-14 of others, Fashion-MNIST",
            },
        ),
    )
    for name, title in teachers.items()
)


def read_record(name: str) -> dict[str, Any]:
    """A record by name."""
    record: dict[str, Any] = json.loads((FOLDER / "records" / f"{name}.json").read_text())
    return record


def figures_of(front: Front) -> tuple[float, list[dict[str, Any]]]:
    """Return the accuracy of the whole network in percent, and the row on each kind of images.

    On the default images, on clipped noise and on real ones.
    """
    record = read_record(front.record)
    row = record["rows"][front.row]
    return 100 * record["teacher"]["accuracy"], [row[s] for s in (DEFAULT, "noise", "real")]


def line_of(front: Front) -> str:
    """Return a line of the table."""
    whole, rows = figures_of(front)
    return f"| {front.title} | {whole:.2f} | {' | '.join(map(mean_and_spread, rows))} |"


def page(text: str) -> str:
    """The README with this table as the records have it now."""
    before, _, rest = text.partition(HEAD)
    _, _, after = rest.partition("\n\n")
    lines = [HEAD, "|---" * 5 + "|", *map(line_of, FRONT)]
    return before + "\n".join(lines) + "\n\n" + after


def picture() -> bytes:
    """Return an SVG of the table: a group of bars per line, and the whole network as a mark."""
    grey, names = "#888888", ("ours, no data", "clipped noise, no data", "real data")
    colors = ("#6fa5ec", "#c9c9c9", "#e8b45a")
    titles = [front.title for front in FRONT]
    with matplotlib.rc_context({"svg.hashsalt": "front", "text.color": grey, "font.size": 9}):
        figure = Figure(figsize=(9.6, 6.6), layout="constrained")
        axes = figure.subplots()
        for index, (whole, rows) in enumerate(map(figures_of, FRONT)):
            for part, (row, color) in enumerate(zip(rows, colors, strict=True)):
                axes.barh(index + 0.26 * (part - 1), row["accuracy_mean"], 0.24, color=color)
                at = row["accuracy_mean"] - 0.8, index + 0.26 * (part - 1)
                label = f"{row['accuracy_mean']:.1f}"
                axes.text(*at, label, va="center", ha="right", color="#1c1c1c", fontsize=7.5)
            axes.plot([whole, whole], [index - 0.42, index + 0.42], color="#d1495b", lw=2)
        axes.set_yticks(range(len(FRONT)), titles, color=grey)
        axes.invert_yaxis()
        axes.set_xlim(0, 101)
        axes.set_xlabel("test accuracy, %", color=grey)
        axes.tick_params(colors=grey, length=0)
        axes.spines[:].set_visible(False)
        handles: list[Any] = [matplotlib.patches.Patch(color=color) for color in colors]
        handles.append(matplotlib.lines.Line2D([], [], color="#d1495b", lw=2))
        labels = [*names, "the whole network"]
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


if __name__ == "__main__":
    README.write_text(page(README.read_text()))
    PICTURE.write_bytes(picture())
