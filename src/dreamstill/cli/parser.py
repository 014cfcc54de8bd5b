"""Define the commands and their flags, without importing torch, so that errors show at once."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from dreamstill.cli.flags import PREFIX, Flags, given_flags
from dreamstill.config import did_you_mean, merge
from dreamstill.errors import ConfigError, quoted
from dreamstill.files.reading import read_toml
from dreamstill.loaders.config import TeacherFile
from dreamstill.pipelines.config import (
    STAGE_CONFIGS,
    CompressJob,
    DistillJob,
    ImagesJob,
    SynthesizeJob,
    read_job,
)
from dreamstill.pipelines.goal import GoalJob
from dreamstill.pipelines.plugins import load_plugins
from dreamstill.synthesis.presets import PRESETS
from dreamstill.synthesis.registry import DEFAULT_METHOD, METHODS

__all__ = ["COMMANDS", "parse"]

TEACHER = tuple(f"teacher.{name}" for name in ("factory", "shape", "mean", "std"))
IMAGES = ("images", "method", "num_images")
OUT = "directory to write"
GOALS = "int8, w4, half, 10x or 500KB"
REAL = "images to measure every network on at the end: .npz with x and y, or a folder per class"


Argument = tuple[tuple[str, ...], dict[str, Any]]
"""Names and options for `add_argument`."""


def _argument(*names: str, **options: Any) -> Argument:
    return names, options


MODEL = _argument(
    "model",
    metavar="MODEL",
    nargs="?",
    help="the network: a .safetensors, .onnx, .pt2 or TorchScript file, a state dict, or a name "
    "such as timm:resnet18",
)
CONFIG = _argument("--config", metavar="FILE", help="TOML file with these settings; flags win")
DIRECTORY = _argument("--out", metavar="DIR", help=OUT)
RESUME = _argument("--resume", action="store_true", help="continue the run in --out")
MEASURE = _argument("--real", metavar="PATH", help=REAL)
PLUGIN = _argument(
    "--plugin",
    dest=f"{PREFIX}plugin",
    metavar="FILE|MODULE",
    action="append",
    default=argparse.SUPPRESS,
    help="import your own methods, losses or tasks from here; may be repeated",
)
DEVICE = _argument("--device", help="cpu, cuda or cuda:1 [cpu]")
OF_TASK = (MODEL, CONFIG, DIRECTORY, RESUME, MEASURE, PLUGIN)


@dataclass(frozen=True)
class Command:
    """Summary, flags and configuration class of a command."""

    summary: str
    job: Any = None
    """Configuration class whose fields are flags."""
    main: tuple[str, ...] = ()
    """Fields that `--help` shows; `--help-all` shows all."""
    part: str = ""
    """Field of the job whose name may be omitted in the flags of its own fields, as teacher may."""
    arguments: tuple[Argument, ...] = OF_TASK
    """Other arguments."""


RUN = _argument("folder", metavar="RUN", help="directory of a finished run")
RUN_OR_MODEL = _argument(
    "model",
    metavar="RUN|MODEL",
    help="directory of a finished run; or a network, as of inspect",
)
FINETUNE = ("finetune.steps", "finetune.lr")
COMMANDS: dict[str, Command] = {
    "inspect": Command(
        "Check that a network opens, and list the methods that can use it.",
        main=TEACHER,
        arguments=(
            MODEL,
            CONFIG,
            DEVICE,
            _argument("--images", metavar="PATH", help="compare these with the training images"),
            PLUGIN,
        ),
    ),
    "synthesize": Command(
        "Make synthetic images from a network alone.",
        SynthesizeJob,
        (*TEACHER, "method", "num_images", "seed"),
        arguments=(MODEL, CONFIG, DIRECTORY, RESUME, PLUGIN),
    ),
    "distill": Command(
        "Train a small student from a network and no data.",
        DistillJob,
        (
            *(*TEACHER, "student", "method", "images", "baselines", "bound"),
            *("distill.inherit", "distill.steps", "distill.losses"),
        ),
        part="distill",
        arguments=(
            MODEL,
            CONFIG,
            DIRECTORY,
            _argument("--resume", metavar="RUN", help="continue the run in this directory"),
            MEASURE,
            PLUGIN,
        ),
    ),
    "prune": Command(
        "Remove the least important channels, then fine-tune.",
        ImagesJob,
        (
            *TEACHER,
            *IMAGES,
            "prune.keep",
            "prune.target",
            "prune.importance",
            "prune.rounds",
            "prune.finetune.steps",
        ),
    ),
    "merge": Command(
        "Merge neurons and filters that do nearly the same.",
        ImagesJob,
        (*TEACHER, *IMAGES, "merge.keep", "merge.reconstruct", "merge.finetune.steps"),
    ),
    "factorize": Command(
        "Split layers into products of smaller ones.",
        ImagesJob,
        (*TEACHER, *IMAGES, "factorize.keep", "factorize.target", "factorize.finetune.steps"),
    ),
    "quantize": Command(
        "Simulate weights and activations of 2 to 8 bits.",
        ImagesJob,
        (*TEACHER, *IMAGES, "quantize.weight_bits", "quantize.activation_bits"),
    ),
    "int8": Command(
        "Write int8 files for onnxruntime, PyTorch, ExecuTorch or LiteRT.",
        ImagesJob,
        (*TEACHER, *IMAGES, "int8.formats", "int8.calibration"),
    ),
    "pack": Command(
        "Prune, share and Huffman-code the weights in one small file.",
        ImagesJob,
        (*TEACHER, *IMAGES, "pack.keep", "pack.rounds", "pack.finetune.steps"),
    ),
    "compress": Command(
        "Make a network small toward a goal, or by the tasks in a TOML file.",
        GoalJob,
        (
            *("to", "format", "lose_at_most", "minutes", "student"),
            *(*TEACHER, "images", "num_images", "seed", "device"),
        ),
        arguments=(
            _argument(
                "model",
                metavar="MODEL|FILE.toml",
                help="a network, with --to GOAL; or a TOML file of [teacher] and [[stage]] tables",
            ),
            DIRECTORY,
            RESUME,
            MEASURE,
            PLUGIN,
        ),
    ),
    "learn_classes": Command(
        "Teach a network new classes without the data of the old ones.",
        ImagesJob,
        (
            *(*TEACHER, *IMAGES),
            *("learn_classes.new", "learn_classes.recipe", "learn_classes.steps"),
        ),
    ),
    "evaluate": Command(
        "Measure a finished run, or a network, on real images.",
        main=TEACHER,
        arguments=(
            RUN_OR_MODEL,
            _argument(
                "--images",
                required=True,
                metavar="PATH",
                help=".npz with x and y (or x_test and y_test), or a folder per class",
            ),
            _argument("--baseline", metavar="RUN", help="run of the same student on noise"),
            DEVICE,
            PLUGIN,
        ),
    ),
    "export": Command(
        "Write a student or a network as ONNX, .pt2, .pte, .tflite or a C array, and compare.",
        main=TEACHER,
        arguments=(
            RUN_OR_MODEL,
            _argument("--formats", default="onnx,pt2", help="onnx, pt2, pte, tflite, h [onnx,pt2]"),
            _argument("--out", metavar="DIR", help="directory for the files of a MODEL"),
            PLUGIN,
        ),
    ),
    "report": Command("Write the report page of a run.", arguments=(RUN,)),
    "metadata": Command(
        "Record statistics of a network's training images, for its owner to hand out.",
        main=TEACHER,
        arguments=(
            MODEL,
            _argument("--images", required=True, metavar="PATH", help=".npz with x, or pictures"),
            _argument("--kind", default="all", help="all, top, spectral or spectral-pairs [all]"),
            _argument("--out", metavar="FILE", help=".safetensors file to write"),
            DEVICE,
        ),
    ),
    "demo": Command(
        "Run the whole of it on an embedded network, in a minute.",
        arguments=(
            _argument("--out", default="runs/demo", metavar="DIR", help=f"{OUT} [runs/demo]"),
            _argument("--seed", type=int, default=0, help="seed of everything random [0]"),
            RESUME,
        ),
    ),
}


class _Parser(argparse.ArgumentParser):
    """Parser that raises ConfigError instead of exiting."""

    def error(self, message: str) -> Any:
        raise ConfigError(message)

    def unknown(self, typed: Sequence[str]) -> ConfigError:
        """Return the error for unknown arguments."""
        name = typed[0].split("=")[0]
        known = [option for option in self._option_string_actions if option.startswith("--")]
        return ConfigError(f"unknown argument {quoted(name)[1:-1]}{did_you_mean(name, known)}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line.

    Returns:
        The arguments, with `command`; `plain`, the settings of file and flags as nested plain
        values; and `job`, the configuration built from them, or None.

    Raises:
        ConfigError: a command, flag or value is unknown or wrong.

    """
    argv = _normalized(argv)
    name = next((word for word in argv if not word.startswith("-")), "")
    if not argv:
        raise ConfigError(f"no command; known: {', '.join(COMMANDS)}; see dreamstill --help")
    if not name or argv[0].startswith("-"):
        _top().parse_args(argv)  # exits, unless the argument is unknown
        raise _top().unknown(argv)
    rest = argv[1:]
    early = _early(rest)
    table = read_toml(early.config) if early.config else {}
    if name == "compress":
        file = _parser(name, COMMANDS[name], DEFAULT_METHOD, whole="--help-all" in rest)
        table = _compression(file.parse_known_args(rest)[0].model)
    load_plugins(early.plugin or table.get("plugin"))
    command = _command(name)
    method = early.method or table.get("method") or DEFAULT_METHOD
    if not isinstance(method, str) or method not in METHODS:
        close = did_you_mean(method, METHODS) if isinstance(method, str) else ""
        raise ConfigError(f"unknown method {quoted(method)}{close}; known: {', '.join(METHODS)}")
    parser = _parser(name, command, method, whole="--help-all" in rest)
    arguments, more = parser.parse_known_args(rest)
    if more:
        raise parser.unknown(more)
    if (model := getattr(arguments, "model", None)) and not model.endswith(".toml"):
        table = merge(table, _teacher(arguments))
    arguments.command, arguments.plain = name, merge(table, given_flags(arguments))
    resuming = name == "distill" and arguments.resume
    arguments.job = None if resuming else _job(name, arguments.plain)
    return arguments


