"""Configuration classes: checked by pydantic, whose errors become one typed line.

Nothing here, and no module that defines a configuration, imports torch: the command line reads
flags and answers mistakes before it does.
"""

import dataclasses
import difflib
import functools
import typing
from enum import Enum, StrEnum
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass

from dreamstill.errors import ConfigError, RunError, quoted
from dreamstill.files.reading import read_json

__all__ = [
    "Bool",
    "BoolOrAuto",
    "Float",
    "Int",
    "MOST",
    "OutputKind",
    "Precision",
    "Seed",
    "Text",
    "above",
    "at_least",
    "config_class",
    "from_plain",
    "did_you_mean",
    "merge",
    "nested_config",
    "no_effect",
    "read_plain",
    "share",
    "to_plain",
    "within",
    "zero_or_at_least",
]

MOST = 10**9
"""Upper bound of sizes, counts and weights: no run that ends asks for more."""


def _as_number(value: Any) -> Any:
    """Return a Python number for one of numpy's, which strict types refuse."""
    return value.item() if hasattr(value, "item") else value


def _as_text(value: Any) -> Any:
    """Return the string of a path."""
    return fspath(value) if isinstance(value, PathLike) else value


def _bool_or_auto(value: Any) -> Any:
    if not isinstance(value, bool) and value != "auto":
        raise ConfigError(f"must be true, false or auto; got {quoted(value)}")
    return value


def _without_null(text: str) -> str:
    if "\0" in text:  # which no name of a file or a function has
        raise ConfigError(f"must not hold a null character; got {quoted(text)}")
    return text


Int = Annotated[int, Strict(), BeforeValidator(_as_number), Field(ge=-(2**63), lt=2**63)]
"""An integer of 64 bits; not a bool, a float or a string."""
Float = Annotated[float, Strict(), BeforeValidator(_as_number)]
"""A finite number; an integer counts as one."""
Bool = Annotated[bool, Strict()]
"""True or False."""
BoolOrAuto = Annotated[bool | Literal["auto"], BeforeValidator(_bool_or_auto)]
"""True, False, or "auto" for what is best."""
Text = Annotated[str, BeforeValidator(_as_text), AfterValidator(_without_null)]
"""A string, or a path that becomes one."""


class OutputKind(StrEnum):
    """Meaning of the outputs of a network."""

    CLASSES = "classes"
    """Which of K classes it is: a logit for each, (N, K)."""
    LABELS = "labels"
    """Which of K labels it has, none to all: a logit for each, (N, K)."""
    VALUES = "values"
    """K numbers, as in regression, (N, K)."""
    DENSE = "dense"
    """Which of K classes each pixel is: a logit for each, (N, K, H, W)."""


class Precision(StrEnum):
    """The number format in which networks compute; weights and losses stay float32."""

    AUTO = "auto"
    """bfloat16 where it is faster: the processor has it, and the layers are wide."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def at_least(low: float, *, most: int = MOST) -> Any:
    """Return the constraint `low <= value <= most` of an annotated number."""
    return Field(ge=low, le=most)


def above(low: float) -> Any:
    """Return the constraint `low < value <= MOST` of an annotated number."""
    return Field(gt=low, le=MOST)


def share(*, whole: bool = True) -> Any:
    """Return the constraint `0 < value <= 1` of an annotated number; not 1 unless `whole`."""
    return Field(gt=0, le=1) if whole else Field(gt=0, lt=1)


def within(low: float, high: float) -> Any:
    """Return the constraint `low <= value <= high` of an annotated number."""
    return Field(ge=low, le=high)


def zero_or_at_least(low: int) -> Any:
    """Return the constraint of an annotated integer that is 0, for none, or in [low, MOST]."""

    def check(value: int) -> int:
        if value != 0 and not low <= value <= MOST:
            raise ConfigError(f"must be 0 or at least {low}; got {quoted(value)}")
        return value

    return AfterValidator(check)


TYPES = {
    "bool_type": "true or false",
    "dataclass_type": "a table of settings",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "an integer",
    "string_type": "a string",
    "tuple_type": "a list",
}
"""By pydantic's name of a mistake: what a value of another type should have been."""
Seed = Annotated[Int, within(0, 2**63 - 1)]


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def config_class(kind: type[Any]) -> type[Any]:
    """Make a class of configuration: a frozen, keyword-only pydantic dataclass.

    An enum may be given as its string, a tuple as a list, a nested configuration as a dict. Its
    `__post_init__` checks what concerns several fields at once.

    Raises:
        ConfigError: on construction, in one line that names the field, the value and what would be
            right.

    """
    options = ConfigDict(extra="forbid", allow_inf_nan=False)
    made: Any = pydantic_dataclass(frozen=True, kw_only=True, config=options)(kind)
    build = made.__init__

    @functools.wraps(build)
    def construct(self: Any, **values: Any) -> None:
        try:
            build(self, **values)
        except ValidationError as error:
            raise ConfigError(_first_mistake(error, type(self))) from None

    made.__init__ = construct
    return typing.cast(type[Any], made)


