"""A run's folder: settings, environment, log, checkpoint, buffer, student; kill it and resume it.

The one place that owns seeds and devices.
"""

import json
import time
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dreamstill.config import at_least, config_class, no_effect, none_or_at_least, to_plain
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.distillation import Distillation
from dreamstill.distillation.weight_inheritance import inherit
from dreamstill.errors import ConfigError, RunError, TeacherError
from dreamstill.files.checkpoints import digest, load_checkpoint, save_checkpoint, save_weights
from dreamstill.files.reading import StrPath, reading, understood
from dreamstill.files.writing import write_atomically, write_json
from dreamstill.loaders.factory import build
from dreamstill.loaders.teacher_file import TeacherFile
from dreamstill.nn.hooks import batch_norm_layers
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.process import _process_rng, _set_process_rng, seeded_process
from dreamstill.pipelines.run_directory import claimed
from dreamstill.progress import Progress
from dreamstill.synthesis.registry import METHODS, needs_student, open_synthesizer
from dreamstill.teacher import Precision, Teacher, open_teacher

__all__ = ["Job", "RANDOM_START", "distill", "open_student"]

RANDOM_START = "0 steps leave a student at its random start: take steps, or let it inherit"


@config_class
class Job:
    """All that decides a run's result."""

    teacher: TeacherFile
    student: str
    """module:function that builds the student."""
    method: str
    """A synthesizer's name in the table of methods."""
    synthesis: Any
    """The method's settings."""
    inherit: bool = False
    """Start the student, a narrower copy of the teacher, from the teacher's channels."""
    reconstruct: int = 2048
    """Images, at most the buffer's, on which the layers of a student that inherits are solved, by
    least squares, for what they make in the teacher, before the first step; at least 2, or 0:
    it starts as it was cut."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    seed: int = 0
    device: str = "cpu"
    precision: Precision = Precision.FLOAT32
    """float32, or bfloat16: faster for all but the smallest networks, where the device has it."""
    checkpoint_every: float = 20.0
    """Seconds between checkpoints; at least 0. No effect on the result."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in [0, 2^63); got {self.seed}")
        none_or_at_least(self, 2, "reconstruct")
        if not self.inherit:
            no_effect(self, "without inherit", "reconstruct")
        self._check_batch_size()
        if self.distill.steps == 0 and not self.inherit:
            raise ConfigError(RANDOM_START)
        at_least(self, 0, "checkpoint_every")

    def _check_batch_size(self) -> None:
        """Refuse the size of replayed batches, or a prefill, where nothing is replayed."""
        period = self.distill.fresh_period(streams=METHODS[self.method].synthesizer.streams)
        asked, fresh = self.distill.batch_size, self.synthesis.batch_size
        if period == 1 and asked not in (DistillConfig().batch_size, fresh):
            raise ConfigError(
                f"distill.batch_size {asked} is of replayed images, and with a fresh batch of "
                f"{fresh} at every step none is: set synthesis.batch_size, or distill.fresh_every"
            )
        if period == 1 and self.distill.prefill:
            raise ConfigError(
                f"distill.prefill {self.distill.prefill} makes images to replay, and with a fresh "
                "batch at every step none is: set distill.fresh_every too"
            )


def open_student(factory: str, teacher: Teacher, rng: torch.Generator) -> nn.Module:
    """Build a student with weights drawn from `rng` and check that it answers as the teacher.

    Raises:
        ConfigError: it has another number of classes.
        TeacherError: the factory fails, or what it builds does not run on the teacher's inputs.

    """
    with seeded(rng):
        student = build(factory)
    student = student.to(teacher.device)
    probe = open_teacher(student, teacher.spec, device=str(teacher.device), role="student")
    if probe.capabilities.obstacle:
        raise TeacherError(
            f"the student {factory!r} cannot be trained: {probe.capabilities.obstacle}"
        )
    if probe.num_classes != teacher.num_classes:
        raise ConfigError(
            f"the student {factory!r} has {probe.num_classes} classes, "
            f"the teacher {teacher.num_classes}"
        )
    return student.train().requires_grad_()


