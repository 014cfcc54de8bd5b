"""Tell how well agreement on the validation set ranks networks, from the records of `any_*`.

python -m benchmarks score          # prints a table: one line a teacher
"""

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.runner import RECORDS

__all__ = ["Ranking", "ranking", "ranks", "table"]


class Ranking(NamedTuple):
    """Agreement and accuracy of one teacher's networks."""

    networks: int
    correlation: float
    """Spearman's rank correlation."""
    first: tuple[str, float]
    """The network that agreement ranks first, and its accuracy in percent."""
    best: float
    """The best accuracy in percent."""


def ranks(values: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the rank of each value from 1; equal ones share their mean rank.

    >>> ranks((3.0, 1.0, 3.0))
    array([2.5, 1. , 2.5])
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: NDArray[np.float64] = (counts.cumsum() - (counts - 1) / 2)[places]
    return shared


def ranking(record: dict[str, Any]) -> Ranking:
    """Rank all networks of a record."""
    found = [
        (run["validation"], run["accuracy"], f"{row}, {source}")
        for row, sources in record["rows"].items()
        for source, cell in sources.items()
        for run in cell["runs"]
    ]
    agreements, accuracies, _ = zip(*found, strict=True)
    _, accuracy, name = max(found)
    correlation = float(np.corrcoef(ranks(agreements), ranks(accuracies))[0, 1])
    return Ranking(len(found), correlation, (name, accuracy), max(accuracies))


def table(folder: Path = RECORDS) -> str:
    """Return the rankings of all records as a Markdown table."""
    lines = [
        "| teacher | networks | rank correlation | first by agreement | its accuracy | best |",
        "|---|---|---|---|---|---|",
    ]
    correlations = []
    for path in sorted(folder.glob("any_*.json")):
        networks, correlation, (name, accuracy), best = ranking(json.loads(path.read_text()))
        lines.append(
            f"| {path.stem.removeprefix('any_')} | {networks} | {correlation:.2f} | {name} "
            f"| {accuracy:.2f} | {best:.2f} |"
        )
        correlations.append(correlation)
    return "\n".join([*lines, f"\nMedian: {statistics.median(correlations):.2f}"])


if __name__ == "__main__":
    print(table())
