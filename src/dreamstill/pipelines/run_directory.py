"""Create, check and lock run directories: one process at a time uses each."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import torch

from dreamstill.config import read_plain, to_plain
from dreamstill.errors import RunError
from dreamstill.files.checkpoints import digest
from dreamstill.files.reading import check_run
from dreamstill.files.writing import _remove, created_directory, write_json
from dreamstill.process_group import is_main, share_files

__all__ = [
    "check_empty",
    "check_fingerprints",
    "environment",
    "is_vacant",
    "locked",
    "open_run_directory",
    "read_settings",
    "read_summary",
]

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
TEMPORARY = re.compile(r"\..+?(\.\d+)?\.tmp(\.\w+)?")
"""Names of unfinished files; those that this package writes contain the process id."""
RUN_FILES = ("config.json", "fingerprints.json", "environment.json")
"""Files that every run directory has from the start."""


@contextmanager
def open_run_directory(
    folder: Path,
    job: Any,
    fingerprints: Mapping[str, str],
    *,
    device: str = "cpu",
    resume: bool = False,
    resume_from: tuple[str, ...],
    intermediate: tuple[str, ...] = (),
    changeable: tuple[str, ...] = (),
    needed: tuple[str, ...] = (),
) -> Iterator[Path]:
    """Create or reopen a run directory, and lock it while the body runs.

    Of several processes the main one has it; the others work in a temporary directory of their own.

    If the body fails before it has written a file to resume from, the directory is emptied again,
    so that the corrected command works.

    Args:
        folder: run directory, new or empty; with `resume`, one of the same job.
        job: configuration, written to config.json.
        fingerprints: fingerprints of other inputs by name, such as the teacher.
        device: device for environment.json.
        resume: continue the run in the directory.
        resume_from: patterns of the files to resume from.
        intermediate: names of other files that the body writes before those.
        changeable: names of settings that may change on resuming.
        needed: patterns of the files that other processes need to resume, which they get.

    Yields:
        The directory to write to.

    Raises:
        RunError: another process uses the directory, it holds something else, or it cannot be
            created.

    """
    if not is_main():
        with TemporaryDirectory(prefix="dreamstill-") as temporary:
            share_files(Path(temporary), needed)
            yield Path(temporary)
        return
    if resume:
        check_run(folder, "run to resume")
    else:
        check_empty(folder)
    with created_directory(folder), locked(folder):
        remove_temporaries(folder)
        plain = to_plain(job)
        fingerprints = {"settings": settings_digest(plain), **fingerprints}
        if resume:
            _check_same(folder, plain, fingerprints, resume_from=resume_from, changeable=changeable)
        else:
            check_empty(folder)  # again, now that no other process can fill it
        with _emptied_on_failure(folder, resume_from, intermediate):
            _write_new(folder, plain, fingerprints, device)
            share_files(folder, needed)
            yield folder


@contextmanager
def _emptied_on_failure(
    folder: Path, resume_from: tuple[str, ...], intermediate: tuple[str, ...]
) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if not any(any(folder.glob(pattern)) for pattern in resume_from):
            for name in (*intermediate, *RUN_FILES):
                _remove(folder / name)
        raise


def _write_new(folder: Path, plain: Any, fingerprints: Mapping[str, str], device: str) -> None:
    """Write the missing RUN_FILES; config.json first, as it marks a run directory."""
    if not (folder / "config.json").is_file():
        write_json(folder / "config.json", plain)
    if not (folder / "fingerprints.json").is_file():
        write_json(folder / "fingerprints.json", dict(fingerprints))
    if not (folder / "environment.json").is_file():
        write_json(folder / "environment.json", environment(device))


def _check_same(
    folder: Path,
    plain: dict[str, Any],
    fingerprints: Mapping[str, str],
    *,
    resume_from: tuple[str, ...],
    changeable: tuple[str, ...],
) -> None:
    """Raise RunError unless a run directory has these settings and fingerprints."""
    found = read_settings(folder)
    for key in plain.keys() - {*changeable}:
        if found.get(key) != plain[key]:
            raise RunError(
                f"{folder} was started with another {key}; it cannot be resumed"
                + _usable_images(folder)
            )
    if (
        any(any(folder.glob(pattern)) for pattern in resume_from)
        or (folder / "fingerprints.json").is_file()
    ):
        check_fingerprints(folder, fingerprints)


def check_fingerprints(folder: Path, fingerprints: Mapping[str, str]) -> None:
    """Raise RunError if a fingerprint of a run directory, such as the teacher's, has changed."""
    found = read_plain(folder / "fingerprints.json")
    if changed := [name for name in fingerprints if found.get(name) != fingerprints[name]]:
        raise RunError(
            f"{folder} was started with another {changed[0]} ({found.get(changed[0])}, now "
            f"{fingerprints[changed[0]]}): its file or card has changed since"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """Read config.json of a run directory.

    Raises RunError if it is missing or damaged, or was edited after the run began.
    """
    path, digests = folder / "config.json", folder / "fingerprints.json"
    check_run(folder)
    plain = read_plain(path)
    if digests.is_file() and read_plain(digests).get("settings") != settings_digest(plain):
        raise RunError(
            f"{path} was edited after the run began, or is of another version: put back what it "
            "said, or start another run"
        )
    return plain


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the content of summary.json, or {} if it does not exist."""
    path = folder / "summary.json"
    return read_plain(path) if path.is_file() else {}


def settings_digest(plain: dict[str, Any]) -> str:
    """Return the digest of a configuration without its stages, which have their own digests.

    It leaves out the plug-ins as well, as a stage that is added may need another, the minutes that
    a search may take, as it may go on for longer, and how often a checkpoint is written.
    """
    changeable = {"plugin", "stages", "minutes", "checkpoint_every"}
    return digest({key: plain[key] for key in plain.keys() - changeable})


def check_empty(folder: Path) -> None:
    """Raise RunError unless `is_vacant(folder)`."""
    if not is_vacant(folder):
        raise RunError(
            f"{folder} is not empty: choose another folder, or resume the run in it"
            + _usable_images(folder)
        )


def is_vacant(folder: Path) -> bool:
    """Tell whether a directory does not exist, or holds nothing but locks and unfinished files."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(
        path.name == LOCK or TEMPORARY.fullmatch(path.name) for path in folder.iterdir()
    )


def _usable_images(folder: Path) -> str:
    """Return the end of a message that suggests reusing the images of a directory, or ""."""
    images = folder / "images.npz"
    return f"; its images may be used again: --images {images}" if images.is_file() else ""


def remove_temporaries(folder: Path) -> None:
    """Remove unfinished files that killed processes of this package have left."""
    for path in folder.rglob(".*"):
        found = TEMPORARY.fullmatch(path.name)
        if found is not None and found[1] and path.is_file():
            _remove(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a directory while the body runs; the lock ends with the process, even if killed.

    Raises RunError if another process holds the lock.
    """
    path = folder / LOCK
    file = _lock(path, folder)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows cannot remove an open file; a leftover locks nothing
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
        file.close()  # removed by the process that had the lock: lock the new file


def _hold(file: IO[bytes]) -> None:
    """Lock an open file; raise BlockingIOError or PermissionError if it is locked already."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:
        pass  # the file system has no locks: run without one


def environment(device: str) -> dict[str, Any]:
    """Return versions, commit, hardware and number of threads."""
    here = Path(__file__)
    try:
        tracked = subprocess.run(  # the directory may lie in the repository of another project
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
