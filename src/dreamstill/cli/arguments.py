"""What can be typed: the parser of the command line, and what a command is given."""

import argparse
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dreamstill.cli.flags import add_flags
from dreamstill.continual.learning import ContinualConfig
from dreamstill.distillation.config import DistillConfig
from dreamstill.errors import ConfigError, shown
from dreamstill.files.reading import read_toml
from dreamstill.loaders.teacher_file import TeacherFile
from dreamstill.pipelines.stages import STAGES
from dreamstill.synthesis.activation_statistics import Kind
from dreamstill.synthesis.registry import METHODS, PRESETS
from dreamstill.teacher import Precision

__all__ = ["parse"]

Command = Callable[[argparse.Namespace], Any]
AddCommand = Callable[[str], argparse.ArgumentParser]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(message)


def parse(argv: Sequence[str], commands: Mapping[str, Command]) -> argparse.Namespace:
    """Of one command: its flags, `run` to run it, `table` of --config and `method_name`.

    Args:
        argv: what was typed.
        commands: by name; the first line of each one's docstring is its help.

    Raises:
        ConfigError: a flag, command or method is unknown, or one that is needed is missing.

    """
    # a flag's short form would get past _early
    parser = _Parser(
        prog="dreamstill",
        description="From a trained network alone to a small one.",
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str) -> argparse.ArgumentParser:
        run = commands[name]
        text = (run.__doc__ or "").splitlines()[0]
        sub = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print the result as JSON alone")
        return sub

    config = _early(argv, "--config")
    table = {} if config is None else read_toml(config)
    method = _early(argv, "--method") or table.get("method") or "structured_noise"
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"unknown method {shown(method)}; known: {', '.join(METHODS)}")
    _add_synthesis(command, method)
    _add_tasks(command, method)
    _add_results(command)
    arguments = parser.parse_args(_join_negative(argv))
    arguments.table = table
    arguments.method_name = method
    return arguments


def _add_synthesis(command: AddCommand, method: str) -> None:
    """What reads a teacher: inspect, synthesize, distill, metadata."""
    inspect = command("inspect")
    synthesize = command("synthesize")
    distill = command("distill")
    for sub in (inspect, synthesize, distill):
        sub.add_argument("--config", help="TOML file of settings; flags win over it")
        sub.add_argument("--device", help=DEVICE)
        add_flags(sub, TeacherFile, "teacher")
    for sub in (synthesize, distill):
        _add_method(sub, method)
        sub.add_argument("--precision", help=PRECISION)
        sub.add_argument("--seed", type=int, help="of everything random [0]")
        sub.add_argument("--out", help="folder to make")
    inspect.add_argument(
        "--images", help=".npz with x, or pictures: are they like the training images?"
    )
    synthesize.add_argument("--num-images", type=int, help="how many [1000]")
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
    add_flags(distill, DistillConfig, "distill", short=("losses",))

    metadata = command("metadata")
    metadata.add_argument(
        "--images", required=True, help="the training images: .npz with x, or a folder of pictures"
    )
    metadata.add_argument("--kind", default="all", help=f"one of {', '.join(Kind)} [all]")
    metadata.add_argument("--out", help="file to write (.safetensors)")
    add_flags(metadata, TeacherFile, "teacher")


DEVICE = "cpu, cuda, cuda:1 [cpu]"
PRECISION = f"{' or '.join(Precision)} [float32]"
PRESET = "settings of images and student by data set, the paper's or ours; flags win over them"


def _add_method(sub: argparse.ArgumentParser, method: str) -> None:
    """What makes the images, and its settings."""
    presets = ", ".join(PRESETS.get(method, ())) or "this method has none"
    sub.add_argument("--method", help=f"one of {', '.join(METHODS)} [structured_noise]")
    sub.add_argument("--preset", help=f"{PRESET}: {presets}")
    add_flags(sub, METHODS[method].config, "synthesis")


def _add_tasks(command: AddCommand, method: str) -> None:
    """What works on a set of images: chain, each task alone, continual."""
    chain = command("chain")
    chain.add_argument("config", metavar="FILE", help="TOML file: [teacher] and [[stage]] tables")
    singles = {task: command(task) for task in STAGES if task != "distill"}
    continual = command("continual")
    for task, sub in singles.items():
        sub.set_defaults(task=task)
        add_flags(sub, STAGES[task][0], task)
    continual.add_argument(
        "--new",
        required=True,
        help="the new classes: .npz with x, y, or a folder of pictures for each",
    )
    add_flags(continual, ContinualConfig, "continual")
    for sub in (*singles.values(), continual):
        sub.add_argument(
            "--images", help=".npz with x, or a folder of pictures; default: synthesize them"
        )
        _add_method(sub, method)
        sub.add_argument(
            "--num-images", type=int, help="how many to synthesize [4000, or as few as are needed]"
        )
        sub.add_argument("--seed", type=int, help="of everything random [0]")
        add_flags(sub, TeacherFile, "teacher")
    for sub in (chain, *singles.values(), continual):
        sub.add_argument("--device", help=DEVICE)
        sub.add_argument("--precision", help=PRECISION)
        sub.add_argument(
            "--real", help="measure every network at the end on .npz with x, y, or a folder a class"
        )
        sub.add_argument("--out", help="folder to make")
        sub.add_argument("--resume", action="store_true", help="take up what is in --out")


def _add_results(command: AddCommand) -> None:
    """What reads a finished run: evaluate, export, report; and the demo."""
    evaluate = command("evaluate")
    export = command("export")
    report = command("report")
    for sub in (evaluate, export, report):
        sub.add_argument("folder", metavar="RUN", help="folder of a finished run")
    evaluate.add_argument(
        "--images", required=True, help=".npz with x, y (or x_test, y_test), or a folder a class"
    )
    evaluate.add_argument("--baseline", help="folder of the noise baseline run")
    export.add_argument("--formats", default="onnx,pt2", help="of onnx, pt2, pte [onnx,pt2]")

    demo = command("demo")
    demo.add_argument("--out", default="runs/demo", help="folder to make [runs/demo]")
    demo.add_argument("--seed", type=int, default=0, help="of everything random [0]")
    demo.add_argument("--resume", action="store_true", help="take up the run in --out")


def _early(argv: Sequence[str], flag: str) -> str | None:
    """A flag's last value before the parser is built, since it decides which flags there are."""
    found = None
    for this, following in itertools.zip_longest(argv, argv[1:]):
        if this == flag:
            found = following
        elif this.startswith(flag + "="):
            found = this.removeprefix(flag + "=")
    return found


def _join_negative(argv: Sequence[str]) -> list[str]:
    """`--range -1,1` -> `--range=-1,1`: argparse takes a list that starts with - for a flag."""
    joined: list[str] = []
    for this in argv:
        if joined and joined[-1].startswith("--") and re.match(r"-[\d.]+(e[+-]?\d+)?,", this):
            joined[-1] += "=" + this
        else:
            joined.append(this)
    return joined
