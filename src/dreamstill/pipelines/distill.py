"""Run a distillation in a run directory, with a log and checkpoints to resume from."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dreamstill.config import Precision, read_plain, to_plain
from dreamstill.data.images import load_unlabelled
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.budget import within_budget
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.default_method import open_default
from dreamstill.distillation.distillation import Distillation
from dreamstill.distillation.initialization import Start, initialize
from dreamstill.distillation.plan import (
    log_plan,
    made_by,
    memory_estimate,
    plan,
    with_time_left,
)
from dreamstill.distillation.suiting import suited_to_method
from dreamstill.errors import ConfigError, RunError, TeacherError
from dreamstill.files.checkpoints import digest, load_checkpoint, save_checkpoint, save_weights
from dreamstill.files.reading import StrPath, reading, understood
from dreamstill.files.writing import write_atomically, write_json
from dreamstill.graph.config import kept_share
from dreamstill.loaders.factory import build
from dreamstill.loaders.narrower import load_narrower, narrower
from dreamstill.loaders.state_dict import load_module
from dreamstill.nn.copying import make_output_plain
from dreamstill.nn.hooks import batch_norm_layers
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.config import DistillJob
from dreamstill.pipelines.process import _process_rng, _set_process_rng, seeded_process
from dreamstill.pipelines.run_directory import open_run_directory
from dreamstill.pipelines.synthesize import fingerprints_of
from dreamstill.process_group import (
    check_processes,
    from_main,
    gathered_states,
    own_rng,
    rank,
    sum_over_processes,
)
from dreamstill.progress import OnProgress
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.methods.fastdfkd import FastDfkd
from dreamstill.synthesis.registry import open_synthesizer
from dreamstill.synthesis.stored_images import StoredImages
from dreamstill.synthesis.validation_set import validation_set
from dreamstill.teacher import Teacher

__all__ = ["check_student", "distill", "load_student", "open_student"]

BUDGET = "budget.json"
"""File of a run directory: the steps that the minutes of its job hold."""


def open_student(factory: Any, teacher: Teacher, rng: torch.Generator) -> nn.Module:
    """Build a student with initial weights from `rng`, and check that it fits the teacher.

    Args:
        factory: function or module:function that builds it, or auto:SHARE for a copy of the teacher
            with a share of every width.
        teacher: not changed.
        rng: of the initial weights.

    Raises:
        ConfigError: its number of classes is not the teacher's, or the share is not in (0, 1).
        TeacherError: the factory fails, the student does not run on the teacher's inputs or cannot
            be trained, or the teacher has no narrower copy.

    """
    share = kept_share(factory)
    with seeded(rng):
        student = build(factory) if share is None else narrower(teacher, share)
    name = factory if isinstance(factory, str) else getattr(factory, "__name__", "function")
    return check_student(student.to(teacher.device), teacher, name)


def check_student(student: nn.Module, teacher: Teacher, name: str) -> nn.Module:
    """Return a student in train mode; raise what `open_student` raises if it does not fit."""
    kind = teacher.output_kind
    probe = Teacher(
        student, teacher.input_spec, outputs=kind, device=str(teacher.device), role="student"
    )
    if probe.capabilities.obstacle:
        raise TeacherError(f"the student {name!r} cannot be trained: {probe.capabilities.obstacle}")
    if probe.num_classes != teacher.num_classes:
        raise ConfigError(
            f"the student {name!r} has {probe.num_classes} classes, "
            f"the teacher {teacher.num_classes}"
        )
    if probe.output_spec.size != teacher.output_spec.size:
        raise ConfigError(
            f"the student {name!r} returns {probe.output_spec.shape} for an image, "
            f"the teacher {teacher.output_spec.shape}"
        )
    inputs = teacher.input_spec.encode(teacher.input_spec.noise(2))
    make_output_plain(student, inputs.to(teacher.device))
    return student.train().requires_grad_()


def distill(
    folder: StrPath,
    job: DistillJob,
    teacher: Teacher,
    *,
    resume: bool = False,
    steps: int | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> nn.Module:
    """Run a distillation in `folder`, or resume it from its last checkpoint.

    Args:
        folder: run directory, new or empty; with `resume`, one of the same configuration.
        job: configuration.
        teacher: the teacher opened from job.teacher.
        resume: continue the run in `folder`.
        steps: that the job's minutes hold. Default: they are timed.
        on_progress: called after every synthesized batch and student step.

    Returns:
        Selected student in eval mode, also written to FOLDER/student.safetensors.

    Raises:
        ConfigError: the job contradicts itself, its teacher or its student.
        TeacherError: the student does not run, or the teacher lacks a capability.
        RunError: the directory is not empty, belongs to another job or teacher, or cannot be read
            or written.
        NonFiniteError: a loss is not finite; raised before the update.

    """
    if job.precision not in (teacher.precision, Precision.AUTO):
        raise ConfigError(
            f"the job is in {job.precision} and its teacher was opened in {teacher.precision}: "
            "open_from(job.teacher, precision=job.precision)"
        )
    _check_competition(job)
    images = load_unlabelled(job.images, teacher.input_spec) if job.images else None
    fingerprints = fingerprints_of(teacher, images=images)
    check_processes(teacher.capabilities.budget, teacher.device)
    with (
        seeded_process(job.seed + rank(), job.device),
        open_run_directory(
            Path(folder),
            job,
            fingerprints,
            device=job.device,
            resume=resume,
            resume_from=("checkpoint.pt",),
            intermediate=("replay_buffer", "log.jsonl", BUDGET),
            needed=("checkpoint.pt", "replay_buffer/*", BUDGET),
        ) as folder,
    ):
        if steps is not None and not (folder / BUDGET).is_file():
            write_json(folder / BUDGET, {"steps": steps})
        work, start = _distillation(folder, job, teacher, images, on_progress)
        return _follow(folder, job, work, start, on_progress)


def _check_competition(job: DistillJob) -> None:
    """Raise ConfigError if an adversarial method would make all its images before training."""
    fresh = job.distill.fresh_period(job.fresh_every)
    if not fresh and job.needs_student:
        raise ConfigError(
            f"{job.first_method} plays against the student, and all its images would be made "
            "before its first step: set distill.fresh_every, 50 in Adaptive DeepInversion's paper "
            "and 400 in FastDFKD's code"
        )


def _distillation(
    folder: Path,
    job: DistillJob,
    teacher: Teacher,
    images: Tensor | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> tuple[Distillation, Start]:
    """Return the distillation of a job before its first step, and how its student starts."""
    rng = torch.Generator(device=job.device).manual_seed(job.seed)
    student = open_student(job.student, teacher, rng)
    start = initialize(teacher, student, job.distill)
    method: Method
    if images is not None:
        method = StoredImages(teacher, images, job.synthesis.batch_size, rng=own_rng(rng))
    elif job.method is None:
        method = open_default(
            *(teacher, student, job.synthesis, job.distill, start),
            rng=own_rng(rng),
            follow=_read_budget(folder).get("fastdfkd"),
            on_progress=on_progress,
        )
    else:
        method = open_synthesizer(job.method, teacher, job.synthesis, rng=own_rng(rng))
    config = suited_to_method(teacher, job.distill, method)
    fresh = config.fresh_period(method.fresh_every)
    normed = batch_norm_layers(student) and not job.distill.freeze_batch_norm
    if fresh and normed and job.synthesis.batch_size == 1:
        raise ConfigError(
            "a student with BatchNorm needs two images or more at once: synthesis.batch_size is 1"
        )
    validation_set(teacher, config.num_validation, on_progress)
    config = _within_budget(folder, teacher, student, method, config, start)
    create = not (folder / "checkpoint.pt").exists()
    buffer = ReplayBuffer(
        folder / "replay_buffer", teacher.input_spec, config.buffer_size, create=create
    )
    work = Distillation(
        *(teacher, student, method, buffer, config),
        rng=rng,
        inherited=start.inherited,
        reconstruct=job.distill.reconstruct,
    )
    return work, start


def _within_budget(
    folder: Path,
    teacher: Teacher,
    student: nn.Module,
    method: Method,
    config: DistillConfig,
    start: Start,
) -> DistillConfig:
    """Return the configuration of the training, with the steps that its minutes hold.

    They are timed once, and read back on resuming, as is what makes the images meanwhile.
    """
    if config.minutes is not None and (record := _read_budget(folder)):
        return replace(config, steps=record["steps"], minutes=None)
    timed = within_budget(teacher, student, config, method, inherited=start.inherited)
    if config.minutes is not None:
        fastdfkd = isinstance(method, FastDfkd)
        write_json(folder / BUDGET, {"steps": timed.steps, "fastdfkd": fastdfkd})
    return timed


def _read_budget(folder: Path) -> dict[str, Any]:
    """Return what a run of minutes has written of its steps; nothing if it has not."""
    path = folder / BUDGET
    if not path.is_file():
        return {}
    with understood(path, RunError, "holds a record that no run writes"):
        record = read_plain(path)
        return {"steps": int(record["steps"]), "fastdfkd": bool(record.get("fastdfkd"))}


def _follow(
    folder: Path,
    job: DistillJob,
    work: Distillation,
    start: Start,
    on_progress: OnProgress,
) -> nn.Module:
    """Run a distillation to its end, from its checkpoint if there is one."""
    sentences, memory = plan(work, start, job.source), memory_estimate(work)
    log_plan(sentences, memory)
    checkpoint, spent = folder / "checkpoint.pt", 0.0
    if checkpoint.exists():
        spent = _restore(checkpoint, job, work)
    log = _Log(folder / "log.jsonl", work.step)
    begun = saved = time.monotonic()

    def save() -> None:
        state = {
            "origin": _checkpoint_fingerprints(job, work.teacher),
            "work": work.state_dict(),
            "seconds": spent + time.monotonic() - begun,
            "process_rng": gathered_states(_process_rng(job.device)),
        }
        save_checkpoint(checkpoint, state)
        work.stream.buffer.commit()

    for progress in with_time_left(work.run()):
        if progress.record:
            log.write(progress.record | {"seconds": spent + time.monotonic() - begun})
        if from_main(time.monotonic() - saved >= job.checkpoint_every):
            log.flush()
            save()
            saved = time.monotonic()
        on_progress(progress)
    log.flush()
    save()
    save_student(folder, job, work.chosen, work.teacher)
    write_json(
        folder / "result.json",
        {
            "method": made_by(work, job.source),
            "plan": sentences,
            "memory_estimate": memory,
            "initialization": "random" if start.inherited is None else "inherited",
            "seconds": round(spent + time.monotonic() - begun, 3),
            "queries": sum_over_processes(work.teacher.queries),
            "steps": work.config.steps,
            "image_visits": work.visits,
            "precision": str(work.teacher.precision),
            "chosen_at_step": work.selector.best_step,
            "validation_agreement": work.selector.measure(work.chosen)[0],
            "validation_images": len(work.selector.validation.images),
            "warnings": work.warnings,
        },
    )
    return work.chosen


def _checkpoint_fingerprints(job: DistillJob, teacher: Teacher) -> dict[str, str]:
    """Return the fingerprints of teacher and configuration that a checkpoint belongs to."""
    return {"teacher": teacher.fingerprint, "settings": digest(to_plain(job))}


def _restore(checkpoint: Path, job: DistillJob, work: Distillation) -> float:
    """Restore a checkpoint and return the seconds spent before it.

    Raises RunError if it is damaged or belongs to another run.
    """
    state = load_checkpoint(checkpoint, job.device)
    wanted = _checkpoint_fingerprints(job, work.teacher)
    if state.get("origin") != wanted:
        raise RunError(f"{checkpoint} is of another run: its teacher or settings are others")
    with understood(checkpoint, RunError, "does not fit its run"):
        work.load_state_dict(state["work"])
        if rank() < len(state["process_rng"]):
            _set_process_rng(state["process_rng"][rank()], job.device)
        return float(state["seconds"])


def save_student(folder: Path, job: DistillJob, student: nn.Module, teacher: Teacher) -> None:
    """Write student.safetensors and its card, so that it can be opened as a teacher."""
    save_weights(folder / "student.safetensors", student)
    card = to_plain(teacher.input_spec)
    if kept_share(job.student) is None:
        card["factory"] = job.student
    else:
        card |= {"student": job.student, "teacher": to_plain(job.teacher)}
    write_json(folder / "student.json", card | teacher.output_spec.card)


def load_student(folder: Path, factory: str, teacher: Teacher) -> nn.Module:
    """Return the student that `save_student` wrote; RunError if it is another than `factory`."""
    card, weights = read_plain(folder / "student.json"), folder / "student.safetensors"
    share = kept_share(factory)
    if card.get("factory" if share is None else "student") != factory:
        raise RunError(f"{folder / 'student.json'} is of another student than {factory}")
    if share is not None:
        return load_narrower(teacher, factory, weights)
    student = load_module(factory, weights)
    make_output_plain(student, teacher.input_spec.encode(teacher.input_spec.noise(2)))
    return student


class _Log:
    """Buffered log with one JSON record per line; drops the lines after the checkpoint's step."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.lines = path, list[str]()
        if path.exists():
            with reading(path, RunError):
                lines = path.read_text("utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            write_atomically(path, "".join(line + "\n" for line in kept).encode())

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
        return np.inf  # cut off when the process was killed
