"""Tell what the default is worth on teachers it was not made for, and how well its score ranks.

python -m benchmarks score          # prints two tables, from the records of `any_*`
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.runner import RECORDS
from benchmarks.table import mean_and_spread

__all__ = ["Ranking", "accuracies", "ranking", "rankings", "ranks", "records"]


SOURCES = {"noise", "structured_noise", "image_programs", "real"}
"""What a row needs to be shown."""


class Ranking(NamedTuple):
    """Agreement and accuracy of one teacher's networks."""

    networks: int
    correlation: float
    """Spearman's rank correlation among the networks made without real images."""
    with_real: float
    """The same with those made on real images, which a user without data cannot have."""
    first: list[str]
    """Networks that agreement ranks first: several where it is the same."""
    worst_first: float
    """The least accuracy of these, in percent."""
    best: float
    """The best accuracy of all, in percent."""


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
    most = max(agreement for agreement, *_ in found)
    first = [(name, accuracy) for agreement, accuracy, name in found if agreement == most]
    drawn = [each for each in found if not each[2].endswith("real")]
    best = max(accuracy for _, accuracy, _ in found)
    return Ranking(
        networks=len(found),
        correlation=correlation(drawn),
        with_real=correlation(found),
        first=[name for name, _ in first],
        worst_first=min(accuracy for _, accuracy in first),
        best=best,
    )


def correlation(found: list[tuple[float, float, str]]) -> float:
    """Return the rank correlation of agreement with accuracy; 0 of fewer than 3 networks."""
    if len(found) < 3:
        return 0.0
    agreements, accuracies, _ = zip(*found, strict=True)
    return float(np.corrcoef(ranks(agreements), ranks(accuracies))[0, 1])


def records(folder: Path = RECORDS) -> dict[str, dict[str, Any]]:
    """Return the records of `any_*` by the teacher's name."""
    paths = sorted(folder.glob("any_*.json"))
    return {path.stem.removeprefix("any_"): json.loads(path.read_text()) for path in paths}


def rankings(found: dict[str, dict[str, Any]]) -> str:
    """Return the ranking of each teacher's networks as a Markdown table."""
    lines = [
        "| teacher | networks | rank correlation | with real images | first by agreement "
        "| least accuracy of these | best |",
        "|---|---|---|---|---|---|---|",
    ]
    for teacher, record in found.items():
        of = ranking(record)
        lines.append(
            f"| {teacher} | {of.networks} | {of.correlation:.2f} | {of.with_real:.2f} "
            f"| {'; '.join(of.first)} | {of.worst_first:.2f} | {of.best:.2f} |"
        )
    return "\n".join(lines)


def accuracies(found: dict[str, dict[str, Any]]) -> str:
    """Return accuracy by source as a Markdown table, of the rows that have all sources.

    The last column is the default's share of the way from noise to real images, where these are
    more than a point apart.
    """
    lines = [
        "| teacher | task | noise | structured noise | image programs | real | of the way |",
        "|---|---|---|---|---|---|---|",
    ]
    for teacher, record in found.items():
        for task, row in record["rows"].items():
            if not row.keys() >= SOURCES:
                continue
            low, ours, high = (
                row[name]["accuracy_mean"] for name in ("noise", "image_programs", "real")
            )
            share = f"{100 * (ours - low) / (high - low):.0f} %" if high - low > 1 else ""
            cells = (
                mean_and_spread(row[name])
                for name in ("noise", "structured_noise", "image_programs", "real")
            )
            lines.append(f"| {teacher} | {task} | {' | '.join(cells)} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(accuracies(records()), rankings(records()), sep="\n\n")
