"""Read the records of a run's directory and write them as one self-contained HTML page."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from dreamstill.config import read_plain
from dreamstill.errors import RunError
from dreamstill.files.reading import StrPath, reading, understood
from dreamstill.files.writing import write_atomically
from dreamstill.report import figures
from dreamstill.report.reproduce import as_toml, flatten, stated

__all__ = [
    "MOST_CLASSES",
    "Figure",
    "class_label",
    "from_records",
    "read_arrays",
    "read_log",
    "read_table",
    "write_page",
]

MOST_CLASSES = 20
"""Rows shown in pictures of classes; a thousand would not be looked at."""


class Figure(NamedTuple):
    """A figure and the words around it."""

    title: str
    plot: figures.Plot
    caption: str = ""
    wide: bool = False
    """Whether it has the whole width of the page, not half of it."""

    @property
    def uri(self) -> str:
        """The picture itself, as the source of an <img>."""
        return "data:image/svg+xml," + quote(figures.svg(self.plot), safe=" /:;,=+'{}@")


def from_records(write: Callable[[Path], Path]) -> Callable[[StrPath], Path]:
    """Make the writer of a page raise RunError for a record that no run writes."""

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
    command: str,
    verdict: str,
    figures: Sequence[Figure],
    warnings: Sequence[str] = (),
    **values: Any,
) -> Path:
    """Fill a template of this package and write FOLDER/report.html, whole or not at all.

    Args:
        folder: of the run; its environment.json is shown below the settings, if it is there.
        template: name of the HTML file in this package.
        config: settings of the run, shown as TOML.
        command: the command that repeats the run.
        verdict: the result in a sentence or two.
        figures: in their order.
        warnings: shown before all else.
        values: what the template itself needs.

    Raises:
        RunError: the page cannot be written.

    """
    templates = Environment(
        loader=PackageLoader("dreamstill.report", "."), autoescape=True, undefined=StrictUndefined
    )
    page = templates.get_template(template).render(
        settings=as_toml(stated(config)),
        command=command,
        verdict=verdict,
        environment=flatten(read_table(folder / "environment.json")),
        figures=figures,
        warnings=warnings,
        **values,
    )
    target = folder / "report.html"
    write_atomically(target, page.encode("utf-8", errors="backslashreplace"))
    return target


def class_label(number: int, names: Sequence[str]) -> str:
    """Return the name of a class, or its number where it has none.

    >>> class_label(1, ["cat", "dog"]), class_label(2, ["cat", "dog"])
    ('dog', '2')
    """
    return names[number] if number < len(names) else str(number)


def read_table(path: Path) -> dict[str, Any]:
    """Read the table in a JSON file, empty where there is no file; RunError for a damaged one."""
    return read_plain(path) if path.is_file() else {}


def read_arrays(path: Path) -> dict[str, figures.Array]:
    """Read the arrays of an .npz file, none where there is no file; RunError for a damaged one."""
    if not path.is_file():
        return {}
    with reading(path, RunError), path.open("rb") as file, np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
        if odd := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
            raise ValueError(f"{odd[0]} in it is no array")
        return arrays


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records of log.jsonl up to a line that a kill cut short."""
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
