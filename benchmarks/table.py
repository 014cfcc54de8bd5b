"""Render the records as the tables of benchmarks/README.md.

python -m benchmarks.table          # rewrites the tables in place
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
MARK = "<!-- the tables: python -m benchmarks.table -->"
ROWS = {"structured_noise": "structured floor", "noise": "noise floor", "real": "real-data bound"}
HEAD = (
    "| row | student % (3 seeds) | agreement % | seconds | queries |",
    "|---|---|---|---|---|",
)


def lines_of(record: dict[str, Any]) -> list[str]:
    """A record's rows, the best first, then the published figures."""
    ordered = sorted(record["rows"].items(), key=lambda item: -item[1]["accuracy_mean"])
    lines = []
    for name, row in ordered:
        spread = "" if row["accuracy_std"] is None else f" ± {row['accuracy_std']:.2f}"
        lines.append(
            f"| {ROWS.get(name, name)} | {row['accuracy_mean']:.2f}{spread} "
            f"| {row['agreement_mean']:.2f} | {row['seconds_mean']:.0f} | {row['queries']:,} |"
        )
    lines += [
        f"| published: {source} | {value:.2f} | | | |"
        for source, value in record["published"].items()
    ]
    return lines


def section(record: dict[str, Any]) -> str:
    """A record as a titled table."""
    teacher = record["teacher"]
    title = f"### {record['name']}"
    text = (
        f"{record['data']}, teacher `{teacher['factory'].rpartition(':')[2]}` of "
        f"{100 * teacher['accuracy']:.2f} %, student `{record['student'].rpartition(':')[2]}`"
    )
    return "\n".join([title, "", text, "", *HEAD, *lines_of(record)])


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
