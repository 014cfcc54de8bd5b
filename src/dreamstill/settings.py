"""Settings to plain JSON values and back; unknown names and wrong types are typed errors."""

import dataclasses
import json
import math
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

from dreamstill.errors import RunError, SettingsError

__all__ = [
    "above",
    "at_least",
    "from_plain",
    "merge",
    "no_effect",
    "none_or_at_least",
    "read_plain",
    "to_plain",
    "within",
]


def at_least(settings: Any, low: float, *names: str) -> None:
    """SettingsError unless every named setting, and every number in it, is in [low, inf)."""
    for name in names:
        if not all(low <= value < math.inf for value in _numbers(getattr(settings, name))):
            raise SettingsError(f"{name} must be at least {low}; got {getattr(settings, name)}")


def none_or_at_least(settings: Any, low: int, *names: str) -> None:
    """SettingsError unless every named setting is 0, which is none, or at least `low`."""
    for name in names:
        if (value := getattr(settings, name)) != 0 and not value >= low:
            raise SettingsError(f"{name} must be 0 or at least {low}; got {value}")


def above(settings: Any, low: float, *names: str) -> None:
    """SettingsError unless every named setting, and every number in it, is in (low, inf)."""
    for name in names:
        if not all(low < value < math.inf for value in _numbers(getattr(settings, name))):
            raise SettingsError(f"{name} must be above {low}; got {getattr(settings, name)}")


def within(settings: Any, low: float, high: float, *names: str) -> None:
    """SettingsError unless every named setting, and every number in it, is in [low, high]."""
    for name in names:
        if not all(low <= value <= high for value in _numbers(getattr(settings, name))):
            raise SettingsError(f"{name} must be in [{low}, {high}]; got {getattr(settings, name)}")


def no_effect(settings: Any, where: str, *names: str) -> None:
    """SettingsError for a named setting that is not at its default where it does nothing."""
    for part in dataclasses.fields(settings):
        value, default = getattr(settings, part.name), part.default
        if part.default_factory is not dataclasses.MISSING:
            default = part.default_factory()
        if part.name in names and value != default:
            raise SettingsError(
                f"{part.name} {to_plain(value)} has no effect {where}: leave it out"
            )


def _numbers(value: Any) -> tuple[float, ...]:
    """A setting's numbers; None, an option left out, has none."""
    if isinstance(value, tuple):
        return value
    return () if value is None else (value,)


def to_plain(settings: Any) -> Any:
    """Dataclasses, enums and tuples -> dicts, strings and lists."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, Enum):
        return settings.value
    if isinstance(settings, list | tuple):
        return [to_plain(value) for value in settings]
    return settings


def read_plain(path: Path) -> dict[str, Any]:
    """The table of plain values that a JSON file of a run holds; RunError where it holds none."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(plain, dict):
        raise RunError(f"{path} is damaged: it holds {type(plain).__name__}, not a table")
    return plain


def from_plain(kind: Any, plain: Any, name: str = "settings") -> Any:
    """Build `kind` (a dataclass, enum, tuple or number) from plain values.

    Raises SettingsError for a name that `kind` lacks or a value of another type.
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
            raise SettingsError(f"{name} must be a list; got {plain!r}")
        kinds = [parts[0]] * len(plain) if parts[-1] is Ellipsis else list(parts)
        if len(kinds) != len(plain):
            raise SettingsError(f"{name} must have {len(kinds)} values; got {plain!r}")
        return tuple(from_plain(k, v, name) for k, v in zip(kinds, plain, strict=True))
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(plain)
        except ValueError:
            known = ", ".join(str(member.value) for member in kind)
            raise SettingsError(f"{name} must be one of {known}; got {plain!r}") from None
    if kind is float and isinstance(plain, int) and not isinstance(plain, bool):
        return float(plain)
    if not isinstance(plain, kind) or (kind is not bool and isinstance(plain, bool)):
        raise SettingsError(f"{name} must be of type {kind.__name__}; got {plain!r}")
    return plain


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, table by table.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    return base | {
        key: merge(base[key], value)
        if isinstance(value, dict) and isinstance(base.get(key), dict)
        else value
        for key, value in over.items()
    }


def _dataclass_from_plain(kind: Any, plain: Any, name: str) -> Any:
    if not isinstance(plain, dict):
        raise SettingsError(f"{name} must be a table of settings; got {plain!r}")
    hints = typing.get_type_hints(kind)
    if unknown := [key for key in plain if key not in hints]:
        raise SettingsError(
            f"unknown setting {name}.{unknown[0]}; known: {', '.join(sorted(hints))}"
        )
    needed = set()
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            plain = merge({field.name: to_plain(field.default_factory())}, plain)
        elif field.default is dataclasses.MISSING:
            needed.add(field.name)
    if missing := sorted(needed - plain.keys()):
        raise SettingsError(f"{name}.{missing[0]} is missing")
    return kind(**{key: from_plain(hints[key], v, f"{name}.{key}") for key, v in plain.items()})
