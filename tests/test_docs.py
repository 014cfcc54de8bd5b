"""What the pages tell a user to type works, and the site builds."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from dreamstill.cli.parser import parse
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.config import STAGE_CONFIGS, CompressJob, read_job
from dreamstill.synthesis.registry import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])
TUTORIALS = [page for page in PAGES if page.stem.startswith("tutorial_")]
"""Pages that the site runs, as notebooks."""
PYTHON = [page for page in PAGES if page not in TUTORIALS and "```python" in page.read_text()]
SITE = ["material", "mkdocstrings", "nbformat", "nbclient", "ipykernel", "executorch"]
"""What the site is built with."""
NAV = (ROOT / "mkdocs.yml").read_text()


class Block(NamedTuple):
    """A fenced block of a page."""

    title: str
    """Name of the file that it is; empty for one to type."""
    text: str


def blocks(page: Path, language: str) -> list[Block]:
    """Return the fenced blocks of a language in a page, without their indentation."""
    fence = re.compile(rf'^( *)```{language}(?: title="([^"]+)")?\n(.*?)^ *```', re.DOTALL | re.M)
    return [
        Block(title, re.sub(rf"^{indent}", "", text, flags=re.M))
        for indent, title, text in fence.findall(page.read_text())
    ]


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page, fenced or indented: continued lines joined, no comments."""
    text = page.read_text().replace("\\\n", " ")
    text = text.replace(" ... ", " --teacher.weights net.safetensors ")  # what a reader fills in
    fenced = "\n".join(re.findall(r"```(?:bash|console|sh)\n(.*?)```", text, re.DOTALL))
    lines = re.findall(r"^ *(dreamstill .*)$", fenced, re.M)
    lines += re.findall(r"^ {4,}(dreamstill .*)$", text, re.M)
    return [shlex.split(line, comments=True)[1:] for line in lines]


COMMANDS = [(page.stem, command) for page in PAGES for command in commands(page)]


def test_there_are_commands_in_the_pages() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.usefixtures("tables_restored")
@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda v: str(v)[:60])
def test_every_command_is_understood(
    page: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.toml").write_text(blocks(DOCS / "compress.md", "toml")[0].text)
    for title, text in blocks(DOCS / "extending.md", "python"):
        if title:
            (tmp_path / title).write_text(text)
    monkeypatch.chdir(tmp_path)
    if {"--help", "--help-all", "--version"} & {*command}:
        with pytest.raises(SystemExit):
            parse(command)
    else:
        parse(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "toml")], ids=lambda p: p.stem)
def test_every_toml_file_in_the_pages_is_a_pipeline(page: Path) -> None:
    for block in blocks(page, "toml"):
        if block.title:  # a file of another program
            continue
        assert read_job(CompressJob, tomllib.loads(block.text)).stages


@pytest.mark.usefixtures("tables_restored")
@pytest.mark.parametrize("page", PYTHON, ids=lambda p: p.stem)
def test_python_in_the_pages_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page run in order, in an empty folder; one with a title is a file there."""
    if "ai_edge_litert" in page.read_text():
        pytest.importorskip("litert_torch", reason="no litert-torch: dreamstill[litert]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = readers_names()
    with seeded(torch.Generator().manual_seed(0)):
        for title, text in blocks(page, "python"):
            if title:
                (tmp_path / title).write_text(text)
            else:
                exec(compile(text, str(page), "exec", dont_inherit=True), names)


def readers_names() -> dict[str, Any]:
    """Return what a page takes for granted: a network of the reader's, a smaller one, its input."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 64, 10),
    )
    small_net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    return {"net": net, "small_net": small_net, "m": (0.5,) * 3, "s": (0.25,) * 3}


def test_every_method_and_task_has_a_page_and_every_page_a_place() -> None:
    for name in (*METHODS, *STAGE_CONFIGS):
        if name != "int8":  # in the page of quantize
            assert (DOCS / f"{name}.md").exists(), name
    for page in DOCS.glob("*.md"):
        assert f"- {page.name}" in NAV or f": {page.name}" in NAV, page


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, SITE)),
    reason="what the site is built with is not installed: pip install 'dreamstill[docs]'",
)
def test_the_site_builds_without_a_warning_and_asks_the_network_for_nothing(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    loads = re.compile(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(?:https?:)?//[^>]+")
    for page in tmp_path.rglob("*.html"):
        assert not loads.search(page.read_text()), page
    configured = (tmp_path / "configuration.html").read_text()
    assert "settings:" not in configured
    assert "keep_layer" in configured
    for page in TUTORIALS:
        shown = (tmp_path / f"{page.stem}.html").read_text()
        assert f'href="{page.stem}.ipynb"' in shown
        notebook = json.loads((tmp_path / f"{page.stem}.ipynb").read_text())
        install, *cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
        assert install["source"][0].startswith("%pip install ")
        assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
        assert any(cell["outputs"] for cell in cells)
    assert "<table><tr><th>network</th>" in shown  # a result, in the last one, in Python
