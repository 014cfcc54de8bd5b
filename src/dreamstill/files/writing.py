"""Write files atomically."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dreamstill.errors import DreamstillError, RunError, first_line
from dreamstill.files.image_store import release_pages

__all__ = [
    "created_directory",
    "make_folders",
    "remove_empty",
    "save_arrays",
    "write_atomically",
    "write_json",
]

PART = 2**22
"""Bytes of an array written at a time."""


def write_atomically(
    path: Path,
    data: bytes | memoryview | Callable[[IO[bytes]], object],
    *,
    check: Callable[[Path], object] = lambda temporary: None,
    error: type[DreamstillError] = RunError,
) -> None:
    """Write a file whole or not at all: sync a temporary file to the disk, then rename it.

    Args:
        path: file to write; missing parent directories are created.
        data: content of the file, or a function that writes it to an open file.
        check: called with the temporary file, which has the suffix of `path`; if it raises,
            `path` is not written.
        error: class to raise if the file cannot be written.

    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    made: list[Path] = []
    try:
        made = make_folders(path.parent)
        with temporary.open("wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        check(temporary)
        temporary.replace(path)
        made.clear()
    except OSError as failed:
        raise error(f"cannot write {path}: {failed.strerror or first_line(failed)}") from failed
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        remove_empty(made)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Sync a directory, so that a rename in it survives a loss of power."""
    with suppress(OSError):  # Windows cannot open a directory
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays as a compressed .npz, in parts, so that memory maps are not read whole."""

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                member = zipfile.ZipInfo(f"{name}.npy")
                member.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(member, "w", force_zip64=True) as part:
                    _write_array(part, np.asanyarray(array))

    write_atomically(path, write)


def _write_array(file: IO[bytes], array: NDArray[Any]) -> None:
    """Write an array in the .npy format."""
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, header | {"fortran_order": False})
    rows = array if array.ndim else array[None]
    num = max(1, PART // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), num):
        file.write(rows[start : start + num].tobytes())
        release_pages(rows)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def make_folders(folder: Path) -> list[Path]:
    """Create a directory and its parents; return the new ones. On OSError, none remains."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    made: list[Path] = []
    try:
        for path in reversed(absent):
            path.mkdir(exist_ok=True)
            made.append(path)
        folder.mkdir(exist_ok=True)  # raises if it is a file
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: list[Path]) -> None:
    """Remove the directories that are empty, the last first."""
    for path in reversed(folders):
        with suppress(OSError):
            path.rmdir()


def _remove(path: Path) -> None:
    """Remove a file or a directory tree, and ignore errors."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def created_directory(folder: Path) -> Iterator[None]:
    """Create a directory and its parents; if the body fails, remove those that are still empty.

    Raises RunError if it cannot be created.
    """
    try:
        made = make_folders(folder)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}") from error
    try:
        yield
    except BaseException:
        remove_empty(made)
        raise