def _first_mistake(error: ValidationError, kind: Any, name: str = "") -> str:
    """Return the first mistake of a value that was to be a `kind`, in a line."""
    details = error.errors(include_url=False)[0]
    path = [str(part) for part in details["loc"] if not isinstance(part, int)]
    where = ".".join([name, *path] if name else path)
    got, context = quoted(details["input"]), details.get("ctx", {})
    match details["type"]:
        case "unexpected_keyword_argument":
            known = _fields_at(kind, path[:-1])
            return (
                f"unknown setting {where}{did_you_mean(path[-1], known)}; known: {', '.join(known)}"
            )
        case "missing" if isinstance(details["loc"][-1], int):
            return f"{where} has too few values: {got}"
        case "missing":
            return f"{where} is missing"
        case "value_error":
            message = str(context["error"])
            return f"{where} {message}" if message.startswith("must ") else message
        case "enum":
            expected = context["expected"].replace("'", "").replace(" or ", ", ")
            right = f"one of {expected}"
        case "greater_than_equal":
            right = f"at least {context['ge']:,}"
        case "greater_than":
            right = f"above {context['gt']}"
        case "less_than_equal":
            right = f"at most {context['le']:,}"
        case "less_than":
            right = f"below {context['lt']}"
        case kind_of if kind_of in TYPES:
            right = TYPES[kind_of]
        case _:
            return f"{where}: {details['msg']}; got {got}"
    return f"{where} must be {right}; got {got}"


def _fields_at(kind: Any, path: list[str]) -> list[str]:
    """Return the names of the fields of a configuration class, or of one nested in it."""
    for part in path:
        kind = nested_config(typing.get_type_hints(kind)[part])
    return sorted(field.name for field in dataclasses.fields(kind))


def nested_config(hint: Any) -> Any:
    """Return the configuration class in a field's type, such as `PruneConfig | None`; else None."""
    for part in (hint, *typing.get_args(hint)):
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            return part
    return None


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """Return `, did you mean X?` for a name close to a known one, else nothing.

    >>> did_you_mean("stpes", ["lr", "steps"])
    ' (did you mean steps?)'
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def no_effect(config: Any, where: str, *names: str) -> None:
    """Raise ConfigError for a named field that is not at its default where it does nothing."""
    for part in dataclasses.fields(config):
        value, default = getattr(config, part.name), part.default
        if part.default_factory is not dataclasses.MISSING:
            default = part.default_factory()
        if part.name in names and value != default:
            raise ConfigError(f"{part.name} {to_plain(value)} has no effect {where}: leave it out")


def to_plain(config: Any) -> Any:
    """Return a configuration as dicts, strings and lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.value
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    return config


def from_plain(kind: Any, plain: Any, name: str = "") -> Any:
    """Build a `kind` (a configuration class, enum, tuple, number or string) from plain values.

    A table for a field whose default is a configuration is laid upon that default. "none" stands
    for None, which TOML has no word for.

    Args:
        kind: the type to build.
        plain: dicts, lists, strings and numbers, as a TOML or JSON file has them.
        name: of the value, for messages.

    Raises:
        ConfigError: a name that `kind` lacks, or a value of another type or outside its range.

    """
    if (config := nested_config(kind)) is not None and isinstance(plain, dict):
        plain = _upon_defaults(config, plain)
    try:
        return _adapter(kind).validate_python(_with_none(plain))
    except ValidationError as error:
        raise ConfigError(_first_mistake(error, config or kind, name)) from None


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _with_none(plain: Any) -> Any:
    """Return plain values with None for every string "none"."""
    if isinstance(plain, dict):
        return {key: _with_none(value) for key, value in plain.items()}
    return None if isinstance(plain, str) and plain.lower() == "none" else plain


def _upon_defaults(kind: Any, plain: dict[str, Any]) -> dict[str, Any]:
    """Return a table in which every nested table is whole: laid upon the default of its field."""
    hints, whole = typing.get_type_hints(kind), dict(plain)
    for field in dataclasses.fields(kind):
        given, nested = plain.get(field.name), nested_config(hints[field.name])
        if nested is None or not isinstance(given, dict):
            continue
        if field.default_factory is not dataclasses.MISSING:
            given = merge(to_plain(field.default_factory()), given)
        whole[field.name] = _upon_defaults(nested, given)
    return whole


def read_plain(path: Path) -> dict[str, Any]:
    """Return the table of plain values in a JSON file of a run; RunError where it holds none."""
    plain = read_json(path, RunError)
    if not isinstance(plain, dict):
        raise RunError(f"{path} is damaged: it holds {type(plain).__name__}, not a table")
    return plain


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `over` laid upon `base`, table by table; ConfigError for a table upon a plain value.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    merged = base | over
    for key, value in over.items():
        under = base.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            merged[key] = merge(under, value)
        elif isinstance(value, dict) and under is not None:
            raise ConfigError(f"{key} must be a table of settings; got {quoted(under)}")
    return merged
