"""Run the commands of the command line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamstill.cli.flags import PREFIX
from dreamstill.cli.terminal import (
    print_compression,
    print_goal,
    print_network,
    print_next,
    print_rows,
    print_summary,
)
from dreamstill.config import Text, from_plain
from dreamstill.data.images import load_unlabelled
from dreamstill.errors import ConfigError, RunError
from dreamstill.files.reading import understood
from dreamstill.loaders.config import NO_TEACHER, TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.config import CompressJob, DistillJob
from dreamstill.pipelines.demo import demo
from dreamstill.pipelines.finished import measure_network, measure_run, read_job_of
from dreamstill.pipelines.goal import GoalJob
from dreamstill.pipelines.jobs import distill_and_report, inspect, warn_of_input
from dreamstill.pipelines.pursue import run_goal
from dreamstill.pipelines.summary import export_network, export_run, read_run
from dreamstill.pipelines.synthesize import synthesize
from dreamstill.process_group import from_main, is_main, together
from dreamstill.report import write_compression_report, write_goal_report, write_report
from dreamstill.synthesis.activation_statistics import Kind, record_metadata

__all__ = ["RUN"]

OF_JOB: dict[Any, tuple[Callable[[dict[str, Any], Path], None], Callable[[Path], Path]]] = {
    DistillJob: (print_summary, write_report),
    CompressJob: (print_compression, write_compression_report),
    GoalJob: (print_goal, write_goal_report),
}
"""Functions that print the summary of a job and write its page, by its class."""


def _inspect(arguments: argparse.Namespace) -> Any:
    plain = arguments.plain
    known = ("teacher", "device", "images", "plugin")
    if unknown := [name for name in plain if name not in known]:
        raise ConfigError(f"unknown setting {unknown[0]}; known: {', '.join(known)}")
    images = _option(arguments, "images")
    teacher = open_from(_teacher_file(plain), device=_device(arguments))
    result = inspect(teacher, images)
    warn_of_input(teacher)
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
    folder, job = _out(arguments), arguments.job
    result = (run_goal if isinstance(job, GoalJob) else run_compression)(
        folder,
        job,
        resume=arguments.resume,
        real=_option(arguments, "real"),
        on_progress=arguments.bars,
    )
    show, write = OF_JOB[type(job)]
    page = write(folder)
    if not arguments.json:
        _show(show, result, folder)
        measure = f"dreamstill evaluate {folder} --images real.npz"
        print_next(f"open {page}", *([] if result.get("images") else [measure]))
    return result


def _run_in(arguments: argparse.Namespace) -> Path | None:
    """Return the directory that RUN|MODEL names, or None if it names a network."""
    folder = Path(arguments.model)
    if not folder.exists() and ":" not in arguments.model:  # as in timm:resnet18
        raise RunError(f"there is no run and no network at {folder}")
    if not folder.is_dir():
        return None
    if more := [name for name in arguments.plain["teacher"] if name != "weights"]:
        raise ConfigError(f"{folder} is a run, which knows its network: leave --{more[0]} out")
    return folder


def _evaluate(arguments: argparse.Namespace) -> Any:
    folder = _run_in(arguments)
    if folder is None:
        return _evaluate_network(arguments)
    job = read_job_of(folder)
    result = measure_run(
        *(folder, job, arguments.images),
        baseline=arguments.baseline or None,
        device=_option(arguments, "device"),
    )
    show, write = OF_JOB[type(job)]
    page = write(folder)
    if not arguments.json:
        _show(show, result, folder)
        print_next(f"open {page}")
    return result


def _evaluate_network(arguments: argparse.Namespace) -> Any:
    if arguments.baseline:
        raise ConfigError("baseline has no effect on a network: leave it out")
    teacher = open_from(_teacher_file(arguments.plain), device=_device(arguments))
    result = measure_network(teacher, arguments.images)
    if not arguments.json:
        print_network(result, arguments.model)
    return result


def _export(arguments: argparse.Namespace) -> Any:
    formats = tuple(dict.fromkeys(name.strip() for name in arguments.formats.split(",")))
    folder = _run_in(arguments)
    if folder is None:
        teacher = open_from(_teacher_file(arguments.plain))
        records = export_network(teacher, _out(arguments), formats)
    elif arguments.out:
        raise ConfigError(f"out has no effect: the files of a run lie in {folder}; leave it out")
    elif not isinstance(read_job_of(folder), DistillJob):
        raise ConfigError(
            f"{folder} trained no student: give its network, such as {folder / 'network.onnx'}"
        )
    else:
        records = export_run(folder, formats=formats)
        write_report(folder)
    if not arguments.json:
        for record in records:
            print_rows(record["format"], record)
        if folder:
            print_next(f"open {folder / 'report.html'}")
    return records


def _report(arguments: argparse.Namespace) -> Any:
    folder = Path(arguments.folder)
    page = OF_JOB[type(read_job_of(folder))][1](folder)
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
