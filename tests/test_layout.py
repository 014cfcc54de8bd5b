"""Laws of the house that can be read off the files."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import dreamstill
from dreamstill.synthesis.registry import METHODS

SOURCE = Path(dreamstill.__file__).parent
# each room may import those before it
ORDER = (
    ("errors", "formatting", "losses", "progress", "quiet"),
    ("files", "input_spec", "process_group"),
    ("config",),
    ("output_spec",),
    ("nn",),
    ("evaluation",),
    ("exporters", "graph", "profiling", "report", "teacher"),
    ("black_box",),
    ("continual", "data", "loaders"),
    ("synthesis",),
    ("distillation",),
    ("compression",),
    ("pipelines",),
    ("api", "cli"),
    ("__init__", "__main__"),
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


def modules_of(package: str) -> list[Path]:
    return [*(SOURCE / package).rglob("*.py")]


def test_methods_do_not_import_one_another_and_compression_imports_none() -> None:
    methods = {f"dreamstill.synthesis.methods.{name}" for name in METHODS}
    for path in [*modules_of("synthesis/methods"), *modules_of("compression")]:
        assert not methods & set(imported(path)), path


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {
        path.relative_to(SOURCE.parent).with_suffix("").as_posix().replace("/", "."): path
        for path in SOURCE.rglob("*.py")
    }
    order = TopologicalSorter(
        {
            name: {other for other in imported(path) if other in modules}
            for name, path in modules.items()
        }
    )
    order.prepare()  # CycleError names the modules


def test_every_method_is_a_file_with_a_page() -> None:
    for name in METHODS:
        path = SOURCE / "synthesis" / "methods" / f"{name}.py"
        assert len(path.read_text().splitlines()) <= 210
        assert "Source:" in (ast.get_docstring(ast.parse(path.read_text())) or "")
        if (root := SOURCE.parents[1] / "docs").is_dir():
            assert (root / f"{name}.md").is_file()


def test_no_function_is_longer_than_60_lines() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"
