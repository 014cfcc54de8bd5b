"""The command line: flags are generated from the settings; what they do is elsewhere."""

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType
from typing import Any

from dreamstill.cli.arguments import parse
from dreamstill.cli.flags import PREFIX, given_flags
from dreamstill.cli.terminal import Bars, print_chain, print_continual, print_rows, print_summary
from dreamstill.config import from_plain, merge
from dreamstill.data.images import load_images, load_unlabelled
from dreamstill.errors import (
    ConfigError,
    DreamstillError,
    RunError,
    first_line,
    is_out_of_memory,
    one_line,
    shown,
)
from dreamstill.files.reading import read_toml, understood
from dreamstill.loaders.teacher_file import TeacherFile, open_from
from dreamstill.pipelines import jobs
from dreamstill.pipelines.chain import read_chain, run_chain
from dreamstill.pipelines.continual import LEARNED, ContinualJob, learn_classes
from dreamstill.pipelines.demo import demo
from dreamstill.pipelines.distill import Job
from dreamstill.pipelines.process import settle_process
from dreamstill.pipelines.run_directory import is_vacant
from dreamstill.pipelines.stages import STAGES
from dreamstill.pipelines.summary import export_run, open_run, read_job, summarize
from dreamstill.pipelines.synthesize import read_synthesis, synthesize
from dreamstill.report import write_chain_report, write_continual_report, write_report
from dreamstill.synthesis.activation_statistics import Kind, record_metadata
from dreamstill.synthesis.registry import method_config, student_config

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0 when it worked, 2 on a user's mistake, 130 on Ctrl-C, and 141 where whoever read the
    output has gone, as a shell has it.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    settle_process()
    _find_users_modules()
    arguments = argparse.Namespace()
    try:
        try:
            arguments = parse(sys.argv[1:] if argv is None else argv, COMMANDS)
            _run(arguments)
        finally:
            _flush()
    except BrokenPipeError:
        return 141
    except (DreamstillError, OSError) as error:  # a folder that may not be read is the user's too
        return _fail(_of_system(error) if isinstance(error, OSError) else str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(f"out of memory: {first_line(error)}; lower sizes")
    except KeyboardInterrupt:
        more = "; it goes on with --resume" if _can_resume(arguments) else ""
        print(f"dreamstill: stopped{more}", file=sys.stderr)
        return 130
    return 0


def _find_users_modules() -> None:
    """The user's module:function is in the working folder, and no library is: it comes last."""
    here = str(Path.cwd())
    if sys.path[0] in ("", here):  # where Python puts it for -m and -c
        sys.path.pop(0)
    if not {"", here} & {*sys.path}:
        sys.path.append(here)


def _run(arguments: argparse.Namespace) -> None:
    with ExitStack() as stack:
        if arguments.json:  # the result alone goes to stdout, whatever a factory prints
            stack.enter_context(redirect_stdout(sys.stderr))
        elif isinstance(sys.stdout, io.TextIOWrapper):  # a path need not be of its encoding
            sys.stdout.reconfigure(errors="backslashreplace")
        arguments.bars = stack.enter_context(Bars(quiet=arguments.json))
        result = arguments.run(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))


