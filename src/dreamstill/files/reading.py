"""Read files, and turn whatever a reader raises into a typed one-line error."""

import json
import os
import stat
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamstill.errors import ConfigError, DreamstillError, RunError, first_line

__all__ = ["StrPath", "check_file", "check_run", "read_json", "read_toml", "reading", "understood"]

StrPath = str | os.PathLike[str]

DEEPEST = 64
"""Maximum nesting depth of a JSON or TOML file."""
MOST_BITS = 12_000
"""Maximum size of an integer: Python cannot print more than 4,300 digits."""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def reading(
    path: StrPath,
    error: type[DreamstillError],
    wrong: str = "is damaged",
    *,
    what: str = "",
    instead: str = "",
) -> Iterator[None]:
    """Turn exceptions raised while a regular file is read into `error`.

    Args:
        path: file to read. Only a regular file is opened: opening a FIFO would block forever.
        error: class to raise. A DreamstillError from the body passes unchanged.
        wrong: predicate of the message for an unreadable file, such as "is not a whole .npz file".
        what: content of the file, such as "weights", for the message when there is no file.
        instead: advice at the end of the message.

    """
    check_file(path, error, what)
    with understood(path, error, wrong, instead=instead):
        yield


@contextmanager
def understood(
    where: StrPath, error: type[DreamstillError], wrong: str, *, instead: str = ""
) -> Iterator[None]:
    """Turn exceptions raised while the content of `where` is parsed into `error`; see `reading`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities that do not stop the reader
            yield
    except (DreamstillError, BrokenPipeError):
        raise
    except Exception as failed:  # a damaged file can cause any exception
        if isinstance(failed, OSError) and failed.errno is not None:  # Pillow's have no errno
            raise error(f"cannot read {where}: {failed.strerror}") from failed
        more = f"; {instead}" if instead else ""
        raise error(f"{where} {wrong}: {_reason(failed)}{more}") from failed


def check_file(path: StrPath, error: type[DreamstillError], what: str = "") -> None:
    """Raise `error` unless `path` is a regular file; see `reading`."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116 (an empty Path is the folder)
    except (FileNotFoundError, NotADirectoryError) as failed:
        name = os.fspath(path) or "''"
        absent = f"no {what} at {name}" if what else f"cannot read {name}: {failed.strerror}"
        raise error(absent) from failed
    except OSError as failed:
        raise error(f"cannot read {path}: {failed.strerror}") from failed
    except ValueError as failed:  # a name with a null character
        raise error(f"cannot read {path}: {failed}") from failed
    if kind != stat.S_IFREG:
        raise error(f"cannot read {path}: it is {KINDS.get(kind, 'special')}, not a regular file")


def check_run(folder: Path, what: str = "run") -> None:
    """Raise RunError unless a directory holds a run of this version."""
    if (folder / "config.json").is_file():
        return
    if (folder / "settings.json").is_file():  # the name of config.json before 0.1
        raise RunError(
            f"{folder} holds a run of an earlier version, whose settings have other names now: its "
            "networks and images are good, but it is not read or resumed; start another run"
        )
    raise RunError(f"{folder} holds no {what}: config.json is missing")


def read_json(path: StrPath, error: type[DreamstillError], wrong: str = "is damaged") -> Any:
    """Return the plain values in a JSON file; raise `error` if it is not JSON."""
    with reading(path, error, wrong):
        return _within_limits(json.loads(Path(path).read_text("utf-8")))


def read_toml(path: StrPath, error: type[DreamstillError] = ConfigError) -> dict[str, Any]:
    """Return the plain values in a TOML file; raise `error` if it is not TOML."""
    with reading(path, error, "is not valid TOML"):
        table: dict[str, Any] = _within_limits(tomllib.loads(Path(path).read_text("utf-8")))
        return table


def _within_limits(value: Any, depth: int = 0) -> Any:
    """Return the value; raise ValueError if it is nested too deep or holds too large an integer."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError("it holds a number of more than 3,600 digits")
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _within_limits(part, depth + 1)
    return value


def _reason(failed: Exception) -> str:
    """Describe an exception of a third-party reader in one line."""
    if isinstance(failed, RecursionError):
        return "it is nested too deep"
    if isinstance(failed, KeyError):
        return f"it lacks {failed.args[0]!r}" if failed.args else "it lacks a name"
    if isinstance(failed, MemoryError):
        return first_line(failed) if str(failed) else "it asks for more memory than there is"
    return first_line(failed)
