"""Render the records as the tables of benchmarks/README.md.

python -m benchmarks table          # rewrites the tables in place
"""

import json
import statistics
import tomllib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
MARK = "<!-- the tables: python -m benchmarks table -->"
ROWS = {
    "structured_noise": "structured baseline",
    "noise": "noise baseline",
    "real": "real-data bound",
}
HEAD = (
    "| row | student % | agreement % | seconds | queries |",
    "|---|---|---|---|---|",
)


def lines_of(record: dict[str, Any]) -> list[str]:
    """A protocol record's rows, the best first, then the published figures.

    A † marks rows that are `outdated`: made before their method was mended, and not made anew.
    """
    ordered = sorted(record["rows"].items(), key=lambda item: -item[1]["accuracy_mean"])
    lines = []
    for name, row in ordered:
        lines.append(
            f"| {ROWS.get(name, name)}{' †' * row.get('outdated', False)} | {mean_and_spread(row)} "
            f"| {row['agreement_mean']:.2f} | {row['seconds_mean']:.0f} | {row['queries']:,} |"
        )
    lines += [
        f"| published: {source} | {value:.2f} | | | |"
        for source, value in record["published"].items()
    ]
    return lines


def mean_and_spread(row: dict[str, Any]) -> str:
    """The mean over the seeds and their sample standard deviation, or that there is one seed."""
    spread = " (1 seed)" if row["accuracy_std"] is None else f" ± {row['accuracy_std']:.2f}"
    return f"{row['accuracy_mean']:.2f}{spread}"


NOTES = tomllib.loads((FOLDER / "notes.toml").read_text())
"""What the papers have and our records have not, and why, by record."""
UNSHOWN = ("runs", "forgetting", "commit", "settings", "versions", "note")
"""Of a row."""


def plain_lines(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Any other record: its rows as they stand, a column for each name; nested ones by source."""
    rows = {name: with_latency(name, with_spread(row)) for name, row in rows.items()}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row if key not in UNSHOWN))
    columns.sort(key=lambda column: column == "latency_ms")  # the last
    lines = [f"| | {' | '.join(c.replace('_', ' ') for c in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, row in rows.items():
        cells = [shown(row[column]) if column in row else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def with_spread(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its accuracy over the seeds in one cell, where it has seeds."""
    if "accuracy_mean" not in row:
        return row
    rest = {key: row[key] for key in row if key not in ("accuracy_mean", "accuracy_std")}
    return {"accuracy": mean_and_spread(row), **rest}


def with_latency(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row by source; of files in their own runtime with the median latency of all runs."""
    if not name.startswith(("FP32", "int8")) or "runs" in row:
        return row
    runs = [run for source in row.values() for run in source["runs"]]
    return row | {"latency_ms": round(statistics.median(run["latency_ms"] for run in runs), 3)}


def shown(value: Any) -> str:
    """A cell: a number, or accuracy and how much smaller, where that is known."""
    if isinstance(value, dict):
        smaller = f", {value['smaller']:g}x" if "smaller" in value else ""
        return mean_and_spread(value) + smaller
    return "" if value is None else f"{value}"


def section(record: dict[str, Any]) -> str:
    """A record as a titled table."""
    title = f"### {record['name']}"
    teacher = record.get("teacher")
    text = record["data"]
    if teacher:
        name = teacher["factory"].rpartition(":")[2]
        text += f", teacher `{name}` of {100 * teacher['accuracy']:.2f} %"
        text += f" (trained on {teacher['trained_on']})"
    if "student" in record:
        text += f", student `{record['student'].rpartition(':')[2]}`"
        rows = [*HEAD, *lines_of(record)]
    else:
        if teacher:
            text += "; accuracy in % and how much smaller, fine-tuned or calibrated on each source"
        rows = plain_lines(record["rows"])
    note = ["", NOTES[record["name"]]] if record["name"] in NOTES else []
    return "\n".join([title, "", text, "", *rows, *note])


def tables(folder: Path = FOLDER / "records") -> str:
    """All records, in Markdown."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return "\n\n".join(section(record) for record in records)


def page() -> str:
    """The README with the tables as the records have them now."""
    before, _, _ = (FOLDER / "README.md").read_text().partition(MARK)
    return f"{before}{MARK}\n\n{tables()}\n"


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page())
