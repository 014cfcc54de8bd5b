"""What every page is made of: the records of a folder in, one self-contained HTML file out."""

import base64
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from dreamstill.config import read_plain
from dreamstill.errors import RunError
from dreamstill.files.reading import StrPath, reading, understood
from dreamstill.files.writing import write_atomically
from dreamstill.report.figures import Array

__all__ = [
    "MOST_CLASSES",
    "Figure",
    "from_records",
    "read_arrays",
    "read_log",
    "read_table",
    "write_page",
]

MOST_CLASSES = 20
"""Rows shown in pictures of classes; a thousand would not be looked at."""


class Figure(NamedTuple):
    """A PNG with its words."""

    title: str
    png: bytes
    caption: str = ""

    @property
    def uri(self) -> str:
        """The picture itself, as the source of an <img>."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def from_records(write: Callable[[Path], Path]) -> Callable[[StrPath], Path]:
    """Let the writer of a page end in RunError where a record is not what a run writes."""

    @functools.wraps(write)
    def write_or_name(folder: StrPath) -> Path:
        with understood(folder, RunError, "holds a record that no run writes"):
            return write(Path(folder))

    return write_or_name


def write_page(
    folder: Path,
    template: str,
    *,
    config: dict[str, Any],
    figures: Sequence[Figure],
    warnings: Sequence[str] = (),
    **values: Any,
) -> Path:
    """Fill a template of this package and write FOLDER/report.html, whole or not at all.

    The folder's environment.json goes below `config`, if it is there; `warnings` come first.

    Raises:
        RunError: the page cannot be written.

    """
    templates = Environment(
        loader=PackageLoader("dreamstill.report", "."), autoescape=True, undefined=StrictUndefined
    )
    page = templates.get_template(template).render(
        config=flatten(config),
        environment=flatten(read_table(folder / "environment.json")),
        figures=figures,
        warnings=warnings,
        **values,
    )
    target = folder / "report.html"
    write_atomically(target, page.encode("utf-8", errors="backslashreplace"))
    return target


def read_table(path: Path) -> dict[str, Any]:
    """What a JSON file holds, nothing where there is none; RunError for a damaged one."""
    return read_plain(path) if path.is_file() else {}


def read_arrays(path: Path) -> dict[str, Array]:
    """What an .npz file holds, nothing where there is none; RunError for a damaged one."""
    if not path.is_file():
        return {}
    with reading(path, RunError), path.open("rb") as file, np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
        if odd := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
            raise ValueError(f"{odd[0]} in it is no array")
        return arrays


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of log.jsonl; from a line torn by a kill on they are left out."""
    if not path.is_file():
        return []
    records = []
    with reading(path, RunError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


def flatten(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows, values as they are written in a file.

    >>> flatten({"seed": 0, "distill": {"steps": 5, "drops": [0.5, 0.75]}, "size": None})
    [('seed', '0'), ('distill.steps', '5'), ('distill.drops', '0.5, 0.75'), ('size', 'none')]
    >>> flatten({"files": [{"path": "a"}, {"path": "b"}]})
    [('files.1.path', 'a'), ('files.2.path', 'b')]
    """
    rows = []
    for name, value in config.items():
        if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            value = {str(number): item for number, item in enumerate(value, 1)}
        if isinstance(value, dict):
            rows += flatten(value, f"{prefix}{name}.")
        else:
            values = value if isinstance(value, list) else [value]
            rows.append((prefix + name, ", ".join(map(_written, values))))
    return rows


def _written(value: Any) -> str:
    """A plain value as a settings file has it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
