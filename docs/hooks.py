"""Parts of the site that are made from the project: settings, and the page of benchmarks."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import dreamstill
from dreamstill.cli.flags import field_docs
from dreamstill.config import to_plain

ROOT = Path(__file__).parents[1]
OUTSIDE = {"../benchmarks/README.md": "benchmarks.md"}
"""Files outside docs/ that pages refer to, and their page in the site."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages whose text is outside docs/."""
    for path, page in OUTSIDE.items():
        text = (ROOT / "docs" / path).read_text().replace("](../docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to the site's pages, and put tables in the place of `<!-- settings: X -->`."""
    for path, page in OUTSIDE.items():
        markdown = markdown.replace(f"]({path}", f"]({page}")
    markdown = markdown.replace(" ± ", "\u00a0±\u00a0")  # a figure stays on its line
    return re.sub(r"<!-- settings: (\w+) -->", lambda found: settings(found[1]), markdown)


def settings(name: str) -> str:
    """Return the table of a configuration class: a row for each field."""
    kind = getattr(dreamstill, name)
    docs = field_docs(kind)
    rows = [
        f"| `{field.name}` | {_default(field)} | {docs[field.name].replace('|', chr(92) + '|')} |"
        for field in dataclasses.fields(kind)
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def _default(field: Any) -> str:
    """Return a field's default as a cell."""
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        return f"[{type(made).__name__}](configuration.md#{type(made).__name__.lower()})"
    if field.default is dataclasses.MISSING:
        return "required"
    value = to_plain(field.default)
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        return f"`{','.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