def _flush() -> None:
    """Write out what was printed; where that fails, Python need not try again on its way out."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _of_system(error: OSError) -> str:
    """What the system says, and of which file."""
    names = [shown(str(name)) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([error.strerror or str(error), *names])


def _fail(message: str) -> int:
    print(f"dreamstill: {one_line(message)}", file=sys.stderr)
    return 2


def _can_resume(arguments: argparse.Namespace) -> bool:
    """There is something in the folder of a command that takes up what it left."""
    resume, out = (getattr(arguments, name, None) for name in ("resume", "out"))
    folder = Path(resume if isinstance(resume, str) else out or "")
    return hasattr(arguments, "resume") and not is_vacant(folder)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


OPTIONS = (
    *("device", "precision", "seed", "checkpoint_every"),
    *("student", "inherit", "reconstruct", "preset"),
)
"""Settings of a job that are no table."""


def _typed(arguments: argparse.Namespace) -> list[str]:
    """Names of the flags that were typed and decide a run."""
    names = (*OPTIONS, "config", "method", "out")
    plain = [n.replace("_", "-") for n in names if getattr(arguments, n, None) is not None]
    return plain + [n.removeprefix(PREFIX) for n in vars(arguments) if n.startswith(PREFIX)]


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """File and flags merged: a plain dict of the job."""
    plain = merge(arguments.table, given_flags(arguments))
    for name in OPTIONS:
        if getattr(arguments, name, None) is not None:
            plain[name] = getattr(arguments, name)
    return plain


def _option(arguments: argparse.Namespace, plain: dict[str, Any], name: str, kind: Any) -> Any:
    """An option that is no setting of a job: as typed, else as the file has it, else None."""
    stated, typed = plain.pop(name, None), getattr(arguments, name)
    return from_plain(kind | None, stated if typed is None else typed, name)


def _teacher_file(plain: dict[str, Any]) -> TeacherFile:
    table = plain.get("teacher", {})
    if not isinstance(table, dict):
        raise ConfigError(f"teacher must be a table of settings; got {shown(table)}")
    if "weights" not in table:
        raise ConfigError("no teacher: give --teacher.weights FILE")
    file: TeacherFile = from_plain(TeacherFile, table, "teacher")
    return file


def _job(arguments: argparse.Namespace, **defaults: Any) -> Job:
    plain = defaults | _settings(arguments) | {"method": arguments.method_name}
    _teacher_file(plain)
    if "student" not in plain:
        raise ConfigError("no student: give --student module:function")
    method, preset = arguments.method_name, plain.pop("preset", None)
    plain["synthesis"] = method_config(method, plain.get("synthesis"), preset)
    plain["distill"] = student_config(method, plain.get("distill"), preset)
    job: Job = from_plain(Job, plain)
    return job


def _inspect(arguments: argparse.Namespace) -> Any:
    """Say what a teacher offers, and which methods can use it."""
    plain = _settings(arguments)
    images = _option(arguments, plain, "images", str) or None
    known = [part.name for part in fields(Job)]
    if unknown := [name for name in plain if name not in known]:
        raise ConfigError(f"unknown setting {unknown[0]}; known: images, {', '.join(known)}")
    device = from_plain(str, plain.get("device", "cpu"), "device")
    teacher = open_from(_teacher_file(plain), device=device)
    result = jobs.inspect(teacher, images)
    if not arguments.json:
        print_rows("teacher", result)
    return result


def _metadata(arguments: argparse.Namespace) -> Any:
    """Record a teacher's statistics on its training images, for its owner to hand out."""
    kinds = [kind for kind in Kind if kind.value == arguments.kind]
    if not kinds:
        raise ConfigError(f"unknown kind {arguments.kind!r}; known: {', '.join(Kind)}")
    plain = given_flags(arguments)
    path = _out(arguments, plain)
    if path.exists():
        raise RunError(f"{path} exists: choose another name")
    teacher = open_from(_teacher_file(plain))
    images = load_unlabelled(arguments.images, teacher.spec)
    record_metadata(teacher, images, path, kind=kinds[0])
    result = {"file": str(path), "kind": arguments.kind, "bytes": path.stat().st_size}
    if not arguments.json:
        print_rows("metadata", result)
    return result


def _synthesize(arguments: argparse.Namespace) -> Any:
    """Make synthetic images and keep them as images.npz, with a picture."""
    num_images = _option(arguments, arguments.table, "num_images", int)
    result = synthesize(
        _out(arguments, arguments.table),
        _job(arguments, student="none:none"),
        1000 if num_images is None else num_images,
        resume=arguments.resume,
        on_progress=arguments.bars,
    )
    if not arguments.json:
        print_rows("synthetic images", result)
    return result


def _distill(arguments: argparse.Namespace) -> Any:
    """Train a student from a teacher and no data."""
    if arguments.resume:
        if typed := _typed(arguments):
            raise ConfigError(
                f"--resume goes on with the run's own settings: leave --{typed[0]} out"
            )
        folder = Path(arguments.resume)
        job = read_job(folder)
    else:
        folder, job = _out(arguments, arguments.table), _job(arguments)
    result = jobs.distill_and_report(
        folder, job, resume=bool(arguments.resume), on_progress=arguments.bars
    )
    if not arguments.json:
        _show(print_summary, result, folder)
    return result


