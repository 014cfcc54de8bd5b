"""The files of a run's folder, each written whole or not at all.

Under a temporary name, and renamed: a reader, or a resume, never sees half of one.
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from dreamstill.errors import DreamstillError, RunError, first_line
from dreamstill.reading import reading
from dreamstill.settings import read_plain, to_plain

__all__ = [
    "check_empty",
    "claim",
    "claimed",
    "discard",
    "environment",
    "load_checkpoint",
    "save_arrays",
    "save_weights",
    "write_atomically",
    "write_json",
]


def claim(folder: Path, job: Any, *, device: str = "cpu", resume: bool = False) -> None:
    """Make the folder of a job, or with `resume` check that it holds the same one.

    Raises:
        RunError: there is something else in it, or it cannot be made.

    """
    settings, plain = folder / "settings.json", to_plain(job)
    if resume:
        if not settings.is_file():
            raise RunError(f"{folder} holds no run to resume: settings.json is missing")
        found = read_plain(settings)
        if changed := [key for key in plain if found.get(key) != plain[key]]:
            raise RunError(
                f"{folder} was started with another {changed[0]}; it cannot be resumed"
                + _usable_images(folder)
            )
        return
    check_empty(folder)
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(settings, plain)
        write_json(folder / "environment.json", environment(device))
    except (OSError, RunError) as error:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, RunError):
            raise
        raise RunError(f"cannot make the run's folder {folder}: {error.strerror}") from error


@contextmanager
def claimed(folder: Path, job: Any, *worth: str, resume: bool = False) -> Iterator[None]:
    """Claim a folder, and undo it where a mistake ends the job before anything worth keeping.

    Args:
        folder, job, resume: see `claim`.
        worth: patterns of files that a resume would take up.

    """
    existed = folder.exists()
    claim(folder, job, resume=resume)
    try:
        yield
    except DreamstillError:
        if not resume and not any(any(folder.glob(pattern)) for pattern in worth):
            discard(folder, existed=existed)
        raise


def check_empty(folder: Path) -> None:
    """RunError unless a folder is absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        more = _usable_images(folder)
        raise RunError(
            f"{folder} is not empty: choose another folder, or resume the run in it{more}"
        )


def _usable_images(folder: Path) -> str:
    """What another job may take of a folder, where it has it."""
    images = folder / "images.npz"
    return f"; its images may be used again: --images {images}" if images.is_file() else ""


def discard(folder: Path, *, existed: bool) -> None:
    """Undo a claim: the folder is empty again where it was there before, else gone."""
    shutil.rmtree(folder, ignore_errors=True)
    if existed:
        folder.mkdir(exist_ok=True)


def environment(device: str) -> dict[str, Any]:
    """Versions, hardware, threads and commit, for the record."""
    here = Path(__file__).parent
    try:
        tracked = subprocess.run(  # a folder that lies in another project's is none of its commits
            ["git", "ls-files", "--error-unmatch", "folder.py"], cwd=here, capture_output=True
        )
        head = ["git", "rev-parse", "--short", "HEAD"]
        found = subprocess.run(head, cwd=here, capture_output=True, text=True)
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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file beside `path`, then rename it; RunError if it cannot."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # each writer reports a full disk so
        reason = getattr(error, "strerror", None) or first_line(error)
        raise RunError(f"cannot write {path}: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays as a compressed .npz."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a name without .npz would be given one
            np.savez_compressed(file, **arrays)

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def save_weights(path: Path, module: nn.Module) -> None:
    """Write a network's state dict as .safetensors."""
    # copies: the format has no tensors that share their values
    weights = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(weights, temporary))


def load_checkpoint(path: Path, device: str) -> dict[str, Any]:
    """What torch.save wrote, its tensors on the device; RunError for a damaged file."""
    with reading(path, RunError):
        state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict):
        raise RunError(f"{path} is damaged: it holds {type(state).__name__}, not a checkpoint")
    return state
