"""Bad values for every setting, card and state dict: numbers without end, and other types."""

import dataclasses
import json
import pickle
import struct
import types
import typing
from collections.abc import Iterator
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.bad_cases import CARD, FACTORY, Case, Good, Put, What, net
from dreamstill.continual.config import LearnClassesConfig
from dreamstill.distillation.config import DistillConfig
from dreamstill.loaders.config import TeacherFile
from dreamstill.pipelines.config import STAGE_CONFIGS
from dreamstill.synthesis.registry import METHODS

__all__ = ["card_cases", "number_cases", "path_cases", "toml_cases", "weight_cases"]

DIGITS = 5000 * "9"
"""More than Python makes an integer of."""
INTEGERS = (
    str(10**30),
    str(-(10**30)),
    DIGITS,
    "nan",
    "1.5",
    "1e9",
    "0x10",
    "",
    "ten",
    "9223372036854775808",
)
NEED_MORE = ("distill", "learn_classes")
"""Tasks that need another flag."""
FLOATS = ("1e308", "-1e308", "nan", "inf", "-inf", "1e999", "-" + DIGITS, "0x1p3", "", "half")


def number_cases(good: Good) -> Iterator[Case]:
    """Numbers without end, and what is none, for every flag that takes one."""
    commands: list[tuple[str, str, type]] = [
        *((f"synthesize --method {name}", "synthesis", m.config) for name, m in METHODS.items()),
        ("distill --student " + FACTORY, "distill", DistillConfig),
        ("learn_classes --new x.npz", "learn_classes", LearnClassesConfig),
        *((task, task, kind) for task, kind in STAGE_CONFIGS.items() if task not in NEED_MORE),
    ]
    for command, table, kind in commands:
        for name, number, several in numbers_of(kind):
            for text in FLOATS if number is float else INTEGERS:
                if text == "" and several:
                    continue  # no numbers are a list too
                flag = f"--{table}.{name}"
                yield _flag_case(good, command, flag, text)
    options = {
        "distill --student " + FACTORY: ("--seed", "--reconstruct", "--checkpoint-every"),
        "synthesize": ("--num-images", "--seed"),
        "quantize": ("--num-images", "--seed"),
        "demo": ("--seed",),
        "inspect": ("--teacher.num_classes", "--teacher.shape", "--teacher.mean", "--teacher.std"),
    }
    for command, flags in options.items():
        for flag in flags:
            of_floats = flag in ("--checkpoint-every", "--teacher.mean", "--teacher.std")
            for text in FLOATS if of_floats else INTEGERS:
                if not (flag in ("--teacher.mean", "--teacher.std") and "1e308" in text):
                    yield _flag_case(good, command, flag, text)


def _flag_case(good: Good, command: str, flag: str, text: str) -> Case:
    def prepare(folder: Path) -> What:
        teacher = [] if command == "demo" else good.options
        out = [] if command == "inspect" else ["--out", str(folder / "out")]
        return [*command.split(), *teacher, f"{flag}={text}", *out]

    said = {"1e308": "1e+308", "-1e308": "-1e+308", "1e999": "inf"}.get(text, text[:12])
    if text == "-" + DIGITS:  # a float of so many digits is infinite
        said = "inf"
    return Case(f"{command} {flag} {text:.20}", prepare, said)


