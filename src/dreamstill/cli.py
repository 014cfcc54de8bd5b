"""The command line: flags are generated from the settings; what they do is elsewhere."""

import argparse
import json
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from dreamstill import main_job
from dreamstill.chain import read_chain, run_chain
from dreamstill.errors import (
    DreamstillError,
    RunError,
    SettingsError,
    first_line,
    is_out_of_memory,
)
from dreamstill.flags import PREFIX, add_flags, given_flags, read_toml
from dreamstill.images import load_images, load_unlabelled
from dreamstill.learning import Learning, learn_classes
from dreamstill.links import TASKS
from dreamstill.metadata import Kind, record_metadata
from dreamstill.report import write_chain_report, write_continual_report, write_report
from dreamstill.run import Job, TeacherFile, open_from, settle_process
from dreamstill.settings import from_plain, merge
from dreamstill.sources import read_synthesis
from dreamstill.summarize import export_run, open_run, read_job, summarize
from dreamstill.synthesis import METHODS, PRESETS, method_settings, student_settings
from dreamstill.tasks.continual import ContinualSettings
from dreamstill.tasks.distill import DistillSettings
from dreamstill.teacher import Precision
from dreamstill.terminal import Bars, print_chain, print_rows, print_summary

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise SettingsError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 on a user's mistake, 130 on Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    settle_process()
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # where the user's module:function is, as for python -m
    arguments = argparse.Namespace()
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        with ExitStack() as stack:
            if arguments.json:  # the result alone goes to stdout, whatever a factory prints
                stack.enter_context(redirect_stdout(sys.stderr))
            arguments.bars = stack.enter_context(Bars(quiet=arguments.json))
            result = arguments.run(arguments)
    except (DreamstillError, OSError) as error:  # a folder that may not be read is the user's too
        print(f"dreamstill: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"dreamstill: out of memory: {first_line(error)}; lower sizes", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        more = "; it goes on with --resume" if _can_resume(arguments) else ""
        print(f"dreamstill: stopped{more}", file=sys.stderr)
        return 130
    if arguments.json:
        print(json.dumps(result, indent=2))
    return 0


def _can_resume(arguments: argparse.Namespace) -> bool:
    """There is something in the folder of a command that takes up what it left."""
    resume, out = (getattr(arguments, name, None) for name in ("resume", "out"))
    folder = Path(resume if isinstance(resume, str) else out or "")
    return resume is not None and folder.is_dir() and any(folder.iterdir())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


AddCommand = Callable[[str, Callable[[argparse.Namespace], Any]], argparse.ArgumentParser]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    # a flag's short form would get past _early
    parser = _Parser(
        prog="dreamstill",
        description="From a trained network alone to a small one.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Any]) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print the result as JSON alone")
        return sub

    config = _early(argv, "--config")
    table = read_toml(Path(config)) if config else {}
    method = _early(argv, "--method") or table.get("method") or "structured_noise"
    if not isinstance(method, str) or method not in METHODS:
        raise SettingsError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    _add_synthesis(command, method)
    _add_tasks(command, method)
    _add_results(command)
    arguments = parser.parse_args(_join_negative(argv))
    arguments.table = table
    arguments.method_name = method
    return arguments


def _add_synthesis(command: AddCommand, method: str) -> None:
    """What reads a teacher: inspect, synthesize, distill, metadata."""
    inspect = command("inspect", _inspect)
    synthesize = command("synthesize", _synthesize)
    distill = command("distill", _distill)
    for sub in (inspect, synthesize, distill):
        sub.add_argument("--config", help="TOML file of settings; flags win over it")
        sub.add_argument("--device", help="cpu, cuda, cuda:1 [cpu]")
        add_flags(sub, TeacherFile, "teacher")
    for sub in (synthesize, distill):
        _add_method(sub, method)
        sub.add_argument("--precision", help=f"{' or '.join(Precision)} [float32]")
        sub.add_argument("--seed", type=int, help="of everything random [0]")
        sub.add_argument("--out", help="folder to make")
    inspect.add_argument(
        "--images", help=".npz with x, or pictures: are they like the training images?"
    )
    synthesize.add_argument("--num-images", type=int, default=1000, help="how many [1000]")
    synthesize.add_argument("--resume", action="store_true", help="take up what is in --out")
    distill.add_argument("--student", help="module:function that builds the student")
    distill.add_argument(
        "--inherit",
        action="store_true",
        default=None,
        help="start the student, a narrower copy of the teacher, from the teacher's channels",
    )
    distill.add_argument(
        "--reconstruct", type=int, help="images on which such a student's layers are solved [2048]"
    )
    distill.add_argument("--checkpoint-every", type=float, help="seconds between checkpoints [20]")
    distill.add_argument("--resume", metavar="RUN", help="take up the run in this folder")
    add_flags(distill, DistillSettings, "distill", short=("transfer",))

    metadata = command("metadata", _metadata)
    metadata.add_argument(
        "--images", required=True, help="the training images: .npz with x, or a folder of pictures"
    )
    metadata.add_argument("--kind", default="all", help=f"one of {', '.join(Kind)} [all]")
    metadata.add_argument("--out", help="file to write (.safetensors)")
    add_flags(metadata, TeacherFile, "teacher")


PRESET = "settings of images and student by data set, the paper's or ours; flags win over them"


def _add_method(sub: argparse.ArgumentParser, method: str) -> None:
    """What makes the images, and its settings."""
    presets = ", ".join(PRESETS.get(method, ())) or "this method has none"
    sub.add_argument("--method", help=f"one of {', '.join(METHODS)} [structured_noise]")
    sub.add_argument("--preset", help=f"{PRESET}: {presets}")
    add_flags(sub, METHODS[method].settings, "synthesis")


def _add_tasks(command: AddCommand, method: str) -> None:
    """What works on a set of images: chain, each task alone, continual."""
    chain = command("chain", _chain)
    chain.add_argument("config", metavar="FILE", help="TOML file: [teacher] and [[link]] tables")
    singles = {task: command(task, _single) for task in TASKS if task != "distill"}
    continual = command("continual", _continual)
    for task, sub in singles.items():
        sub.set_defaults(task=task)
        add_flags(sub, TASKS[task][0], task)
    continual.add_argument(
        "--new",
        required=True,
        help="the new classes: .npz with x, y, or a folder of pictures for each",
    )
    add_flags(continual, ContinualSettings, "continual")
    for sub in (*singles.values(), continual):
        sub.add_argument(
            "--images", help=".npz with x, or a folder of pictures; default: synthesize them"
        )
        _add_method(sub, method)
        sub.add_argument("--num-images", type=int, help="how many to synthesize [4000]")
        sub.add_argument("--seed", type=int, help="of everything random [0]")
        add_flags(sub, TeacherFile, "teacher")
    for sub in (chain, *singles.values(), continual):
        sub.add_argument(
            "--real", help="measure every network at the end on .npz with x, y, or a folder a class"
        )
        sub.add_argument("--out", help="folder to make")
        sub.add_argument("--resume", action="store_true", help="take up what is in --out")


def _add_results(command: AddCommand) -> None:
    """What reads a finished run: evaluate, export, report; and the demo."""
    evaluate = command("evaluate", _evaluate)
    export = command("export", _export)
    report = command("report", _report)
    for sub in (evaluate, export, report):
        sub.add_argument("folder", metavar="RUN", help="folder of a finished run")
    evaluate.add_argument(
        "--images", required=True, help=".npz with x, y (or x_test, y_test), or a folder a class"
    )
    evaluate.add_argument("--floor", help="folder of the noise-floor run")
    export.add_argument("--formats", default="onnx,pt2", help="of onnx, pt2, pte [onnx,pt2]")

    demo = command("demo", _demo)
    demo.add_argument("--out", default="runs/demo", help="folder to make [runs/demo]")
    demo.add_argument("--seed", type=int, default=0, help="of everything random [0]")
    demo.add_argument("--resume", action="store_true", help="take up the run in --out")


def _early(argv: Sequence[str], flag: str) -> str | None:
    """A flag's value before the parser is built, since it decides which flags there are."""
    for index, this in enumerate(argv):
        if this == flag:
            return argv[index + 1] if index + 1 < len(argv) else None
        if this.startswith(flag + "="):
            return this.removeprefix(flag + "=")
    return None


def _join_negative(argv: Sequence[str]) -> list[str]:
    """`--range -1,1` -> `--range=-1,1`: argparse takes a list that starts with - for a flag."""
    joined: list[str] = []
    for this in argv:
        if joined and joined[-1].startswith("--") and re.match(r"-[\d.]+(e[+-]?\d+)?,", this):
            joined[-1] += "=" + this
        else:
            joined.append(this)
    return joined


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


def _teacher_file(plain: dict[str, Any]) -> TeacherFile:
    table = plain.get("teacher", {})
    if not isinstance(table, dict):
        raise SettingsError(f"teacher must be a table of settings; got {table!r}")
    if "weights" not in table:
        raise SettingsError("no teacher: give --teacher.weights FILE")
    file: TeacherFile = from_plain(TeacherFile, table, "teacher")
    return file


def _job(arguments: argparse.Namespace, **defaults: Any) -> Job:
    plain = defaults | _settings(arguments) | {"method": arguments.method_name}
    _teacher_file(plain)
    if "student" not in plain:
        raise SettingsError("no student: give --student module:function")
    method, preset = arguments.method_name, plain.pop("preset", None)
    plain["synthesis"] = method_settings(method, plain.get("synthesis"), preset)
    plain["distill"] = student_settings(method, plain.get("distill"), preset)
    job: Job = from_plain(Job, plain)
    return job


def _inspect(arguments: argparse.Namespace) -> Any:
    """Say what a teacher offers, and which methods can use it."""
    plain = _settings(arguments)
    device = from_plain(str, plain.get("device", "cpu"), "device")
    teacher = open_from(_teacher_file(plain), device=device)
    images = Path(arguments.images) if arguments.images else None
    result = main_job.inspect(teacher, images)
    if not arguments.json:
        print_rows("teacher", result)
    return result


def _metadata(arguments: argparse.Namespace) -> Any:
    """Record a teacher's statistics on its training images, for its owner to hand out."""
    kinds = [kind for kind in Kind if kind.value == arguments.kind]
    if not kinds:
        raise SettingsError(f"unknown kind {arguments.kind!r}; known: {', '.join(Kind)}")
    path = _out(arguments)
    if path.exists():
        raise RunError(f"{path} exists: choose another name")
    plain = given_flags(arguments)
    teacher = open_from(_teacher_file(plain))
    images = load_unlabelled(Path(arguments.images), teacher.spec)
    record_metadata(teacher, images, path, kind=kinds[0])
    result = {"file": str(path), "kind": arguments.kind, "bytes": path.stat().st_size}
    if not arguments.json:
        print_rows("metadata", result)
    return result


def _synthesize(arguments: argparse.Namespace) -> Any:
    """Make synthetic images and keep them as images.npz, with a picture."""
    job = _job(arguments, student="none:none")
    result = main_job.synthesize(
        _out(arguments),
        job,
        arguments.num_images,
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
            raise SettingsError(
                f"--resume goes on with the run's own settings: leave --{typed[0]} out"
            )
        folder = Path(arguments.resume)
        job = read_job(folder)
    else:
        folder, job = _out(arguments), _job(arguments)
    result = main_job.distill_and_report(
        folder, job, resume=bool(arguments.resume), on_progress=arguments.bars
    )
    if not arguments.json:
        print_summary(result, folder)
    return result


def _chain(arguments: argparse.Namespace) -> Any:
    """Chain tasks on one set of images: distill, prune, quantize, pack, ..."""
    return _run_chain(arguments, read_toml(Path(arguments.config)))


def _single(arguments: argparse.Namespace) -> Any:
    """A chain of this one task."""
    plain = _source(arguments)
    link = {"task": arguments.task, **plain.pop(arguments.task, {})}
    return _run_chain(arguments, plain | {"link": [link]})


def _continual(arguments: argparse.Namespace) -> Any:
    """Learn new classes without the data of the old ones."""
    plain = _source(arguments) | {"new": arguments.new}
    _teacher_file(plain)
    read_synthesis(plain)
    folder = _out(arguments)
    result = learn_classes(
        folder,
        from_plain(Learning, plain),
        resume=arguments.resume,
        real=Path(arguments.real) if arguments.real else None,
        on_progress=arguments.bars,
    )
    page = write_continual_report(folder)
    if not arguments.json:
        shown = {name: value for name, value in result.items() if name != "by_class"}
        print_rows("continual", shown | {"report": str(page)})
    return result


def _source(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags, and where the images come from: a plain dict."""
    names = ("images", "num_images", "seed", "method", "preset")
    named = {name: getattr(arguments, name) for name in names}
    return given_flags(arguments) | {k: v for k, v in named.items() if v is not None}


def _run_chain(arguments: argparse.Namespace, plain: dict[str, Any]) -> Any:
    _teacher_file(plain)
    folder = _out(arguments)
    result = run_chain(
        folder,
        read_chain(plain),
        resume=arguments.resume,
        real=Path(arguments.real) if arguments.real else None,
        on_progress=arguments.bars,
    )
    write_chain_report(folder)
    if not arguments.json:
        print_chain(result, folder)
    return result


def _evaluate(arguments: argparse.Namespace) -> Any:
    """Measure a finished run on real images, once."""
    folder = Path(arguments.folder)
    _, teacher, _ = open_run(folder)
    real = load_images(Path(arguments.images), teacher.spec, teacher.num_classes)
    floor = Path(arguments.floor) if arguments.floor else None
    result = summarize(folder, real=real, source=Path(arguments.images).name, floor=floor)
    write_report(folder)
    if not arguments.json:
        print_summary(result, folder)
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
    if (folder / "links").is_dir():
        page = write_chain_report(folder)
    elif (folder / "network.safetensors").is_file():
        page = write_continual_report(folder)
    else:
        page = write_report(folder)
    if not arguments.json:
        print(page)
    return {"report": str(page)}


def _demo(arguments: argparse.Namespace) -> Any:
    """Run the main job on the embedded teacher and measure it on embedded digits."""
    folder = Path(arguments.out)
    result = main_job.demo(
        folder, seed=arguments.seed, resume=arguments.resume, on_progress=arguments.bars
    )
    if not arguments.json:
        print_summary(result, folder)
    return result


def _out(arguments: argparse.Namespace) -> Path:
    if not arguments.out:
        raise SettingsError("no folder to write to: give --out FOLDER")
    return Path(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
