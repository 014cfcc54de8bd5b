"""Measure what is finished: the run of any command, or a network."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreamstill.data.images import load_real
from dreamstill.errors import ConfigError, RunError
from dreamstill.evaluation import predict, scores, warn_of_guesses
from dreamstill.files.reading import StrPath
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.config import CompressJob, DistillJob
from dreamstill.pipelines.goal import GoalJob
from dreamstill.pipelines.pursue import run_goal
from dreamstill.pipelines.run_directory import read_settings
from dreamstill.pipelines.summary import open_run, read_as, read_run, summarize
from dreamstill.profiling import measure_profile
from dreamstill.quiet import without_messages
from dreamstill.teacher import Teacher

__all__ = ["Job", "measure_network", "measure_run", "read_job_of"]

Job = DistillJob | CompressJob | GoalJob


def read_job_of(folder: StrPath) -> Job:
    """Return the job of a run that makes a network; raise RunError if the directory holds none."""
    plain = read_settings(Path(folder))
    if "to" in plain:
        return read_as(GoalJob, plain, folder)
    return read_as(CompressJob, plain, folder) if "stages" in plain else read_run(folder)


def measure_run(
    folder: StrPath, job: Job, real: StrPath, *, baseline: StrPath | None, device: str | None
) -> dict[str, Any]:
    """Measure the networks of a finished run on real images, and return its summary.

    Args:
        folder: directory of the run.
        job: what `read_job_of` returns of it.
        real: images and labels, as .npz or a directory.
        baseline: directory of the noise baseline of a student; None: the run's own, if it has one.
        device: where a student is measured; None: a CPU. Other networks are measured where they
            were made.

    Raises:
        DataError: the images or labels are wrong.
        RunError: the run is not finished, or was changed since.
        ConfigError: the baseline or the device has no effect on this run.

    """
    folder = Path(folder)
    if isinstance(job, DistillJob):
        device = device or "cpu"
        _, teacher, _ = open_run(folder, device=device)
        test = load_real(real, teacher.input_spec, teacher.output_spec)
        source = Path(real).name
        return summarize(folder, real=test, source=source, baseline=baseline, device=device)
    if baseline is not None:
        raise ConfigError("baseline has no effect on a run that trained no student: leave it out")
    if device not in (None, job.device):
        raise ConfigError(f"device {device} has no effect: {folder} is measured on {job.device}")
    if not (folder / "summary.json").is_file():
        raise RunError(f"{folder} is not finished: resume the run first")
    with without_messages(below=logging.WARNING):  # such as what a search will try
        if isinstance(job, GoalJob):
            return run_goal(folder, job, resume=True, real=real)
        return run_compression(folder, job, resume=True, real=real)


def measure_network(teacher: Teacher, real: StrPath) -> dict[str, Any]:
    """Return a network's scores on real images, and its size and latency unless queries cost.

    Raises DataError if the images or labels are wrong.
    """
    x, truth = load_real(real, teacher.input_spec, teacher.output_spec)
    outputs, kind = predict(teacher.module, teacher.input_spec, x), teacher.output_kind
    measured: dict[str, Any] = dict(teacher.output_spec.record)
    measured |= {"images": Path(real).name, "num_images": len(x)} | scores(outputs, truth, kind)
    measured["warnings"] = warn_of_guesses(outputs, truth, kind)
    if teacher.capabilities.budget is None:
        measured |= asdict(measure_profile(teacher.module, teacher.input_spec))
    return measured
