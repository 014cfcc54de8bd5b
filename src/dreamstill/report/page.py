"""What every page is made of: the records of a folder in, one self-contained HTML file out."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from dreamstill.errors import RunError, first_line
from dreamstill.folder import write_atomically
from dreamstill.report.figures import Array
from dreamstill.settings import read_plain

__all__ = ["MOST_CLASSES", "Figure", "read_arrays", "read_log", "read_table", "write_page"]

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


def write_page(
    folder: Path,
    template: str,
    *,
    settings: dict[str, Any],
    figures: Sequence[Figure],
    **values: Any,
) -> Path:
    """Fill a template of this package and write FOLDER/report.html, whole or not at all.

    The folder's environment.json goes below `settings`, if it is there.

    Raises:
        RunError: the page cannot be written.

    """
    templates = Environment(
        loader=PackageLoader("dreamstill.report", "."), autoescape=True, undefined=StrictUndefined
    )
    page = templates.get_template(template).render(
        settings=flatten(settings),
        environment=flatten(read_table(folder / "environment.json")),
        figures=figures,
        **values,
    )
    target = folder / "report.html"
    write_atomically(target, page.encode())
    return target


def read_table(path: Path) -> dict[str, Any]:
    """What a JSON file holds, nothing where there is none; RunError for a damaged one."""
    return read_plain(path) if path.is_file() else {}


def read_arrays(path: Path) -> dict[str, Array]:
    """What an .npz file holds, nothing where there is none; RunError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise RunError(f"{path} is damaged: {first_line(error)}") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of log.jsonl; from a line torn by a kill on they are left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


def flatten(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows.

    >>> flatten({"seed": 0, "distill": {"steps": 5}})
    [('seed', '0'), ('distill.steps', '5')]
    """
    rows = []
    for name, value in settings.items():
        if isinstance(value, dict):
            rows += flatten(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, str(value)))
    return rows
