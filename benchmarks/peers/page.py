"""The page of the comparison, made from its record."""

from pathlib import Path
from typing import Any

__all__ = ["tables", "write_page"]

BEGIN, END = "<!-- made by benchmarks/peers -->", "<!-- end -->"
TITLES = {"resnet20": "ResNet-20, CIFAR-10", "efficientnet_lite0": "EfficientNet-Lite0, ImageNet"}
FIELDS = {
    "accuracy": "accuracy %",
    "agreement": "agreement %",
    "macs": "MACs",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
    "peak_mb": "peak MB",
}
"""Columns, of those that a table has."""


def tables(record: dict[str, Any]) -> str:
    """Return a table for each network and task, with the settings of the rows below it."""
    sections = []
    for network, title in TITLES.items():
        rows = {
            name.removeprefix(f"{network}, "): row
            for name, row in record["rows"].items()
            if name.startswith(f"{network}, ")
        }
        for task in dict.fromkeys(name.partition(": ")[0] for name in rows if ": " in name):
            mine = {n.removeprefix(f"{task}: "): r for n, r in rows.items() if task in n}
            sections.append(section(f"{title}: {task}", {"floats": rows["floats"]} | mine))
    return "\n\n".join(sections)


def section(title: str, rows: dict[str, dict[str, Any]]) -> str:
    """Return a titled table, and a list of the settings."""
    fields = [field for field in FIELDS if any(field in row for row in rows.values())]
    lines = [f"## {title}", "", f"| | {' | '.join(FIELDS[field] for field in fields)} |"]
    lines.append("|---" * (len(fields) + 1) + "|")
    for name, row in rows.items():
        cells = [f"{row[field]:,}" if field in row else "" for field in fields]
        if "error" in row:
            cells[:2] = [f"fails: {row['error']}".replace("|", r"\|"), ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", '??? note "Settings and versions"', *settings(rows)])


def settings(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each row that has settings."""
    lines = []
    for name, row in rows.items():
        if "settings" in row:
            said = ", ".join(f"`{key}` {value}" for key, value in row["settings"].items())
            versions = ", ".join(f"{key} {value}" for key, value in row.get("versions", {}).items())
            parts = [part for part in (said, row.get("note"), versions) if part]
            lines.append(f"    - {name}: {'; '.join(parts)}")
    return lines


def write_page(path: Path, record: dict[str, Any]) -> None:
    """Write the tables between the marks of a page."""
    before, rest = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{tables(record)}\n\n{END}{rest.split(END)[1]}")
