"""Images of a method without a student, and those that a chain or a new class works with."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamstill.errors import RunError, SettingsError
from dreamstill.folder import load_checkpoint, save_arrays, write_atomically, write_json
from dreamstill.images import load_unlabelled
from dreamstill.reading import StrPath
from dreamstill.run import TeacherFile
from dreamstill.settings import at_least, no_effect, read_plain, settings_class, to_plain
from dreamstill.synthesis import (
    METHODS,
    Synthesizer,
    method_settings,
    needs_student,
    open_synthesizer,
)
from dreamstill.tasks.distill import Progress
from dreamstill.teacher import Precision, Teacher

__all__ = ["Images", "OnProgress", "draw_images", "own_images", "read_synthesis", "same_origin"]

OnProgress = Callable[[Progress], None]


@settings_class
class Images:
    """A teacher and the images to work with."""

    teacher: TeacherFile
    images: str | None = None
    """.npz with x, uint8 (N, C, H, W); default: synthesize them."""
    method: str = "structured_noise"
    """What synthesizes them."""
    synthesis: Any = None
    """The method's settings; default: its own."""
    num_images: int | None = None
    """How many to synthesize; at least 8. Default: 4000, or none where no task looks at any."""
    seed: int = 0
    device: str = "cpu"
    """Where images are synthesized and networks trained; files for devices are made on the CPU."""
    precision: Precision = Precision.FLOAT32
    """float32, or bfloat16: of the networks while they run."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise SettingsError(f"seed must be in [0, 2^63); got {self.seed}")
        at_least(self, 8, "num_images")
        able = [name for name, m in METHODS.items() if not m.synthesizer.adversarial]
        if self.method not in able:
            raise SettingsError(f"method must be one of {', '.join(able)}; got {self.method!r}")
        if self.images is not None:
            no_effect(self, "beside images", "method", "synthesis", "num_images")
        if needs_student(self.method, self.synthesis):
            raise SettingsError(f"there is no student for {self.method} to play against here")


def read_synthesis(plain: dict[str, Any]) -> None:
    """In place, a job's `synthesis` and `preset` become the settings of its `method`."""
    method = plain.get("method", "structured_noise")
    given, preset = plain.pop("synthesis", None), plain.pop("preset", None)
    if not isinstance(method, str) or method not in METHODS:
        return  # which is said of the job as a whole
    if given is not None or preset is not None:
        plain["synthesis"] = method_settings(method, given, preset)


def draw_images(
    teacher: Teacher,
    method: str,
    settings: Any,
    num_images: int,
    *,
    seed: int,
    checkpoint: StrPath | None = None,
    checkpoint_every: float = 20.0,
    on_progress: OnProgress = lambda progress: None,
) -> tuple[Tensor, Tensor]:
    """Images of a method that needs no student: uint8 (N, C, H, W), and logits (N, K), on the CPU.

    Args:
        teacher: of the images.
        method, settings, seed: what makes them.
        num_images: how many.
        checkpoint: a file that what is finished goes to, and is taken up from, if it is there. To
            be deleted when the images are kept. None: what is finished is in memory alone.
        checkpoint_every: seconds.
        on_progress: called after every batch.

    Raises:
        SettingsError: the method plays against a student with these settings.
        RunError: the checkpoint is of another teacher or of other settings.

    """
    if needs_student(method, settings):
        raise SettingsError(f"{method} plays against a student: use it with distill")
    rng = torch.Generator(device=teacher.device).manual_seed(seed)
    synthesizer = open_synthesizer(method, teacher, settings, rng=rng)
    origin = {
        "method": method,
        "settings": to_plain(settings),
        "seed": seed,
        "teacher": teacher.fingerprint,
    }
    path = None if checkpoint is None else Path(checkpoint)
    drawn = _Drawn(path, checkpoint_every, origin, synthesizer, rng)
    while drawn.warmed_up < synthesizer.warm_up:
        synthesizer.next_batch()
        drawn.warmed_up += 1
        drawn.save_now_and_then()
        on_progress(Progress("warm up", drawn.warmed_up, synthesizer.warm_up, {}))
    while (have := sum(map(len, drawn.images))) < num_images:
        batch = synthesizer.next_batch()
        drawn.images.append(teacher.spec.decode(batch.images).cpu())
        drawn.logits.append(batch.logits.cpu())
        drawn.save_now_and_then()
        done = min(have + len(batch.images), num_images)
        on_progress(Progress("synthesize", done, num_images, {}))
    return torch.cat(drawn.images)[:num_images], torch.cat(drawn.logits)[:num_images]


class _Drawn:
    """What is drawn so far; also in a file, if there is to be one, from which it is taken up."""

    def __init__(
        self,
        path: Path | None,
        every: float,
        origin: dict[str, Any],
        synthesizer: Synthesizer,
        rng: torch.Generator,
    ) -> None:
        self.path, self.every, self.origin = path, every, origin
        self.synthesizer, self.rng = synthesizer, rng
        self.images, self.logits, self.warmed_up = list[Tensor](), list[Tensor](), 0
        self.saved = time.monotonic()
        if path is not None and path.is_file():
            state = load_checkpoint(path, str(rng.device))
            if changed := [name for name in origin if state["origin"][name] != origin[name]]:
                raise RunError(f"{path} was made with another {changed[0]}")
            synthesizer.load_state_dict(state["synthesizer"])
            rng.set_state(state["rng"].cpu())
            self.images = [part.cpu() for part in state["images"]]
            self.logits = [part.cpu() for part in state["logits"]]
            self.warmed_up = state["warmed_up"]

    def save_now_and_then(self) -> None:
        """Write the file, if it is older than `every` seconds."""
        if self.path is None or time.monotonic() - self.saved < self.every:
            return
        state = {
            "origin": self.origin,
            "synthesizer": self.synthesizer.state_dict(),
            "rng": self.rng.get_state(),
            "images": self.images,
            "logits": self.logits,
            "warmed_up": self.warmed_up,
        }
        write_atomically(self.path, lambda temporary: torch.save(state, temporary))
        self.saved = time.monotonic()


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
        4000 if job.num_images is None else job.num_images,
        seed=job.seed,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )
    save_arrays(path, x=images.numpy())
    checkpoint.unlink(missing_ok=True)


def same_origin(folder: Path, teacher: Teacher, **given: Tensor | None) -> None:
    """Note of which teacher and which given tensors a folder is; RunError if it is of others."""
    origin = {"teacher": teacher.fingerprint} | {
        name: hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
        for name, values in given.items()
        if values is not None
    }
    path = folder / "origin.json"
    if not path.is_file():
        write_json(path, origin)
    found = read_plain(path)
    if changed := [name for name in origin if found.get(name) != origin[name]]:
        raise RunError(f"{folder} was started with another {changed[0]}: the file has changed")