def numbers_of(kind: type, prefix: str = "") -> Iterator[tuple[str, type, bool]]:
    """Name, type and whether it is a list, of every number in settings, nested ones too."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        several = typing.get_origin(hint) is tuple
        of = typing.get_args(hint)[0] if several else hint
        if dataclasses.is_dataclass(of) and isinstance(of, type):
            yield from numbers_of(of, f"{prefix}{field.name}.")
        elif of in (int, float):
            yield prefix + field.name, of, several


def path_cases(good: Good) -> Iterator[Case]:
    """Names that no file can have, and places where nothing can be made."""
    out, images = ["--out", "{out}"], ["--images", str(good.folder / "images.npz")]
    of, new = good.options, ["--new", str(good.folder / "new.npz")]
    commands = {
        "weights": ["inspect", "--teacher.weights", "{path}"],
        "card": ["inspect", *of, "--teacher.card", "{path}"],
        "settings": ["synthesize", *of, *out, "--config", "{path}"],
        "stages": ["compress", "{path}", *out],
        "images": ["quantize", *of, *out, "--images", "{path}"],
        "real": ["merge", *of, *out, *images, "--real", "{path}"],
        "new": ["learn_classes", *of, *out, *images, "--new", "{path}"],
        "resume": ["distill", "--resume", "{path}"],
        "report": ["report", "{path}"],
        "export": ["export", "{path}"],
        "evaluate": ["evaluate", "{path}", *images],
        "floor": ["evaluate", str(good.folder / "run"), *images, "--baseline", "{path}"],
        "out of synthesize": ["synthesize", *of, "--num-images", "9", "--out", "{path}"],
        "out of distill": ["distill", *of, "--student", FACTORY, "--out", "{path}"],
        "out of a task": ["quantize", *of, *images, "--out", "{path}"],
        "out of continual": ["learn_classes", *of, *new, "--out", "{path}"],
        "out of metadata": ["metadata", *of, *images, "--out", "{path}"],
    }
    for place, command in commands.items():
        for wrong in ("a" * 300, "a" * 5000, "{file}/a", "/proc/a/b", "/dev/null/a", "a\nb" * 200):
            says = "aaa" if wrong.startswith("aaa") else "a"
            case = f"{place}: {wrong!r:.20}, {len(wrong)} characters"
            yield Case(case, partial(_path, command, wrong), says)
    for place in ("out of synthesize", "out of distill", "out of a task", "out of continual"):
        yield Case(f"{place}: a file", partial(_path, commands[place], "{file}"), "not empty")


def _path(command: list[str], wrong: str, folder: Path) -> What:
    (folder / "file").write_text("")
    path = wrong.replace("{file}", str(folder / "file"))
    names = {"{path}": str(folder / path), "{out}": str(folder / "out")}
    return [names.get(part, part) for part in command]


TYPES = ("1979-05-27", "12:00:00", "{a = 1}", "[[1]]", "[{a = 1}]")
"""No setting of a run is any of these."""
HUGE = ("1" + 400 * "0", DIGITS, "0x" + 5000 * "f", "0o" + 9000 * "7")


def toml_cases(good: Good) -> Iterator[Case]:
    """Other types, and numbers without end, in a file of settings and in one of stages."""
    tables: dict[str, type] = {"teacher": TeacherFile, "distill": DistillConfig}
    tables["synthesis"] = METHODS["structured_noise"].config
    for table, kind in tables.items():
        for field in dataclasses.fields(kind):
            for text in TYPES:
                yield _toml_case(good, f"[{table}]\n{field.name} = {text}\n", field.name)
    for name in ("seed", "device", "precision", "student", "inherit", "reconstruct", "method"):
        for text in TYPES:
            yield _toml_case(good, f"{name} = {text}\n", name)
    for name in (
        "steps",
        "batch_size",
        "buffer_size",
        "num_validation",
        "validate_every",
        "lr",
        "temperature",
    ):
        for text in HUGE:
            yield _toml_case(good, f"[distill]\n{name} = {text}\n", "")
    for name in ("distill", "synthesis", "teacher"):
        for text in ("3", '"x"', "[1]", "true", "nan"):
            yield _toml_case(good, f"{name} = {text}\n", name)
    for name, text in {
        "no stage": "seed = 1\n",
        "a stage that is a table": "[stage]\ntask = 'prune'\n",
        "a stage that is a number": "stage = 3\n",
        "stages that are numbers": "stage = [1, 2]\n",
        "a stage without a task": "[[stage]]\nkeep = 0.5\n",
        "an unknown task": "[[stage]]\ntask = 'paint'\n",
        "a task that is a list": "[[stage]]\ntask = ['prune']\n",
        "an unknown setting": "[[stage]]\ntask = 'prune'\nkeeep = 0.5\n",
        "a null character": 'images = "a\\u0000b"\n[[stage]]\ntask = "merge"\n',
        "a null character in out": 'out = "a\\u0000b"\n[[stage]]\ntask = "merge"\n',
        "a null character in real": 'real = "a\\u0000b"\n[[stage]]\ntask = "merge"\n',
        "an endless name": f"images = '{5000 * 'a'}'\n[[stage]]\ntask = 'merge'\n",
    }.items():
        yield Case(f"stages: {name}", partial(_stages, good, text), "")


def _toml_case(good: Good, text: str, says: str) -> Case:
    def prepare(folder: Path) -> What:
        (folder / "damaged.toml").write_text(text)
        of = [] if "\nweights" in text or "teacher =" in text else good.options
        given = ["--config", str(folder / "damaged.toml")]
        given += [] if "student" in text else ["--student", FACTORY]
        return ["distill", *of, *given, "--out", str(folder / "out")]

    return Case(f"settings: {text:.60}", prepare, says)


def _stages(good: Good, text: str, folder: Path) -> What:
    path = folder / "damaged.toml"
    path.write_text(text + f"\n[teacher]\nweights = {str(good.folder / 'teacher.safetensors')!r}\n")
    return ["compress", str(path), *([] if "out =" in text else ["--out", str(folder / "out")])]


WRONG: dict[str, tuple[object, ...]] = {
    "factory": (
        5,
        [],
        {},
        True,
        "",
        "net",
        "absent:net",
        "json:dumps",
        "json:",
        ":net",
        "a b:c",
        "os:getcwd",
    ),
    "shape": (
        *(5, "188", {}, True, [], [1], [1, 8], [1, 8, 8, 8], [0, 8, 8], [1, -8, 8], [1, 8.5, 8]),
        *([1, "8", 8], [1, None, 8], [3, 8, 8], [1, 10**12, 8], [1, 10**30, 8], [1, 10**9, 10**9]),
    ),
    "mean": (
        5,
        "x",
        {},
        [],
        [0.5, 0.5],
        ["x"],
        [None],
        [[0.5]],
        [nan],
        [inf],
        [10**400],
    ),
    "std": (5, "x", {}, [], [0.5, 0.5], ["x"], [0], [-1], [[1]], [nan], [inf]),
    "num_classes": ("4", [4], {}, 4.0, 0, 1, -4, 5, 10**30, True),
}
"""Of a card, by name."""


def card_cases(good: Good) -> Iterator[Case]:
    """Cards, as JSON and TOML, one name of which is wrong."""
    for name, values in WRONG.items():
        for value in values:
            for suffix in (".json", ".toml"):
                card = CARD | {name: value}
                if suffix == ".json" or _toml_of(value) is not None:
                    prepare = partial(_card, good, card, suffix)
                    yield Case(f"{suffix[1:]} card: {name} {value!r:.40}", prepare, "")
    for name in ("factory", "shape", "mean", "std"):
        prepare = partial(_card, good, {k: v for k, v in CARD.items() if k != name}, ".json")
        yield Case(f"card without {name}", prepare, name)
    for name in ("factroy", "shpae", "num_clases"):
        yield Case(f"card with {name}", partial(_card, good, CARD | {name: 1}, ".json"), name)
    for given in ([1, 1], [1, 0], [0], [0, 1, 2], "01", ["0", "1"], [nan, 1], [0, inf]):
        card = {k: v for k, v in CARD.items() if k not in ("mean", "std")} | {"range": given}
        yield Case(f"card: range {given!r}", partial(_card, good, card, ".json"), "range")
    both = partial(_card, good, CARD | {"range": [0, 1]}, ".json")
    yield Case("card: range beside mean", both, "range")


def _toml_of(value: object) -> str | None:
    if isinstance(value, bool | None) or value == {}:
        return {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        parts = [_toml_of(part) for part in value]
        return None if None in parts else f"[{', '.join(map(str, parts))}]"
    return json.dumps(value)


def _card(good: Good, card: dict[str, Any], suffix: str, folder: Path) -> What:
    path = folder / f"card{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(card))
    else:
        path.write_text("".join(f"{name} = {_toml_of(value)}\n" for name, value in card.items()))
    return ["inspect", *good.options, "--teacher.card", str(path)]


def weight_cases(good: Good) -> Iterator[Case]:
    """State dicts that are not the network's, and files that are not what they say."""
    for name, put in _states().items():
        suffix = "pt" if name.startswith("torch") else "safetensors"
        prepare = partial(_weights, good, put, f"damaged_w.{suffix}")
        yield Case(f"weights: {name}", prepare, "")


