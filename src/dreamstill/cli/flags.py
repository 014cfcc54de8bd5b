"""Flags from settings: every field of a dataclass is one, its docstring is its help."""

import argparse
import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from enum import Enum
from typing import Any

from dreamstill.errors import ConfigError, shown

__all__ = ["PREFIX", "add_flags", "given_flags"]

PREFIX = "settings:"


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
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


class _Typed(argparse.Action):
    """Convert here: as `type=` argparse would hide our errors behind its own."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        value = from_text(self.const, values, self.dest.removeprefix(PREFIX))
        setattr(namespace, self.dest, value)


def add_flags(
    parser: argparse.ArgumentParser,
    kind: type,
    name: str,
    default: Any = None,
    *,
    short: tuple[str, ...] = (),
) -> None:
    """Add --NAME.FIELD for every field of the dataclass `kind`, nested ones too.

    The defaults shown are those of `default`, an instance of it, where there is one; a field in
    `short` is also --FIELD.
    """
    group = parser.add_argument_group(name, (kind.__doc__ or "").splitlines()[0])
    docs, hints = field_docs(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        flag = f"{name}.{field.name}"
        parts = [p for p in typing.get_args(hint) if p is not type(None)]
        nested = parts[0] if isinstance(hint, types.UnionType) else hint
        if dataclasses.is_dataclass(nested):  # where it may be none, any of its flags makes it
            assert isinstance(nested, type)
            add_flags(parser, nested, flag, _default(field, default))
            continue
        text, value = docs.get(field.name, ""), _default(field, default)
        if value is not dataclasses.MISSING:
            text += f" [{show(value)}]"
        group.add_argument(
            *([f"--{field.name}"] if field.name in short else []),
            f"--{flag}",
            dest=PREFIX + flag,
            metavar=field.name.upper(),
            default=argparse.SUPPRESS,
            help=text.replace("%", "%%"),
            action=_Typed,
            const=hint,
        )


def _default(field: Any, of: Any) -> Any:
    """A field's default: that of the instance `of`, else the field's own; MISSING: none."""
    if dataclasses.is_dataclass(of) and hasattr(of, field.name):
        return getattr(of, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def show(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple):
        return ",".join(show(v) for v in value)
    return str(value.value if isinstance(value, Enum) else value)


def from_text(hint: Any, text: str, flag: str) -> Any:
    """What was typed -> a plain value for `from_plain`; lists are written 1,2,3."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none":
            return None
        return from_text(next(p for p in parts if p is not type(None)), text, flag)
    if origin is tuple:
        inside = text.strip("[]")
        return [from_text(parts[0], part, flag) for part in inside.split(",")] if inside else []
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{flag} must be true or false; got {shown(text)}")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ConfigError(
                f"{flag} must be a number ({hint.__name__}); got {shown(text)}"
            ) from None
    return text


def given_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """Nested dict of the settings that were typed."""
    nested: dict[str, Any] = {}
    for name, value in vars(arguments).items():
        if name.startswith(PREFIX):
            *path, last = name.removeprefix(PREFIX).split(".")
            table = nested
            for part in path:
                table = table.setdefault(part, {})
            table[last] = value
    return nested
