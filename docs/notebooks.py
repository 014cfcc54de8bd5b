"""Notebooks of the tutorials: made from their pages, and run, so that both show what comes out."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FENCE = re.compile(
    r'^```(?:python|bash(?=\npip ))(?: title="([^"]+)")?\n(.*?)\n```$', re.DOTALL | re.MULTILINE
)
"""A block that becomes a cell: Python, perhaps with the name of its file, or what to install."""
WARNINGS = "error,ignore::PendingDeprecationWarning"  # ipykernel 7.4 gives one as it ends


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a notebook for each tutorial."""
    pages = [page for page in files.documentation_pages() if page.src_uri.startswith("tutorial_")]
    with ThreadPoolExecutor(2) as pool:
        notebooks = pool.map(executed, [page.content_string for page in pages])
    for page, notebook in zip(pages, notebooks, strict=True):
        text = nbformat.writes(notebook)
        files.append(File.generated(config, f"{page.name}.ipynb", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Put a link to the notebook below a tutorial's title, and below its blocks what comes out."""
    if not page.file.src_uri.startswith("tutorial_"):
        return markdown
    notebook = executed(page.file.content_string)
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    markdown = FENCE.sub(lambda block: block[0] + outputs(next(cells)), markdown)
    name = f"{page.file.name}.ipynb"
    link = f'As a notebook: [{name}]({name}){{ download="{name}" }}'
    return markdown.replace("\n\n", f"\n\n{link}\n\n", 1)


@cache
def executed(markdown: str) -> NotebookNode:
    """Return a page as a notebook that was run in an empty folder; a warning is an error."""
    notebook = to_notebook(markdown)
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            resources={"metadata": {"path": folder}},
            extra_arguments=["--log-level=CRITICAL"],
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(env={**os.environ, "PYTHONWARNINGS": WARNINGS})
    return notebook


def to_notebook(markdown: str) -> NotebookNode:
    """Return a page as a notebook: without links, which lead nowhere in a file by itself."""
    text, *rest = FENCE.split(re.sub(r"\[([^]]+)\]\([^)]+\.md[^)]*\)", r"\1", markdown))
    cells = [new_markdown_cell(text.strip())]
    for title, code, text in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        if code.startswith("pip "):
            cells.append(new_code_cell(f"%{code}", metadata={"tags": ["skip-execution"]}))
        else:
            cells.append(new_code_cell(f"%%writefile {title}\n{code}" if title else code))
        if text.strip():
            cells.append(new_markdown_cell(text.strip()))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def outputs(cell: NotebookNode) -> str:
    """Return what came out of a cell as Markdown; that a file was written need not be said."""
    made = [] if cell.source.startswith("%%") else cell.outputs
    data = [output.get("data") or {"text/plain": output.text.rstrip()} for output in made]
    return "".join(
        f"\n\n{kinds['text/html']}" if "text/html" in kinds else OUTPUT.format(kinds["text/plain"])
        for kinds in data
    )


OUTPUT = "\n\n``` {{ .text .no-copy }}\n{}\n```"