def _chain(arguments: argparse.Namespace) -> Any:
    """Chain tasks on one set of images: distill, prune, quantize, pack, ..."""
    arguments.table = read_toml(arguments.config)
    return _run_chain(arguments, _settings(arguments))


def _single(arguments: argparse.Namespace) -> Any:
    """A chain of this one task."""
    plain = _source(arguments)
    stage = {"task": arguments.task, **plain.pop(arguments.task, {})}
    return _run_chain(arguments, plain | {"stage": [stage]})


def _continual(arguments: argparse.Namespace) -> Any:
    """Learn new classes without the data of the old ones."""
    plain = _source(arguments) | {"new": arguments.new}
    _teacher_file(plain)
    read_synthesis(plain)
    folder = _out(arguments, plain)
    result = learn_classes(
        folder,
        from_plain(ContinualJob, plain),
        resume=arguments.resume,
        real=arguments.real or None,
        on_progress=arguments.bars,
    )
    write_continual_report(folder)
    if not arguments.json:
        print_continual(result, folder)
    return result


def _source(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags, and where the images come from: a plain dict."""
    names = ("images", "num_images", "method")
    named = {name: getattr(arguments, name) for name in names}
    return _settings(arguments) | {k: v for k, v in named.items() if v is not None}


def _run_chain(arguments: argparse.Namespace, plain: dict[str, Any]) -> Any:
    _teacher_file(plain)
    folder = _out(arguments, plain)
    real = _option(arguments, plain, "real", str) or None
    result = run_chain(
        folder,
        read_chain(plain),
        resume=arguments.resume,
        real=real,
        on_progress=arguments.bars,
    )
    write_chain_report(folder)
    if not arguments.json:
        _show(print_chain, result, folder)
    return result


def _evaluate(arguments: argparse.Namespace) -> Any:
    """Measure a finished run on real images, once."""
    folder = Path(arguments.folder)
    _, teacher, _ = open_run(folder)
    real = load_images(arguments.images, teacher.spec, teacher.num_classes)
    source = Path(arguments.images).name
    result = summarize(folder, real=real, source=source, baseline=arguments.baseline or None)
    write_report(folder)
    if not arguments.json:
        _show(print_summary, result, folder)
    return result


def _export(arguments: argparse.Namespace) -> Any:
    """Write a run's student as ONNX, .pt2 or .pte, run each, and compare."""
    folder = Path(arguments.folder)
    formats = tuple(dict.fromkeys(name.strip() for name in arguments.formats.split(",")))
    records = export_run(folder, formats=formats)
    write_report(folder)
    if not arguments.json:
        for record in records:
            print_rows(record.format, asdict(record))
    return [asdict(record) for record in records]


def _report(arguments: argparse.Namespace) -> Any:
    """Write report.html of a run."""
    folder = Path(arguments.folder)
    if (folder / "stages").is_dir():
        page = write_chain_report(folder)
    elif (folder / LEARNED).is_file():
        page = write_continual_report(folder)
    else:
        page = write_report(folder)
    if not arguments.json:
        print(page)
    return {"report": str(page)}


def _demo(arguments: argparse.Namespace) -> Any:
    """Run the main job on the embedded teacher and measure it on embedded digits."""
    folder = Path(arguments.out)
    result = demo(folder, seed=arguments.seed, resume=arguments.resume, on_progress=arguments.bars)
    if not arguments.json:
        _show(print_summary, result, folder)
    return result


def _show(
    show: Callable[[dict[str, Any], Path], None], result: dict[str, Any], folder: Path
) -> None:
    """Print a summary, part of which may have been read from a folder."""
    with understood(folder, RunError, "holds a record that no run writes"):
        show(result, folder)


def _out(arguments: argparse.Namespace, plain: dict[str, Any]) -> Path:
    out = _option(arguments, plain, "out", str)
    if not out:
        raise ConfigError("no folder to write to: give --out FOLDER")
    return Path(out)


COMMANDS = {
    "inspect": _inspect,
    "synthesize": _synthesize,
    "distill": _distill,
    "metadata": _metadata,
    "chain": _chain,
    **{task: _single for task in STAGES if task != "distill"},
    "continual": _continual,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
    "demo": _demo,
}


if __name__ == "__main__":
    sys.exit(main())
