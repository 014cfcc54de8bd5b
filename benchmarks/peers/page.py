"""The page of the comparison, made from its record."""

from pathlib import Path
from typing import Any

__all__ = ["tables", "write_page"]

BEGIN, END = "<!-- made by benchmarks/peers -->", "<!-- end -->"


def tables(record: dict[str, Any]) -> str:
    """Return the tables."""
    return ""


def write_page(path: Path, record: dict[str, Any]) -> None:
    """Write the tables between the marks of a page."""
    before, rest = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{tables(record)}\n\n{END}{rest.split(END)[1]}")
