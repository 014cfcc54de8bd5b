"""Render the records as the table of benchmarks/README.md.

python -m benchmarks.table          # rewrites the table in place
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
MARK = "<!-- the table: python -m benchmarks.table -->"
ROWS = {"structured_noise": "structured floor", "noise": "noise floor", "real": "real-data bound"}


def lines_of(record: dict[str, Any]) -> list[str]:
    """A table line for the method, the floors, the bound, and the published figures."""
    teacher = 100 * record["teacher"]["accuracy"]
    lines = []
    for row in ("method", *ROWS):
        found = record["rows"][row]
        spread = f" ± {found['accuracy_std']:.2f}"
        lines.append(
            f"| {record['recipe']} | {ROWS.get(row, record['method'])} | {teacher:.2f} "
            f"| {found['accuracy_mean']:.2f}{spread} | {found['agreement_mean']:.2f} "
            f"| {found['seconds_mean']:.0f} | {found['queries']:,} |"
        )
    lines += [
        f"| {record['recipe']} | published: {source} | | {value:.2f} | | | |"
        for source, value in record["published"].items()
    ]
    return lines


def table(folder: Path = FOLDER / "records") -> str:
    """All records, in Markdown."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    head = [
        "| recipe | row | teacher % | student % (3 seeds) | agreement % | seconds | queries |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(line for record in records for line in lines_of(record))])


def page() -> str:
    """The README with the table as the records have it now."""
    before, _, _ = (FOLDER / "README.md").read_text().partition(MARK)
    return f"{before}{MARK}\n\n{table()}\n"


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page())
