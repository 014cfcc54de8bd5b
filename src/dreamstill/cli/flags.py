"""Derive flags and their help from the fields and docstrings of configuration classes."""

import argparse
import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Collection
from enum import Enum
from typing import Any

from dreamstill.config import nested_config, to_plain
from dreamstill.errors import ConfigError, quoted

__all__ = ["PREFIX", "Flags", "given_flags"]

PREFIX = "config:"
"""Prefix of configuration fields in the argparse namespace."""


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """Return the docstring of each field of a configuration class and its bases."""
    docs: dict[str, str] = {}
    for base in kind.__bases__:
        if dataclasses.is_dataclass(base):
            docs |= field_docs(base)
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = getattr(getattr(after, "value", None), "value", None)
            docs[field.target.id] = " ".join(text.split()) if isinstance(text, str) else ""
    return docs


class _Given(argparse.Action):
    """Argparse action that stores the plain value of a text, as in a TOML file."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, _plain(values, self.const))


def _plain(text: str, hint: Any) -> Any:
    """Convert a text to a plain value: lists are written 1,2,3; "none" is None.

    >>> _plain("0.5,1", tuple[float, ...]), _plain("true", bool), _plain("007", str)
    ([0.5, 1], True, '007')
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _plain(text, parts[0])
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none":
            return None
        return _plain(text, next(part for part in parts if part is not types.NoneType))
    if origin is tuple:
        inside = text.strip("[]")
        return [_plain(part, parts[0]) for part in inside.split(",")] if inside else []
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in {int: (int,), float: (int, float)}.get(hint, ()):
        try:
            return kind(text)
        except ValueError:
            continue
    return text  # `from_plain` reports a number that does not parse


class Flags:
    """Flags of a command's parser.

    Args:
        parser: parser of the command.
        main: dotted names of the fields whose help is shown.
        whole: show the help of all fields.

    """

    def __init__(
        self, parser: argparse.ArgumentParser, main: Collection[str], *, whole: bool
    ) -> None:
        self.parser, self.main, self.whole = parser, main, whole

    def add(
        self,
        kind: Any,
        prefix: str = "",
        *,
        default: Any = None,
        short: tuple[str, ...] = (),
        special: dict[str, Any] | None = None,
    ) -> None:
        """Add a flag for every field of a configuration class, nested ones too.

        Args:
            kind: configuration class.
            prefix: prefix of the dotted names.
            default: instance whose values are shown as defaults.
            short: prefixes that may be omitted, where no other flag has the rest of the name.
            special: classes of nested fields whose type hint is Any, by field name.

        """
        group, docs = self.parser.add_argument_group(prefix.rstrip(".") or None), field_docs(kind)
        for field in dataclasses.fields(kind):
            hint = typing.get_type_hints(kind, include_extras=True)[field.name]
            name, value = prefix + field.name, _default(field, default)
            if field.name in ("plugin", "stages"):  # --plugin is repeated; stages are tables
                continue
            nested = (special or {}).get(field.name) or nested_config(hint)
            if nested is not None:  # any of its flags sets a field that is None by default
                self.add(nested, f"{name}.", default=value, short=short)
                continue
            brief = [f"--{name.removeprefix(own)}" for own in short if name.startswith(own)]
            taken = self.parser._option_string_actions
            names = [*(one for one in brief if one not in taken), f"--{name}"]
            text = docs.get(field.name, "")
            if value is not dataclasses.MISSING:
                text += f" [{_typed(value)}]"
            group.add_argument(
                *names,
                dest=PREFIX + name,
                metavar=_metavar(hint),
                nargs="?" if _is_bool(hint) else None,
                default=argparse.SUPPRESS,
                const=hint if not _is_bool(hint) else None,
                help=text.replace("%", "%%") if self.shows(name) else argparse.SUPPRESS,
                action=_Switch if _is_bool(hint) else _Given,
            )

    def shows(self, name: str) -> bool:
        """Tell whether the help of a flag is shown."""
        return self.whole or name in self.main


class _Switch(_Given):
    """Argparse action of a true/false flag; without a value it is true."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        value = True if values is None else _plain(values, bool)
        if isinstance(value, str) and set("./:") & set(value):  # the MODEL, behind the flag
            raise ConfigError(f"{option_string} takes true or false: put {quoted(value)} before it")
        setattr(namespace, self.dest, value)


def _is_bool(hint: Any) -> bool:
    """Tell whether a flag may stand alone: the type is true or false, or a union with that."""
    inner = hint.__origin__ if typing.get_origin(hint) is typing.Annotated else hint
    return inner is bool or bool in typing.get_args(inner)


def _metavar(hint: Any) -> str:
    """Return the placeholder of a value in the help, such as INT or TEXT,..."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _metavar(parts[0])
    if origin in (types.UnionType, typing.Union):
        return "|".join(_metavar(part) for part in parts if part is not types.NoneType)
    if origin is typing.Literal:
        return "|".join(parts)
    if origin is tuple:
        return f"{_metavar(parts[0])},..."
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "NAME"
    return {int: "INT", float: "NUMBER", bool: "true|false"}.get(hint, "TEXT")


def _default(field: Any, of: Any) -> Any:
    """Return a field's value in the instance `of`, else its own default, else MISSING."""
    if dataclasses.is_dataclass(of) and hasattr(of, field.name):
        return getattr(of, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _typed(value: Any) -> str:
    """Return a default as it is written on the command line."""
    plain = to_plain(value)
    if isinstance(plain, list):
        return ",".join(map(str, plain))
    return str(plain).lower() if plain is None or isinstance(plain, bool) else str(plain)


def given_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields given on the command line, as nested plain values."""
    nested: dict[str, Any] = {}
    for name, value in vars(arguments).items():
        if name.startswith(PREFIX):
            *path, last = name.removeprefix(PREFIX).split(".")
            table = nested
            for part in path:
                table = table.setdefault(part, {})
            table[last] = value
    return nested
