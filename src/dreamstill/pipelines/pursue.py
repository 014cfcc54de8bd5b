"""Compress a network toward a goal, without a method being named.

A run directory holds what that of a compression does, and for every candidate its stages and its
record (candidates/N-TASK/result.json), the teacher's own file, prepared.json, the files of the
recommended network (network.FORMAT, network.int8.FORMAT or network.packed), model_card.md and the
page. Nothing is chosen by real images.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.config import from_plain, read_plain, to_plain
from dreamstill.data.images import load_real, load_unlabelled
from dreamstill.distillation.config import FinetuneConfig
from dreamstill.distillation.plan import memory_on_images, seconds_per_step
from dreamstill.errors import ConfigError, DreamstillError, ExportError, RunError, TeacherError
from dreamstill.evaluation import agreement, answers, evaluating, predict, scores, warn_of_guesses
from dreamstill.exporters.formats import RUNTIMES, check_formats, export, load_exported
from dreamstill.files.reading import StrPath, understood
from dreamstill.files.writing import write_atomically, write_json
from dreamstill.formatting import bytes_of_memory, duration, shown
from dreamstill.loaders.teacher_file import open_from
from dreamstill.nn.closed import ClosedNetwork
from dreamstill.pipelines.candidates import BATCH
from dreamstill.pipelines.compress import NUM_SHOWN, NUM_VALIDATION, Made, layer_weights
from dreamstill.pipelines.config import StageConfig
from dreamstill.pipelines.goal import PACKED, GoalJob
from dreamstill.pipelines.run_directory import open_run_directory, read_summary
from dreamstill.pipelines.search import Prepared, Search
from dreamstill.pipelines.stages import STAGES, StageContext, check_layers
from dreamstill.pipelines.synthesize import fingerprints_of, own_images
from dreamstill.profiling import measure_latency, measure_size
from dreamstill.progress import OnProgress
from dreamstill.report.verdict import verdict_of_goal
from dreamstill.synthesis.validation_set import validation_set
from dreamstill.teacher import Teacher

__all__ = ["compressed_toward", "run_goal"]

log = logging.getLogger(__name__)

Labeled = tuple[Tensor, Tensor]


def run_goal(
    folder: StrPath,
    job: GoalJob,
    *,
    resume: bool = False,
    real: StrPath | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Compress a teacher toward a goal; return the content of summary.json.

    Args:
        folder: run directory, new or empty; with `resume`, one of the same job.
        job: configuration.
        resume: go on after the last finished candidate.
        real: images and labels, on which teacher and files are measured once, at the end.
        on_progress: called after every synthesized batch and training step.

    Raises:
        ConfigError: the minutes were over before a candidate was begun.
        TeacherError: the teacher does not open, or no task applies to it.
        ExportError: a format is unknown, or its library is not installed.
        RunError: the directory is not empty, or belongs to another job, teacher or images.
        DataError: given images are wrong or too few.

    """
    teacher = open_from(job.teacher, device=job.device, precision=job.precision)
    return compressed_toward(
        folder, job, teacher, resume=resume, real=real, on_progress=on_progress
    )[1]


