"""Run the commands of the command line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamstill.cli.flags import PREFIX
from dreamstill.cli.terminal import (
    print_compression,
    print_goal,
    print_next,
    print_rows,
    print_summary,
)
from dreamstill.config import Text, from_plain
from dreamstill.data.images import load_real, load_unlabelled
from dreamstill.errors import ConfigError, RunError
from dreamstill.files.reading import understood
from dreamstill.loaders.config import NO_TEACHER, TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.demo import demo
from dreamstill.pipelines.goal import GoalJob
from dreamstill.pipelines.jobs import distill_and_report, inspect
from dreamstill.pipelines.pursue import run_goal
from dreamstill.pipelines.summary import export_run, open_run, read_run, summarize
from dreamstill.pipelines.synthesize import synthesize
from dreamstill.process_group import from_main, is_main, together
from dreamstill.report import write_compression_report, write_goal_report, write_report
from dreamstill.synthesis.activation_statistics import Kind, record_metadata

__all__ = ["RUN"]


def _inspect(arguments: argparse.Namespace) -> Any:
    plain = arguments.plain
    known = ("teacher", "device", "images", "plugin")
    if unknown := [name for name in plain if name not in known]:
        raise ConfigError(f"unknown setting {unknown[0]}; known: {', '.join(known)}")
    images = _option(arguments, "images")
    teacher = open_from(_teacher_file(plain), device=_device(arguments))
    result = inspect(teacher, images)
    if not arguments.json:
        print_rows("teacher", result)
        print_next("dreamstill distill ... --student module:function --out DIR")
    return result


def _metadata(arguments: argparse.Namespace) -> Any:
    kinds = [kind for kind in Kind if kind.value == arguments.kind]
    if not kinds:
        raise ConfigError(f"unknown kind {arguments.kind!r}; known: {', '.join(Kind)}")
    path = _out(arguments)
    if path.exists():
        raise RunError(f"{path} exists: choose another name")
    teacher = open_from(_teacher_file(arguments.plain), device=_device(arguments))
    images = load_unlabelled(arguments.images, teacher.input_spec)
    record_metadata(teacher, images, path, kind=kinds[0])
    result = {"file": str(path), "kind": arguments.kind, "bytes": path.stat().st_size}
    if not arguments.json:
        print_rows("metadata", result)
        print_next(f"dreamstill distill ... --method metadata --synthesis.file {path}")
    return result


def _synthesize(arguments: argparse.Namespace) -> Any:
    folder = _out(arguments)
    job = arguments.job
    with together():
        result = synthesize(folder, job, resume=arguments.resume, on_progress=arguments.bars)
    if not arguments.json and result:
        print_rows("synthetic images", result)
        print_next(f"dreamstill prune ... --images {folder / 'images.npz'} --out DIR")
    return result


def _distill(arguments: argparse.Namespace) -> Any:
    if arguments.resume:
        given = ["MODEL"] if arguments.model else []
        given += [name.replace(PREFIX, "--") for name in vars(arguments) if PREFIX in name]
        given += [f"--{name}" for name in ("config", "out") if getattr(arguments, name)]
        if given:
            raise ConfigError(f"--resume continues the run as it began: leave {given[0]} out")
        folder = Path(arguments.resume)
    else:
        folder = _out(arguments)
    with together():
        job = arguments.job
        if arguments.resume:  # the others need not see the directory
            job = from_main(read_run(folder) if is_main() else None)
        result = distill_and_report(
            folder,
            job,
            resume=bool(arguments.resume),
            real=_option(arguments, "real"),
            on_progress=arguments.bars,
        )
    if not arguments.json and result:
        _show(print_summary, result, folder)
        evaluate = f"dreamstill evaluate {folder} --images real.npz"
        export = f"dreamstill export {folder} --formats onnx,pt2,pte"
        print_next(*([] if result["images"] else [evaluate]), export)
    return result


def _compress(arguments: argparse.Namespace) -> Any:
    folder, job, toward = _out(arguments), arguments.job, isinstance(arguments.job, GoalJob)
    result = (run_goal if toward else run_compression)(
        folder,
        job,
        resume=arguments.resume,
        real=_option(arguments, "real"),
        on_progress=arguments.bars,
    )
    page = (write_goal_report if toward else write_compression_report)(folder)
    if not arguments.json:
        _show(print_goal if toward else print_compression, result, folder)
        print_next(f"open {page}")
    return result


def _evaluate(arguments: argparse.Namespace) -> Any:
    folder = Path(arguments.folder)
    device = _device(arguments)
    _, teacher, _ = open_run(folder, device=device)
    real = load_real(arguments.images, teacher.input_spec, teacher.output_spec)
    result = summarize(
        folder,
        real=real,
        source=Path(arguments.images).name,
        baseline=arguments.baseline or None,
        device=device,
    )
    page = write_report(folder)
    if not arguments.json:
        _show(print_summary, result, folder)
        print_next(f"open {page}")
    return result


def _export(arguments: argparse.Namespace) -> Any:
    folder = Path(arguments.folder)
    formats = tuple(dict.fromkeys(name.strip() for name in arguments.formats.split(",")))
    records = export_run(folder, formats=formats)
    page = write_report(folder)
    if not arguments.json:
        for record in records:
            print_rows(record["format"], record)
        print_next(f"open {page}")
    return records


def _report(arguments: argparse.Namespace) -> Any:
    folder = Path(arguments.folder)
    if (folder / "candidates").is_dir():
        page = write_goal_report(folder)
    elif (folder / "stages").is_dir():
        page = write_compression_report(folder)
    else:
        page = write_report(folder)
    if not arguments.json:
        print(page)
    return {"report": str(page)}


def _demo(arguments: argparse.Namespace) -> Any:
    folder = Path(arguments.out)
    result = demo(folder, seed=arguments.seed, resume=arguments.resume, on_progress=arguments.bars)
    if not arguments.json:
        _show(print_summary, result, folder)
        print_next(f"open {folder / 'report.html'}")
    return result


def _show(
    show: Callable[[dict[str, Any], Path], None], result: dict[str, Any], folder: Path
) -> None:
    """Print a summary; raise RunError if values read from the run directory do not fit."""
    with understood(folder, RunError, "holds a record that no run writes"):
        show(result, folder)


def _option(arguments: argparse.Namespace, name: str) -> Any:
    """Return an option that is not a job field: from the command line, else the file, else None."""
    stated, typed = arguments.plain.get(name), getattr(arguments, name, None)
    return from_plain(Text | None, stated if typed is None else typed, name)


def _device(arguments: argparse.Namespace) -> str:
    return _option(arguments, "device") or "cpu"


def _out(arguments: argparse.Namespace) -> Path:
    out = _option(arguments, "out")
    if not out:
        raise ConfigError("nowhere to write to: give --out DIR")
    return Path(out)


def _teacher_file(plain: dict[str, Any]) -> TeacherFile:
    table = plain.get("teacher", {})
    if isinstance(table, dict) and "weights" not in table:
        raise ConfigError(NO_TEACHER)
    file: TeacherFile = from_plain(TeacherFile, table, "teacher")
    return file


RUN: dict[str, Callable[[argparse.Namespace], Any]] = {
    "inspect": _inspect,
    "synthesize": _synthesize,
    "distill": _distill,
    "compress": _compress,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
    "metadata": _metadata,
    "demo": _demo,
}
"""Functions by command; a command that is missing here is a compression of one stage."""
