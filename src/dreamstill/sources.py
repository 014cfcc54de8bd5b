"""The images that a chain or a new class works with: given, or synthesized from the teacher."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dreamstill.errors import RunError, SettingsError
from dreamstill.evaluate import load_unlabelled
from dreamstill.run import TeacherFile, draw_images, write_atomically, write_json
from dreamstill.synthesis import METHODS, needs_student
from dreamstill.tasks.distill import Progress
from dreamstill.teacher import Teacher

__all__ = ["Images", "OnProgress", "own_images", "same_origin"]

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """A teacher and the images to work with."""

    teacher: TeacherFile
    images: str | None = None
    """.npz with x, uint8 (N, C, H, W); default: synthesize them."""
    method: str = "structured_noise"
    """What synthesizes them."""
    synthesis: Any = None
    """The method's settings; default: its own."""
    num_images: int = 4000
    """How many to synthesize; at least 8."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise SettingsError(f"seed must be in [0, 2^63); got {self.seed}")
        if self.num_images < 8:
            raise SettingsError(f"num_images must be at least 8; got {self.num_images}")
        able = [name for name, m in METHODS.items() if not m.synthesizer.adversarial]
        if self.method not in able:
            raise SettingsError(f"method must be one of {', '.join(able)}; got {self.method!r}")
        if needs_student(self.method, self.synthesis):
            raise SettingsError(f"there is no student for {self.method} to play against here")


def own_images(path: Path, job: Images, teacher: Teacher, on_progress: OnProgress) -> Tensor:
    """A job's own images, uint8 (N, C, H, W), kept in `path`, so that a resume has the same."""
    if not path.is_file():
        write_own_images(path, job, teacher, on_progress)
    return load_unlabelled(path, teacher.spec)


def write_own_images(path: Path, job: Images, teacher: Teacher, on_progress: OnProgress) -> None:
    """Synthesize them."""
    settings = METHODS[job.method].settings() if job.synthesis is None else job.synthesis
    checkpoint = path.with_suffix(".pt")
    images, _ = draw_images(
        teacher,
        job.method,
        settings,
        job.num_images,
        seed=job.seed,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, x=images.numpy())

    write_atomically(path, save)
    checkpoint.unlink(missing_ok=True)


def same_origin(folder: Path, teacher: Teacher, images: Tensor | None) -> None:
    """Note of which teacher and images a folder is; RunError if it is of others."""
    origin = {"teacher": teacher.fingerprint}
    if images is not None:
        origin["images"] = hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16]
    path = folder / "origin.json"
    if not path.is_file():
        write_json(path, origin)
    found = json.loads(path.read_text())
    if changed := [name for name in origin if found.get(name) != origin[name]]:
        raise RunError(f"{folder} was started with another {changed[0]}: the file has changed")
