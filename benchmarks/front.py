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
DEFAULT = {"inherit": "structured_noise"}
"""What a record calls the default images, by the first word of its name; elsewhere `default`."""
HEAD = "| | whole network | ours, nothing set | clipped noise instead | real data instead |"


class Front(NamedTuple):
    """One line of the table."""

    title: str
    record: str
    row: str
    """Name of the row in the record, {} for the source where it is part of it."""
    whole: str | None = None
    """Row of the whole network; default: the accuracy of the record's teacher."""


FRONT = (
    Front("LeNet-5 to its half, by logits, MNIST", "inherit_mnist", "{}, inherited"),
    Front("the same, Fashion-MNIST", "inherit_fashion_mnist", "{}, inherited"),
    Front(
        "LeNet-5 to its half, solved, layer by layer, MNIST",
        "inherit_mnist",
        "{}, reconstructed, by layers, 2000 steps",
    ),
    Front(
        "the same, Fashion-MNIST",
        "inherit_fashion_mnist",
        "{}, reconstructed, by layers, 2000 steps",
    ),
    Front(
        "LeNet-5 with half its MACs, merged, no training, MNIST",
        "compress_lenet5_mnist",
        "half the MACs by merging, no training",
    ),
    Front(
        "the same, Fashion-MNIST",
        "compress_lenet5_fashion_mnist",
        "half the MACs by merging, no training",
    ),
    Front(
        "ResNet-20 at 4 bits, layer by layer, CIFAR-10 (JPEG copy)",
        "quantize_resnet20",
        "W4A4 fine-tuned, {}",
        "FP32",
    ),
    Front(
        "ResNet-56 with half its MACs, layer by layer, CIFAR-10 (JPEG copy)",
        "prune_resnet56",
        "50 % of MACs off, {}",
        "ResNet-56",
    ),
    Front(
        "ResNet-56 with 30 % of its MACs off, no training, CIFAR-10 (JPEG copy)",
        "prune_resnet56",
        "30 % of MACs off, reconstructed, {}",
        "ResNet-56",
    ),
)


def read_record(name: str) -> dict[str, Any]:
    """A record by name."""
    record: dict[str, Any] = json.loads((FOLDER / "records" / f"{name}.json").read_text())
    return record


def default_of(record: str) -> str:
    """What a record calls the default images."""
    return DEFAULT.get(record.partition("_")[0], "default")


def figures_of(front: Front) -> tuple[float, list[dict[str, Any]]]:
    """Return the accuracy of the whole network in percent, and the row on each kind of images.

    On the default images, on clipped noise and on real ones; in some records a row is by source.
    """
    record = read_record(front.record)
    rows = record["rows"]
    if front.whole is None:
        whole = 100 * record["teacher"]["accuracy"]
    else:
        whole = rows[front.whole]["accuracy_mean"]
    sources = (default_of(front.record), "noise", "real")
    made = [(rows[front.row.format(source)], source) for source in sources]
    return whole, [row if "runs" in row else row[source] for row, source in made]


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
    data = next(title for title in titles if "MNIST" in title)
    for index, title in enumerate(titles):  # "the same" is of the line above
        if title.startswith("the same"):
            titles[index] = data.rsplit(", ", 1)[0] + title.removeprefix("the same")
        data = titles[index]
    with matplotlib.rc_context({"svg.hashsalt": "front", "text.color": grey, "font.size": 9}):
        figure = Figure(figsize=(8.6, 5.2), layout="constrained")
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
