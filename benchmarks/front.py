"""Render the rows of the project's README, all of the default images, from the records.

python -m benchmarks front          # rewrites the table in place
"""

import json
from typing import Any, NamedTuple

from benchmarks.table import FOLDER, mean_and_spread

README = FOLDER.parent / "README.md"
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


def cell_of(row: dict[str, Any], source: str) -> str:
    """A row's figure; in some records a row is by source."""
    found = row if "runs" in row else row.get(source)
    return "not yet made" if found is None else mean_and_spread(found)


def line_of(front: Front) -> str:
    """The whole network, then the row on the default images, on clipped noise and on real ones."""
    record = read_record(front.record)
    rows = record["rows"]
    if front.whole is None:
        whole = 100 * record["teacher"]["accuracy"]
    else:
        whole = rows[front.whole]["accuracy_mean"]
    sources = (default_of(front.record), "noise", "real")
    cells = [cell_of(rows.get(front.row.format(source), {}), source) for source in sources]
    return f"| {front.title} | {whole:.2f} | {' | '.join(cells)} |"


def page(text: str) -> str:
    """The README with this table as the records have it now."""
    before, _, rest = text.partition(HEAD)
    _, _, after = rest.partition("\n\n")
    lines = [HEAD, "|---" * 5 + "|", *map(line_of, FRONT)]
    return before + "\n".join(lines) + "\n\n" + after


if __name__ == "__main__":
    README.write_text(page(README.read_text()))