def _weights(good: Good, put: Put, name: str, folder: Path) -> What:
    put(folder / name)
    card = ["--teacher.card", str(good.folder / "teacher.json")]
    return ["inspect", "--teacher.weights", str(folder / name), *card]


class Touch:
    """A pickle of it runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def _states() -> dict[str, Put]:
    state = net().state_dict()

    def plain(**changes: torch.Tensor) -> Put:
        return lambda path: save_file(state | changes, path)

    def header(text: str, size: int | None = None) -> Put:
        data = text.encode()
        return lambda path: path.write_bytes(
            struct.pack("<Q", size or len(data)) + data + bytes(64)
        )

    def of_torch(value: object) -> Put:
        return lambda path: torch.save(value, path)

    def without(name: str) -> Put:
        return lambda path: save_file({k: v for k, v in state.items() if k != name}, path)

    odd = {"head.bias": torch.tensor([0, torch.nan, 0, 0]), "norm.running_var": -torch.ones(4)}
    endless = '{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}'
    return {
        **{f"without {name}": without(name) for name in state if "tracked" not in name},
        **{f"odd {name}": plain(**{name: value}) for name, value in odd.items()},
        **{
            f"infinite {name}": plain(**{name: torch.full_like(state[name], torch.inf)})
            for name in ("conv.weight", "norm.running_mean")
        },
        **{
            f"another shape of {name}": plain(**{name: torch.zeros(7, 7)})
            for name in ("conv.weight", "head.bias")
        },
        "one more": plain(more=torch.zeros(1)),
        "no tensors": lambda path: save_file({}, path),
        "a header without end": header("{}", 2**63),
        "a header longer than the file": header("{}", 10_000),
        "a header that is a list": header("[]"),
        "a header that is no JSON": header("{"),
        "a deep header": header('{"a":' * 9000),
        "a shape without end": header(endless % "99999999999999999999"),
        "a negative shape": header(endless % "-1"),
        "a shape of thousands": header(endless % ("1," * 9999 + "1")),
        "offsets without end": header(
            '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99999999]}}'
        ),
        "an unknown type": header('{"a": {"dtype": "X99", "shape": [1], "data_offsets": [0, 4]}}'),
        "torch: a list": of_torch([1, 2]),
        "torch: a number": of_torch(5),
        "torch: names that are numbers": of_torch({1: torch.zeros(1)}),
        "torch: text among tensors": of_torch(state | {"note": "hello"}),
        "torch: complex numbers": of_torch(
            state | {"head.bias": torch.zeros(4, dtype=torch.cfloat)}
        ),
        "torch: nothing": of_torch({}),
        "torch: code": of_torch(Touch()),
        "torch: a whole network": of_torch(net()),
        "torch: a pickle of old": lambda path: path.write_bytes(pickle.dumps(Touch(), 0)),
        "torch: a meta tensor": of_torch({k: v.to("meta") for k, v in state.items()}),
        "torch: tables in tables": of_torch(
            {"model": {"net": {"state_dict": {"model": {"a": 1}}}}}
        ),
    }
