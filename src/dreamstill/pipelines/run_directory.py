"""A run's folder: one process at a time has it, and each file in it is written whole or not at all.

A file is written under a temporary name, and renamed: a reader, or a resume, never sees half of
one. What a process made and did not finish is removed; what it did not make never is.
"""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from dreamstill.config import read_plain, to_plain
from dreamstill.errors import RunError
from dreamstill.files.checkpoints import digest
from dreamstill.files.reading import check_run
from dreamstill.files.writing import _remove, making, write_json

__all__ = [
    "check_empty",
    "check_origin",
    "claimed",
    "environment",
    "is_vacant",
    "locked",
    "read_settings",
]

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
TEMPORARY = re.compile(r"\..+?(\.\d+)?\.tmp(\.\w+)?")
"""Names of files that were not finished; those of ours have the number of their process."""
CLAIM = ("config.json", "fingerprints.json", "environment.json")
"""What every run's folder has from its start."""


# ---- whose a folder is


@contextmanager
def claimed(
    folder: Path,
    job: Any,
    origin: Mapping[str, str],
    *,
    device: str = "cpu",
    resume: bool = False,
    worth: tuple[str, ...],
    makes: tuple[str, ...] = (),
    free: tuple[str, ...] = (),
) -> Iterator[None]:
    """Have a run's folder for the job in the body alone, new or with `resume` one of the same job.

    Where the body fails before there is anything worth keeping, all is undone, so that the
    corrected command works.

    Args:
        folder: of the run.
        job: its settings, which go to config.json.
        origin: digests by name of what else decides the run, such as the teacher.
        device: for environment.json.
        resume: go on with what is in the folder.
        worth: patterns of the files that a resume would take up.
        makes: what else the body may make in the folder before there is any of those.
        free: names of settings that may be others on resuming.

    Raises:
        RunError: another process has the folder, it holds something else, or it cannot be made.

    """
    if resume:
        check_run(folder, "run to resume")
    else:
        check_empty(folder)
    with making(folder), locked(folder):
        remove_temporaries(folder)
        plain = to_plain(job)
        origin = {"settings": settings_digest(plain), **origin}
        if resume:
            _check_same(folder, plain, origin, worth=worth, free=free)
        else:
            check_empty(folder)  # again, now that nobody else can fill it
        try:
            _note(folder, plain, origin, device)
            yield
        except BaseException:
            if not any(any(folder.glob(pattern)) for pattern in worth):
                for name in (*makes, *CLAIM):
                    _remove(folder / name)
            raise


def _note(folder: Path, plain: Any, origin: Mapping[str, str], device: str) -> None:
    """Write what is not there yet of CLAIM; config.json first, which marks the folder as ours."""
    if not (folder / "config.json").is_file():
        write_json(folder / "config.json", plain)
    if not (folder / "fingerprints.json").is_file():
        write_json(folder / "fingerprints.json", dict(origin))
    if not (folder / "environment.json").is_file():
        write_json(folder / "environment.json", environment(device))


def _check_same(
    folder: Path,
    plain: dict[str, Any],
    origin: Mapping[str, str],
    *,
    worth: tuple[str, ...],
    free: tuple[str, ...],
) -> None:
    """RunError unless a folder is of the job in `plain` and of `origin`."""
    found = read_settings(folder)
    for key in plain.keys() - {*free}:
        if found.get(key) != plain[key]:
            raise RunError(
                f"{folder} was started with another {key}; it cannot be resumed"
                + _usable_images(folder)
            )
    if (
        any(any(folder.glob(pattern)) for pattern in worth)
        or (folder / "fingerprints.json").is_file()
    ):
        check_origin(folder, origin)


def check_origin(folder: Path, origin: Mapping[str, str]) -> None:
    """RunError where a run's folder is of another origin, say of another teacher, than this."""
    found = read_plain(folder / "fingerprints.json")
    if changed := [name for name in origin if found.get(name) != origin[name]]:
        raise RunError(
            f"{folder} was started with another {changed[0]} ({found.get(changed[0])}, now "
            f"{origin[changed[0]]}): its file or card has changed since"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what config.json of a run's folder holds.

    Raises:
        RunError: there is none, it is damaged, or it was edited after the run began.

    """
    path, origin = folder / "config.json", folder / "fingerprints.json"
    check_run(folder)
    plain = read_plain(path)
    if origin.is_file() and read_plain(origin).get("settings") != settings_digest(plain):
        raise RunError(
            f"{path} was edited after the run began: put back what it said, or start another run"
        )
    return plain


def settings_digest(plain: dict[str, Any]) -> str:
    """Return the digest of a run's configuration, without a chain's stages: each has its own."""
    return digest({key: value for key, value in plain.items() if key != "stages"})


def check_empty(folder: Path) -> None:
    """RunError unless a folder is absent, or holds nothing but what was not finished."""
    if not is_vacant(folder):
        raise RunError(
            f"{folder} is not empty: choose another folder, or resume the run in it"
            + _usable_images(folder)
        )


def is_vacant(folder: Path) -> bool:
    """There is no such folder, or nothing in it but locks and files that were not finished."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(
        path.name == LOCK or TEMPORARY.fullmatch(path.name) for path in folder.iterdir()
    )


def _usable_images(folder: Path) -> str:
    """What another job may take of a folder, where it has it."""
    images = folder / "images.npz"
    return f"; its images may be used again: --images {images}" if images.is_file() else ""


def remove_temporaries(folder: Path) -> None:
    """Remove what processes of ours that were killed have left in a folder."""
    for path in folder.rglob(".*"):
        found = TEMPORARY.fullmatch(path.name)
        if found is not None and found[1] and path.is_file():
            _remove(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder for the body alone: the lock goes with the process, however it ends.

    Raises:
        RunError: another process has it.

    """
    path = folder / LOCK
    file = _lock(path, folder)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open; left behind, it locks none
            path.unlink()
        file.close()


def _lock(path: Path, folder: Path) -> IO[bytes]:
    """Open a file and lock it."""
    while True:
        try:
            file = path.open("ab")
        except OSError as error:
            raise RunError(f"cannot lock {folder}: {error.strerror}") from error
        try:
            _hold(file)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise RunError(
                f"another process is at work in {folder}: wait until it ends, or stop it"
            ) from error
        except FileNotFoundError:
            pass
        file.close()  # who had it has removed it since: lock the one that is there now


def _hold(file: IO[bytes]) -> None:
    """Lock an open file at once; BlockingIOError or PermissionError where somebody has it."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:
        pass  # a file system without locks: better without one than not at all


# ---- what is in it


def environment(device: str) -> dict[str, Any]:
    """Versions, hardware, threads and commit, for the record."""
    here = Path(__file__)
    try:
        tracked = subprocess.run(  # a folder that lies in another project's is none of its commits
            ["git", "ls-files", "--error-unmatch", here.name], cwd=here.parent, capture_output=True
        )
        head = ["git", "rev-parse", "--short", "HEAD"]
        found = subprocess.run(head, cwd=here.parent, capture_output=True, text=True)
        commit = "" if tracked.returncode else found.stdout.strip()
    except OSError:
        commit = ""
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), "")
    return {
        "dreamstill": version("dreamstill"),
        "commit": commit or "not a checkout",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
    }
