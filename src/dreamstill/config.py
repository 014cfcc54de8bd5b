"""Settings to plain JSON values and back; unknown names and wrong types are typed errors."""

import dataclasses
import functools
import math
import numbers
import os
import types
import typing
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from dreamstill.errors import ConfigError, RunError, shown
from dreamstill.files.reading import read_json

__all__ = [
    "MOST",
    "above",
    "at_least",
    "from_plain",
    "merge",
    "no_effect",
    "none_or_at_least",
    "read_plain",
    "config_class",
    "to_plain",
    "within",
]

MOST = 10**9
"""Of a size, a count or a weight: nothing that ends asks for more."""


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def config_class(kind: type[Any]) -> type[Any]:
    """Make a class of settings: a frozen dataclass whose values are what its annotations say.

    Whoever builds one, in Python or from a file, may write an enum as its string, a tuple as a
    list, a float as an int and nested settings as a table; anything else of another type is a
    ConfigError, before the class's own `__post_init__` looks at ranges.
    """
    check: Callable[[Any], None] = getattr(kind, "__post_init__", lambda config: None)

    @functools.wraps(check)
    def settle(config: Any) -> None:
        for name, hint in typing.get_type_hints(type(config)).items():
            value = from_plain(hint, getattr(config, name), name)
            object.__setattr__(config, name, value)
        check(config)

    kind.__post_init__ = settle
    return dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(kind)


def at_least(config: Any, low: float, *names: str, most: int = MOST) -> None:
    """ConfigError unless every named setting, and every number in it, is in [low, most]."""
    for name in names:
        value = getattr(config, name)
        if not all(low <= number < math.inf for number in _numbers(value)):
            raise ConfigError(f"{name} must be at least {low}; got {shown(value)}")
        _at_most(name, value, most)


def none_or_at_least(config: Any, low: int, *names: str) -> None:
    """ConfigError unless every named setting is 0, which is none, or in [low, MOST]."""
    for name in names:
        if (value := getattr(config, name)) != 0 and not value >= low:
            raise ConfigError(f"{name} must be 0 or at least {low}; got {shown(value)}")
        _at_most(name, value)


def above(config: Any, low: float, *names: str) -> None:
    """ConfigError unless every named setting, and every number in it, is in (low, MOST]."""
    for name in names:
        value = getattr(config, name)
        if not all(low < number < math.inf for number in _numbers(value)):
            raise ConfigError(f"{name} must be above {low}; got {shown(value)}")
        _at_most(name, value)


def within(config: Any, low: float, high: float, *names: str) -> None:
    """ConfigError unless every named setting, and every number in it, is in [low, high]."""
    for name in names:
        value = getattr(config, name)
        if not all(low <= number <= high for number in _numbers(value)):
            raise ConfigError(f"{name} must be in [{low}, {high}]; got {shown(value)}")


def _at_most(name: str, value: Any, most: int = MOST) -> None:
    if any(number > most for number in _numbers(value)):
        raise ConfigError(f"{name} must be at most {most:,}; got {shown(value)}")


def no_effect(config: Any, where: str, *names: str) -> None:
    """ConfigError for a named setting that is not at its default where it does nothing."""
    for part in dataclasses.fields(config):
        value, default = getattr(config, part.name), part.default
        if part.default_factory is not dataclasses.MISSING:
            default = part.default_factory()
        if part.name in names and value != default:
            raise ConfigError(f"{part.name} {to_plain(value)} has no effect {where}: leave it out")


def _numbers(value: Any) -> tuple[float, ...]:
    """A setting's numbers; None, an option left out, has none."""
    if isinstance(value, tuple):
        return value
    return () if value is None else (value,)


def to_plain(config: Any) -> Any:
    """Dataclasses, enums and tuples -> dicts, strings and lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.value
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    return config


def read_plain(path: Path) -> dict[str, Any]:
    """The table of plain values that a JSON file of a run holds; RunError where it holds none."""
    plain = read_json(path, RunError)
    if not isinstance(plain, dict):
        raise RunError(f"{path} is damaged: it holds {type(plain).__name__}, not a table")
    return plain


def from_plain(kind: Any, plain: Any, name: str = "settings") -> Any:
    """Build `kind` (a dataclass, enum, tuple or number) from plain values.

    Raises ConfigError for a name that `kind` lacks or a value of another type.
    """
    if kind is Any:
        return plain
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        absent = plain is None or (isinstance(plain, str) and plain.lower() == "none")
        if absent and type(None) in parts:  # TOML has no word of its own for it
            return None
        return from_plain(next(p for p in parts if p is not type(None)), plain, name)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(plain, kind):
        return plain
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_plain(kind, plain, name)
    if origin is tuple:
        if not isinstance(plain, list | tuple):
            raise ConfigError(f"{name} must be a list; got {shown(plain)}")
        kinds = [parts[0]] * len(plain) if parts[-1] is Ellipsis else list(parts)
        if len(kinds) != len(plain):
            raise ConfigError(f"{name} must have {len(kinds)} values; got {shown(plain)}")
        return tuple(from_plain(k, v, name) for k, v in zip(kinds, plain, strict=True))
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(plain)
        except ValueError:
            known = ", ".join(str(member.value) for member in kind)
            raise ConfigError(f"{name} must be one of {known}; got {shown(plain)}") from None
    return _scalar_from_plain(kind, plain, name)


def _scalar_from_plain(kind: type, plain: Any, name: str) -> Any:
    """A bool, an int of 64 bits, a float or a string; numpy's numbers and paths are some."""
    if kind is str and isinstance(plain, os.PathLike):
        return os.fspath(plain)
    accepted: Any = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    if not isinstance(plain, accepted) or (kind is not bool and isinstance(plain, bool)):
        raise ConfigError(f"{name} must be of type {kind.__name__}; got {shown(plain)}")
    if kind is int and not -(2**63) <= plain < 2**63:
        raise ConfigError(f"{name} must be below 2^63 in magnitude; got {shown(plain)}")
    if kind is str and "\0" in plain:  # no name of a file or a function does
        raise ConfigError(f"{name} holds a null character: {shown(plain)}")
    try:
        return kind(plain)
    except OverflowError as error:  # an int that no float reaches
        raise ConfigError(f"{name} must be a finite number; got {shown(plain)}") from error


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, table by table; ConfigError for a table upon a plain value.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    merged = base | over
    for key, value in over.items():
        under = base.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            merged[key] = merge(under, value)
        elif isinstance(value, dict) and under is not None:
            raise ConfigError(f"{key} must be a table of settings; got {shown(under)}")
    return merged


def _dataclass_from_plain(kind: Any, plain: Any, name: str) -> Any:
    if not isinstance(plain, dict):
        raise ConfigError(f"{name} must be a table of settings; got {shown(plain)}")
    hints = typing.get_type_hints(kind)
    if unknown := [key for key in plain if key not in hints]:
        raise ConfigError(
            f"unknown setting {name}.{shown(unknown[0])[1:-1]}; known: {', '.join(sorted(hints))}"
        )
    needed = set()
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            plain = merge({field.name: to_plain(field.default_factory())}, plain)
        elif field.default is dataclasses.MISSING:
            needed.add(field.name)
    if missing := sorted(needed - plain.keys()):
        raise ConfigError(f"{name}.{missing[0]} is missing")
    return kind(**{key: from_plain(hints[key], v, f"{name}.{key}") for key, v in plain.items()})
