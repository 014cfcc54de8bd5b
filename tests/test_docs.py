"""What the pages tell a user to type exists."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamstill.cli.parser import parse
from dreamstill.evaluation import agreement, predict
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.config import CompressJob, read_job

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PYTHON = ROOT / "docs" / "python.md"


def commands(page: Path) -> list[list[str]]:
    """Indented lines that start with dreamstill, continued ones joined, comments off."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^ {4,}(dreamstill .*)$", text, flags=re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


COMMANDS = [(page.stem, command) for page in PAGES for command in commands(page)]


def test_there_are_commands_in_the_pages() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda v: " ".join(v)[:60])
def test_every_command_is_understood(page: str, command: list[str]) -> None:
    if "--help" in command:
        with pytest.raises(SystemExit):
            parse(command)
    else:
        parse([word for word in command if word != "..."])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_chain_in_its_page_is_a_chain() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "chain.md").read_text(), re.DOTALL)
    assert len(read_job(CompressJob, tomllib.loads(text)).stages) == 3


@pytest.mark.parametrize("page", [p for p in PAGES if p != PYTHON], ids=lambda p: p.stem)
def test_python_in_the_pages_runs_up_to_its_last_line(page: Path) -> None:
    """The last line is the work itself, on files that a reader has and we do not."""
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec("\n".join(block.rstrip().splitlines()[:-1]), {})


def test_the_page_on_python_runs_from_top_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PYTHON.read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    with seeded(torch.Generator().manual_seed(0)):  # the students start at random
        exec("\n".join(blocks), names)
    shown, said = names["images"][:500], names["logits"][:500]
    for name in ("student", "pruned", "factorized", "quantized"):
        assert agreement(predict(names[name], names["spec"], shown), said) > 0.7, name
    assert names["work"].step == 100
    assert Path("pruned.onnx").is_file()