def distill(
    folder: StrPath,
    job: Job,
    teacher: Teacher,
    *,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> nn.Module:
    """Run a distillation in `folder`, or take it up where its last checkpoint is.

    Args:
        folder: new, or with `resume` one that holds a run of the same settings.
        job: what to do; `teacher` must be the opened job.teacher.
        on_progress: called after every synthesized batch and student step.

    Returns:
        The chosen student, in eval mode, also written to folder/student.safetensors.

    Raises:
        ConfigError: the job contradicts itself, its teacher or its student.
        TeacherError: the student does not run, or the teacher lacks what the method needs.
        RunError: the folder holds something else, or cannot be made, read or written.
        NonFiniteError: a loss is not finite; before the update.

    """
    if teacher.precision is not job.precision:
        raise ConfigError(
            f"the job is in {job.precision} and its teacher was opened in {teacher.precision}: "
            "open_from(job.teacher, precision=job.precision)"
        )
    _check_competition(job)
    folder = Path(folder)
    origin = {"teacher": teacher.fingerprint}
    with (
        seeded_process(job.seed, job.device),
        claimed(
            folder,
            job,
            origin,
            device=job.device,
            resume=resume,
            worth=("checkpoint.pt",),
            makes=("replay_buffer", "log.jsonl"),
        ),
    ):
        work = _distillation(folder, job, teacher)
        return _follow(folder, job, work, on_progress)


def _check_competition(job: Job) -> None:
    """What plays against the student is made while it learns, not all against its random start."""
    streams = METHODS[job.method].synthesizer.streams
    if not job.distill.fresh_period(streams=streams) and needs_student(job.method, job.synthesis):
        raise ConfigError(
            f"{job.method} plays against the student, and all its images would be made before its "
            "first step: set distill.fresh_every, 50 in Adaptive DeepInversion's paper"
        )


def _distillation(folder: Path, job: Job, teacher: Teacher) -> Distillation:
    """A job's distillation before its first step."""
    rng = torch.Generator(device=job.device).manual_seed(job.seed)
    student = open_student(job.student, teacher, rng)
    inherited = inherit(teacher.module, student) if job.inherit else None
    method = open_synthesizer(job.method, teacher, job.synthesis, rng=rng)
    fresh = job.distill.fresh_period(streams=method.streams)
    normed = batch_norm_layers(student) and not job.distill.freeze_batch_norm
    if fresh and normed and job.synthesis.batch_size == 1:
        raise ConfigError(
            "a student with BatchNorm needs two images or more at once: synthesis.batch_size is 1"
        )
    create = not (folder / "checkpoint.pt").exists()
    buffer = ReplayBuffer(
        folder / "replay_buffer", teacher.spec, job.distill.buffer_size, create=create
    )
    return Distillation(
        teacher,
        student,
        method,
        buffer,
        job.distill,
        rng=rng,
        inherited=inherited,
        reconstruct=job.reconstruct,
    )


def _follow(
    folder: Path, job: Job, work: Distillation, on_progress: Callable[[Progress], None]
) -> nn.Module:
    """Take a distillation from its checkpoint, if there is one, to its end."""
    checkpoint, spent = folder / "checkpoint.pt", 0.0
    if checkpoint.exists():
        spent = _take_up(checkpoint, job, work)
    log = _Log(folder / "log.jsonl", work.step)
    start = saved = time.monotonic()

    def save() -> None:
        state = {
            "origin": _origin_of_checkpoint(job, work.teacher),
            "work": work.state_dict(),
            "seconds": spent + time.monotonic() - start,
            "process_rng": _process_rng(job.device),
        }
        save_checkpoint(checkpoint, state)
        work.stream.buffer.commit()

    for progress in work.run():
        if progress.record:
            log.write(progress.record | {"seconds": spent + time.monotonic() - start})
        if time.monotonic() - saved >= job.checkpoint_every:
            log.flush()
            save()
            saved = time.monotonic()
        on_progress(progress)
    log.flush()
    save()
    save_student(folder, job.student, work.chosen, work.teacher)
    write_json(
        folder / "result.json",
        {
            "seconds": round(spent + time.monotonic() - start, 3),
            "queries": work.teacher.queries,
            "steps": job.distill.steps,
            "chosen_at_step": work.selector.best_step,
            "validation_agreement": work.selector.measure(work.chosen)[0],
            "warnings": work.warnings,
        },
    )
    return work.chosen


def _origin_of_checkpoint(job: Job, teacher: Teacher) -> dict[str, str]:
    """What a checkpoint is of."""
    return {"teacher": teacher.fingerprint, "settings": digest(to_plain(job))}


def _take_up(checkpoint: Path, job: Job, work: Distillation) -> float:
    """Go on from a checkpoint; the seconds that were spent before it.

    Raises:
        RunError: it is damaged, or of another run.

    """
    state = load_checkpoint(checkpoint, job.device)
    wanted = _origin_of_checkpoint(job, work.teacher)
    if state.get("origin") != wanted:
        raise RunError(f"{checkpoint} is of another run: its teacher or settings are others")
    with understood(checkpoint, RunError, "does not fit its run"):
        work.load_state_dict(state["work"])
        _set_process_rng(state["process_rng"], job.device)
        return float(state["seconds"])


def save_student(folder: Path, factory: str, student: nn.Module, teacher: Teacher) -> None:
    """Write student.safetensors and its card, so that a student opens as a teacher does."""
    save_weights(folder / "student.safetensors", student)
    spec = to_plain(teacher.spec)
    write_json(
        folder / "student.json", {"factory": factory, **spec, "num_classes": teacher.num_classes}
    )


class _Log:
    """log.jsonl: one record a line, buffered; lines after the checkpoint's step are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.lines = path, list[str]()
        if path.exists():
            with reading(path, RunError):
                lines = path.read_text("utf-8", errors="replace").splitlines()
            done = [line for line in lines if _step_of(line) <= step]
            write_atomically(path, "".join(line + "\n" for line in done).encode())

    def write(self, record: dict[str, float]) -> None:
        self.lines.append(json.dumps(record))
        if "best" in record:
            self.flush()

    def flush(self) -> None:
        try:
            with self.path.open("a") as file:
                file.writelines(line + "\n" for line in self.lines)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}") from error
        self.lines.clear()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return np.inf  # torn by a kill