def _compression(model: str) -> dict[str, Any]:
    """Return the settings in the TOML file of a compression; none for a model."""
    if not model.endswith(".toml"):
        return {}
    if not (table := read_toml(model)):
        raise ConfigError(f"{model} is empty: give [teacher] and [[stage]] tables")
    return table


def _teacher(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that open the MODEL of a command line."""
    model, weights = arguments.model, getattr(arguments, f"{PREFIX}teacher.weights", None)
    if weights is not None:
        both = f"{quoted(model)} and --weights {quoted(weights)}"
        raise ConfigError(f"two networks, {both}: give one")
    return {"teacher": {"weights": model}}


class _Version(argparse.Action):
    """Argparse action that prints the version and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from importlib.metadata import version  # takes a tenth of a second

        print(f"dreamstill {version('dreamstill')}")
        parser.exit()


def _top() -> _Parser:
    """Return the parser of the command line without a command."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    parser = _Parser(
        prog="dreamstill",
        usage="dreamstill COMMAND [options]",
        description="Make a trained network small without its data.\n\ncommands:\n"
        + "\n".join(lines),
        epilog="dreamstill COMMAND --help shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    return parser


def _positional(command: Command) -> list[str]:
    """Return the placeholders of a command's arguments without a flag."""
    return [
        options["metavar"] for names, options in command.arguments if not names[0].startswith("-")
    ]


def _parser(name: str, command: Command, method: str, *, whole: bool) -> _Parser:
    """Return the parser of a command, with the flags of `method` if it synthesizes images."""
    parser = _Parser(
        prog=f"dreamstill {name}",
        usage=" ".join(["dreamstill", name, *_positional(command), "[options]"]),
        description=command.summary,
        epilog=None if whole else "--help-all shows every option.",
        allow_abbrev=False,
    )
    parser.add_argument("--help-all", action="help", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the result as JSON alone")
    task = name in STAGE_CONFIGS and name != "distill"
    for names, options in command.arguments:
        parser.add_argument(*names, **options)
    flags = Flags(parser, command.main, whole=whole)
    if task:
        flags.add(STAGE_CONFIGS[name], f"{name}.", short=(f"{name}.",))
    if command.job is not None:
        flags.add(
            command.job,
            short=("teacher.", f"{command.part}.") if command.part else ("teacher.",),
            special={"synthesis": METHODS[method].config},
        )
        presets = ", ".join(PRESETS.get(method, ())) or "this method has none"
        parser.add_argument(
            "--preset",
            dest=f"{PREFIX}preset",
            metavar="NAME",
            default=argparse.SUPPRESS,
            help=f"settings of the paper, or ours, for a data set; flags win: {presets}",
        )
    elif any(names == ("model",) for names, _ in command.arguments):
        flags.add(TeacherFile, "teacher.", short=("teacher.",))
    return parser


def _normalized(argv: Sequence[str]) -> list[str]:
    """Replace - by _ in flags and commands, and join lists such as `--range -1,1` to their flags.

    Otherwise argparse reads a list that begins with a minus as a flag.
    """
    words: list[str] = []
    for word in argv:
        if words and words[-1].startswith("--") and re.match(r"-[\d.]+(e[+-]?\d+)?,", word):
            words[-1] += "=" + word
            continue
        if word.startswith("--") and word not in ("--help-all", "--"):
            flag, *value = word.split("=", 1)
            word = "=".join(["--" + flag[2:].replace("-", "_"), *value])
        words.append(word)
    if words and words[0].replace("-", "_") in COMMANDS:
        words[0] = words[0].replace("-", "_")
    return words


def _early(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments that determine which commands and other flags there are."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--method")
    parser.add_argument("--plugin", action="append")
    return parser.parse_known_args(argv)[0]


def _command(name: str) -> Command:
    """Return a command; a task of a plug-in has the flags of its configuration."""
    if name in COMMANDS:
        return COMMANDS[name]
    if name not in STAGE_CONFIGS:
        known = f"{did_you_mean(name, COMMANDS)}; known: {', '.join(COMMANDS)}"
        raise ConfigError(f"unknown command {quoted(name)[1:-1]}{known}")
    kind = STAGE_CONFIGS[name]
    own = (f"{name}.{field.name}" for field in fields(kind))
    return Command(f"Run the task {name} of a plug-in.", ImagesJob, (*TEACHER, *IMAGES, *own))


def _job(name: str, plain: dict[str, Any]) -> Any:
    """Return the job configuration of a command, or None if it has no job."""
    plain = {key: value for key, value in plain.items() if key not in ("out", "real")}
    if name in STAGE_CONFIGS and name != "distill":
        settings = plain.pop(name, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"{name} must be a table of its settings; got {quoted(settings)}")
        stage = {"task": name, **settings}
        return read_job(CompressJob, plain | {"stage": [stage]})
    job = COMMANDS[name].job
    if name == "compress" and "to" not in plain:
        if "stage" not in plain:
            raise ConfigError(f"no goal: give --to, such as {GOALS}; or a TOML file of stages")
        job = CompressJob
    elif name == "compress" and "stage" in plain:
        raise ConfigError(f"to {quoted(plain['to'])} finds the stages by itself: leave one out")
    return None if job is None else read_job(job, plain)