def compressed_toward(
    folder: StrPath,
    job: GoalJob,
    teacher: Teacher,
    *,
    resume: bool = False,
    real: StrPath | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Do as `run_goal` with an open teacher, and return the recommended network too."""
    folder, spec = Path(folder), teacher.input_spec
    if teacher.capabilities.budget is not None:  # a search would ask without end
        check_layers(teacher.module, "compress")
    check_formats(job.format, also=(PACKED,))
    test = load_real(real, spec, teacher.output_spec) if real else None
    given = load_unlabelled(Path(job.images), spec) if job.images else None
    with open_run_directory(
        folder,
        job,
        fingerprints_of(teacher, images=given),
        resume=resume,
        resume_from=("images.npz", "images.pt", "candidates/*/result.json"),
        intermediate=("images.npy", "candidates", "prepared.json", "teacher.*"),
        changeable=("plugin", "minutes", "checkpoint_every"),
    ):
        write_json(folder / "config.json", to_plain(job))
        whole = _of_teacher(folder, job, teacher)
        search = Search(folder / "candidates", job, teacher, whole, on_progress)
        said = _plan(search)
        if not search.applicable:
            name, reason = next(iter(search.refused.items()))
            raise TeacherError(
                f"no task for {job.to} applies to this network, but a student of your own learns "
                f"from any: give student module:function; {name} does not apply: {reason}"
            )
        search.run(_prepared(folder, job, teacher, given, on_progress))
        if not search.records:
            spent = duration(search.seconds)
            raise ConfigError(
                f"minutes {job.minutes:g} were over before a candidate was begun: images and "
                f"validation set took {spent}; give more, with resume"
            )
        if search.best is None:
            reason = search.records[0]["failed"]
            raise TeacherError(f"no candidate for {job.to} ran to its end: {reason}")
        return _finished(folder, search, said, test, Path(real).name if real else "")


def _of_teacher(folder: Path, job: GoalJob, teacher: Teacher) -> dict[str, Any]:
    """Return the teacher's record: its size, and that of its file in the first format."""
    size = measure_size(teacher.module, teacher.input_spec)
    record = asdict(size) | {"task": "teacher", "agreement": 1.0, "weight_bytes": size.bytes}
    if isinstance(teacher.module, ClosedNetwork):
        return record | {"not_exported": teacher.module.reason}
    kind = next((kind for kind in job.format if kind != PACKED), None)
    if kind is None or job.goal.task == "quantize":  # whose bytes are of weights
        return record
    try:
        path, outputs = folder / f"teacher.{kind}", teacher.output_kind
        made = export(teacher.module, path, teacher.input_spec, outputs=outputs)
    except ExportError as error:
        return record | {"not_exported": str(error)}
    return record | {"bytes": made.bytes, "file_bytes": made.bytes}


def _plan(search: Search) -> list[str]:
    """Log and return what the goal means, what applies, what does not and why, and what it takes.

    >>> _listed(["inherit", "prune", "int8"])
    'inherit, prune and int8'
    """
    job, whole, goal = search.job, search.whole, search.job.goal
    limits = ", ".join(f"{shown(round(most))} {name}" for name, most in goal.limits(whole).items())
    known = not limits or goal.size is not None  # in the words of the goal
    sentences = [f"The goal is {goal}" + ("." if known else f": {limits} at most.")]
    if search.applicable:
        sentences.append(f"These tasks apply: {_listed(search.applicable)}.")
    for name, reason in search.refused.items():
        sentences.append(f"{name} does not apply: {reason}.")
    if search.applicable:
        num = 4000 if job.num_images is None else job.num_images
        images = (
            "the images that are given" if job.images else f"{num:,} images by {job.first_method}"
        )
        memory = memory_on_images(search.teacher, FinetuneConfig(batch_size=BATCH), num)
        sentences.append(
            f"It takes {images}, at most {duration(60 * job.minutes)} beside the candidate that is "
            f"under way then, and about {bytes_of_memory(memory)} of memory, by an estimate, "
            "beside PyTorch's own."
        )
    for sentence in sentences:
        log.info("%s", sentence)
    return sentences


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _prepared(
    folder: Path, job: GoalJob, teacher: Teacher, given: Tensor | None, on_progress: OnProgress
) -> Prepared:
    """Make the images and the validation set, and time a training step, or read that back."""
    begun, path = time.monotonic(), folder / "prepared.json"
    images = given
    if images is None:
        images = own_images(folder / "images.npz", job, teacher, on_progress)
    validation = validation_set(teacher, NUM_VALIDATION, on_progress)
    if not path.is_file():
        seconds = time.monotonic() - begun
        taken = {"seconds": seconds, "step_seconds": seconds_per_step(teacher, BATCH)}
        write_json(path, taken)
    taken = read_plain(path)
    with understood(path, RunError, "holds a record that no run writes"):
        spent, of_step = float(taken["seconds"]), float(taken["step_seconds"])
    return Prepared(images, validation, spent, of_step)


def _finished(
    folder: Path, search: Search, said: list[str], test: Labeled | None, source: str
) -> tuple[nn.Module, dict[str, Any]]:
    """Write the files of the best candidate, and summary.json."""
    best, whole, teacher = search.best, search.whole, search.teacher
    assert best is not None
    stages = [from_plain(StageConfig, stage) for stage in best["stages"]]
    made = search.reopened(stages, search.folder / best["folder"])
    known = read_summary(folder)
    if test is None and known.get("images") and known.get("candidates") == search.records:
        return made[-1].network, known  # what was measured on real images stays
    shown_images = search.prepared.images[-NUM_SHOWN:]
    write_json(folder / "weights.json", layer_weights(made, teacher.input_spec, shown_images))
    kinds = _kinds(search, made)
    files = [_written(folder, kind, search, best, made, stages, test) for kind in kinds]
    of_teacher = dict(whole) | _timed(folder / f"teacher.{search.kind}", teacher)
    warnings = list[str]()
    if test is not None:
        logits = predict(teacher.module, teacher.input_spec, test[0])
        of_teacher |= scores(logits, test[1], teacher.output_kind)
        warnings = warn_of_guesses(logits, test[1], teacher.output_kind)
    summary: dict[str, Any] = {
        "goal": search.job.to,
        "meaning": str(search.job.goal),
        "lose_at_most": search.job.lose_at_most,
        "plan": said,
        "teacher": of_teacher,
        "candidates": search.records,
        "chosen": best["folder"],
        "missed": _missed(search, best, files),
        "files": files,
        "stages": [one.record for one in made[1:]],
        "input": to_plain(teacher.input_spec),
        "given_images": Path(search.job.images).name if search.job.images else "",
        "num_classes": teacher.num_classes,
        **teacher.output_spec.record,
        "images": source,
        "warnings": warnings,
        "validation_images": len(search.prepared.validation.images),
        "seconds": round(search.seconds, 1),
        "not_tried": search.not_tried if search.seconds_left <= 0 else [],
    }
    summary["recommendation"] = verdict_of_goal(summary)
    write_json(folder / "summary.json", summary)
    return made[-1].network, summary


def _kinds(search: Search, made: Sequence[Made]) -> list[str]:
    """Return the formats of the files to write."""
    if made[-1].record["task"] == "pack":
        return [PACKED]
    return [kind for kind in search.job.format if kind != PACKED]


def _written(
    folder: Path,
    kind: str,
    search: Search,
    best: Mapping[str, Any],
    made: Sequence[Made],
    stages: Sequence[StageConfig],
    test: Labeled | None,
) -> dict[str, Any]:
    """Write a file of the last network, and measure it in its runtime."""
    teacher, last = search.teacher, made[-1]
    record: dict[str, Any] = {"format": kind}
    try:
        if kind == PACKED:
            path = folder / "network.packed"
            name = Path(last.record["files"][0]["path"]).name  # its directory may have moved
            write_atomically(path, (search.folder / best["folder"] / name).read_bytes())
        elif last.record["task"] == "int8":
            path = folder / f"network.int8.{kind}"
            _write_int8(path, kind, search, made[-2].network, stages[-1])
        else:
            path = folder / f"network.{kind}"
            export(last.network, path, teacher.input_spec, outputs=teacher.output_kind)
    except DreamstillError as error:
        return record | {"failed": str(error)}
    record |= {"path": path.name, "bytes": path.stat().st_size}
    run: Callable[[Tensor], Tensor] = last.network
    device = teacher.device
    if kind != PACKED:
        run, device = load_exported(path), torch.device("cpu")
        record |= _timed(path, teacher)
    validation, spec, outputs = search.prepared.validation, teacher.input_spec, teacher.output_kind
    with evaluating(last.network):
        logits = answers(run, spec, validation.images, device=device)
        record["agreement"] = agreement(logits, validation.logits.cpu(), outputs)
        if test is not None:
            record |= scores(answers(run, spec, test[0], device=device), test[1], outputs)
    return record


def _write_int8(
    path: Path, kind: str, search: Search, network: nn.Module, stage: StageConfig
) -> None:
    """Write an int8 file of a network in a format, with the settings of a stage."""
    config = replace(stage.config, formats=(kind,))
    rng = torch.Generator(search.teacher.device).manual_seed(search.job.seed)
    stem = path.with_name("network")
    images = search.prepared.images
    context = StageContext(search.teacher, images, rng, search.on_progress, stem)
    STAGES["int8"].run(network, config, context)


def _timed(path: Path, teacher: Teacher) -> dict[str, Any]:
    """Return the latency of a file in its runtime, or nothing if there is no file."""
    if not path.is_file():
        return {}
    runtime = RUNTIMES[path.suffix[1:]]
    latency = measure_latency(load_exported(path), teacher.input_spec, runtime=runtime)
    return {"runtime": runtime, "latency_ms": asdict(latency)}


def _missed(search: Search, best: dict[str, Any], files: Sequence[dict[str, Any]]) -> list[str]:
    """Return in words what the recommended network misses of the goal."""
    job, texts = search.job, list[str]()
    for name, most in job.goal.limits(search.whole).items():
        if name in best["missed"]:
            texts.append(f"it has {best[name]:,} {name}, and {round(most):,} are allowed")
    if search.loses_too_much(best):
        loss = 100 * (1 - best["agreement"])
        texts.append(f"it loses {loss:.1f} points, and {job.lose_at_most:g} are allowed")
    for file in files:
        if job.goal.size is not None and file.get("bytes", 0) > max(job.goal.size, best["bytes"]):
            texts.append(f"its .{file['format']} has {file['bytes']:,} bytes")
        if "failed" in file:
            texts.append(f"there is no .{file['format']}: {file['failed']}")
    return texts
