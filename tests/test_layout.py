"""Laws of the house that can be read off the files."""

import ast
from pathlib import Path

import dreamstill
from dreamstill.synthesis import METHODS

SOURCE = Path(dreamstill.__file__).parent
# each room may import those before it
ORDER = (
    ("errors",),
    ("reading",),
    ("settings", "losses", "nets", "probe", "shown"),
    ("plain", "state_dicts", "store"),
    ("files",),
    ("folder",),
    ("examine",),
    ("teacher",),
    ("metadata", "images"),
    ("synthesis",),
    ("pool", "evaluate", "classes"),
    ("pt2",),
    ("export",),
    ("judge",),
    ("tasks",),
    ("run",),
    ("report", "sources"),
    ("summarize", "links", "kept"),
    ("delivered",),
    ("main_job", "flags", "chain", "learning", "terminal"),
    ("arguments",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def room_of(name: str) -> str:
    return name.removeprefix("dreamstill.").split(".")[0]


def test_imports_run_downward() -> None:
    for path in SOURCE.rglob("*.py"):
        here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for name in imported(path):
            there = room_of(name)
            if name.startswith("dreamstill.") and there != here:
                assert LEVEL[there] < LEVEL[here], f"{path} imports {name}"


def test_methods_do_not_import_one_another_and_tasks_import_none() -> None:
    methods = {f"dreamstill.synthesis.{name}" for name in METHODS}
    for path in [*(SOURCE / "synthesis").glob("*.py"), *(SOURCE / "tasks").glob("*.py")]:
        if path.name not in ("__init__.py", "presets.py"):
            assert not methods & set(imported(path)), path


def test_every_method_is_a_file_with_a_page() -> None:
    for name in METHODS:
        path = SOURCE / "synthesis" / f"{name}.py"
        assert len(path.read_text().splitlines()) <= 200
        assert "Source:" in (ast.get_docstring(ast.parse(path.read_text())) or "")
        if (root := SOURCE.parents[1] / "docs").is_dir():
            assert (root / f"{name}.md").is_file()
