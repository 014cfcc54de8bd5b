"""Measure and export a finished distillation run.

Real images are used only here, after model selection, and only if the user provides them.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dreamstill.config import from_plain, read_plain, to_plain
from dreamstill.data.batch import answers_for_whole
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.errors import ConfigError, RunError, TeacherError
from dreamstill.evaluation import (
    agreement,
    confusion_of,
    predict,
    scores,
    warn_of_guesses,
)
from dreamstill.exporters.formats import RUNTIMES, check_formats, export, load_exported
from dreamstill.files.reading import StrPath, understood
from dreamstill.files.writing import save_arrays, write_json
from dreamstill.formatting import BASELINES
from dreamstill.loaders.teacher_file import open_from
from dreamstill.nn.closed import ClosedNetwork
from dreamstill.output_spec import OutputKind
from dreamstill.pipelines.config import DistillJob, JobConfig
from dreamstill.pipelines.distill import load_student
from dreamstill.pipelines.plugins import load_plugins
from dreamstill.pipelines.run_directory import (
    check_fingerprints,
    locked,
    read_settings,
    read_summary,
)
from dreamstill.profiling import measure_latency, measure_profile
from dreamstill.teacher import Teacher

__all__ = [
    "MOST_SHOWN",
    "export_network",
    "export_run",
    "open_run",
    "read_as",
    "read_run",
    "summarize",
]

MOST_SHOWN = 2000
"""Maximum number of synthetic images for the pictures of a report."""

Labeled = tuple[Tensor, Tensor]
Job = TypeVar("Job", bound=JobConfig)
OF_IMAGES = (
    *("batch_size", "prefill", "fresh_every", "buffer_size", "augment"),
    *("validate_every", "num_validation"),
)
"""Settings of a distillation that may differ in its baselines."""
OF_BASELINE = ("validation_agreement", "image_visits")
"""Figures in the records of a student and of its baselines that are compared."""


def read_run(folder: StrPath) -> DistillJob:
    """Return the job of a run directory; raise RunError if it holds none."""
    plain = read_settings(Path(folder))
    if not {"method", "student", "synthesis"} <= plain.keys() or "to" in plain:
        raise RunError(f"{folder} holds no run of distill")
    return read_as(DistillJob, plain, folder)


def read_as(kind: type[Job], plain: dict[str, Any], folder: StrPath) -> Job:
    """Build a job from the settings of a run directory; raise RunError if they are damaged."""
    load_plugins(plain.get("plugin"))
    try:
        job: Job = from_plain(kind, plain)
    except ConfigError as error:
        raise RunError(f"{Path(folder) / 'config.json'} is damaged: {error}") from error
    return job


def open_run(folder: StrPath, *, device: str = "cpu") -> tuple[DistillJob, Teacher, nn.Module]:
    """Open the job, teacher and selected student of a finished run on a device.

    Raises RunError if it is not finished, or the teacher's file or card has changed since.
    """
    job, folder = read_run(folder), Path(folder)
    if not (folder / "result.json").is_file():  # the last file that a run writes
        raise RunError(f"{folder} has no student yet: resume the run first")
    teacher = open_from(job.teacher, device=device)
    student = load_student(folder, job.student, teacher).to(device).eval()
    check_fingerprints(folder, {"teacher": teacher.fingerprint})
    return job, teacher, student.requires_grad_(False)


def open_baseline(
    name: str, folder: StrPath, job: DistillJob, teacher: Teacher
) -> tuple[nn.Module, dict[str, Any]]:
    """Open the student of a job's baseline, and what its run recorded of it.

    Raises RunError if it was trained in another way.
    """
    baseline, its_teacher, student = open_run(folder, device=str(teacher.device))
    if name == "noise_baseline" and (baseline.method != "noise" or baseline.images):
        raise RunError(f"{folder} is a run of {baseline.source}, not of noise")
    same, its = _training_of(job, teacher), _training_of(baseline, its_teacher)
    if odd := [name for name in same if same[name] != its[name]]:
        where = f"the {BASELINES[name]} in {folder}"
        raise RunError(f"{where} has another {odd[0]}: {its[odd[0]]}")
    result = read_plain(Path(folder) / "result.json")
    return student, {"source": baseline.source} | {key: result[key] for key in OF_BASELINE}


def _training_of(job: DistillJob, teacher: Teacher) -> dict[str, Any]:
    """Return the settings that a job and its noise baseline must share."""
    names = ("student", "precision")
    course = to_plain(job.distill)
    return (
        {"teacher": teacher.fingerprint}
        | {name: getattr(job, name) for name in names}
        | {name: value for name, value in course.items() if name not in OF_IMAGES}
    )


def summarize(
    folder: StrPath,
    *,
    real: Labeled | None = None,
    source: str = "",
    baseline: StrPath | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure a finished run, write summary.json and pictures.npz, and return the summary.

    `agreement` is measured on real images, `validation_agreement` on the validation images of
    model selection.

    Args:
        folder: directory of a finished run.
        real: images, uint8 (N, C, H, W), and the truth, such as classes (N,): see
            `dreamstill.evaluation.scores`; None measures no accuracy.
        source: name of `real` in the summary.
        baseline: directory of the finished noise baseline. Default: the run's own, if it has one.
        device: where the networks run, and are timed.

    """
    job, teacher, student = open_run(folder, device=device)
    folder = Path(folder)
    with locked(folder):
        result, known = read_plain(folder / "result.json"), read_summary(folder)
        same_student = known.get("chosen_at_step") == result.get("chosen_at_step")
        if real is None and known.get("images") and same_student:  # keep what was measured
            return known
        networks = {"teacher": teacher.module, "student": student}
        summary: dict[str, Any] = {**result, "images": "", "teacher": {}}
        if teacher.capabilities.budget is not None:  # to measure a black box would cost queries
            del networks["teacher"]
        summary |= {
            name: asdict(measure_profile(of, teacher.input_spec)) for name, of in networks.items()
        }
        summary["student"] |= {key: result[key] for key in OF_BASELINE}
        for name, path in _baselines(folder, job, baseline).items():
            networks[name], summary[name] = open_baseline(name, path, job, teacher)
            its, own = summary[name]["image_visits"], result["image_visits"]
            if job.distill.minutes is not None and its != own:  # which may hold other steps
                where = f"the {BASELINES[name]} in {path}"
                raise RunError(f"{where} has {its:,} image visits, not {own:,}")
        summary |= teacher.output_spec.record
        if teacher.class_names or not teacher.capabilities.classes:
            summary["class_names"] = list(teacher.output_spec.groups)
        if "exports" in known:
            summary["exports"] = known["exports"]
        pictures = _pictures(folder, teacher, student)
        if real is not None:
            x, y = real
            summary["images"] = source
            logits = {name: predict(of, teacher.input_spec, x) for name, of in networks.items()}
            _add_accuracies(summary, logits, y, teacher.output_kind)
            pictures |= _pictures_of_real(x, y, logits["student"], teacher)
        write_json(folder / "summary.json", summary)
        save_arrays(folder / "pictures.npz", **pictures)
        return summary


def _add_accuracies(
    summary: dict[str, Any], logits: dict[str, Tensor], truth: Tensor, kind: OutputKind
) -> None:
    """Add to a summary what each network's outputs (N, ...) are worth beside the truth."""
    if "teacher" in logits:
        warnings = warn_of_guesses(logits["teacher"], truth, kind)
        summary["warnings"] = summary["warnings"] + warnings
    for name, of in logits.items():
        summary[name] |= scores(of, truth, kind)
        if "teacher" in logits:
            summary[name]["agreement"] = agreement(of, logits["teacher"], kind)


def _pictures_of_real(
    images: Tensor, truth: Tensor, outputs: Tensor, teacher: Teacher
) -> dict[str, Any]:
    """Return the report's arrays of real images: means of classes, and the student's confusion."""
    pictures: dict[str, Any] = {}
    if teacher.capabilities.classes:
        pictures["real_mean"] = class_means(images, truth, teacher.num_classes)
    confusion = confusion_of(outputs, truth, teacher.output_kind)
    return pictures if confusion is None else pictures | {"confusion": confusion.numpy()}


def _baselines(folder: Path, job: DistillJob, given: StrPath | None) -> dict[str, Path]:
    """Return the directories of a run's finished baselines, by name."""
    own = {name: folder / name for name in job.baseline_jobs()}
    finished = {name: path for name, path in own.items() if (path / "result.json").is_file()}
    return finished if given is None else finished | {"noise_baseline": Path(given)}


def export_run(
    folder: StrPath, *, formats: tuple[str, ...] = ("onnx", "pt2")
) -> list[dict[str, Any]]:
    """Export the student to FOLDER/student.FORMAT, verify each file, and add it to the summary.

    Returns a record of each file: that of the export, and the latency in the file's runtime.

    Raises ExportError, before any file is written, if a format is not available.
    """
    check_formats(formats)
    _, teacher, student = open_run(folder)
    folder = Path(folder)
    with locked(folder):
        summary = read_summary(folder)
        with understood(folder / "summary.json", RunError, "is damaged"):
            kept = [e for e in summary.get("exports", []) if e["format"] not in formats]
        records = _exported(student, folder / "student", formats, teacher)
        summary["exports"] = kept + records
        write_json(folder / "summary.json", summary)
        return records


def export_network(
    teacher: Teacher, folder: StrPath, formats: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Export a network to FOLDER/network.FORMAT, and verify each file.

    Returns records as `export_run` does.

    Raises ExportError, before any file is written, if a format is not available, TeacherError if
    the network is a black box or TorchScript, and RunError if a file is there.
    """
    check_formats(formats)
    if isinstance(teacher.module, ClosedNetwork):
        raise TeacherError(f"the network cannot be exported: {teacher.module.reason}")
    stem = Path(folder) / "network"
    for path in (stem.with_suffix(f".{name}") for name in formats):
        if path.exists():
            raise RunError(f"{path} exists: choose another folder")
    stem.parent.mkdir(parents=True, exist_ok=True)
    return _exported(teacher.module, stem, formats, teacher)


def _exported(
    network: nn.Module, stem: Path, formats: tuple[str, ...], teacher: Teacher
) -> list[dict[str, Any]]:
    records = []
    for name in formats:
        path, kind = stem.with_suffix(f".{name}"), teacher.output_kind
        record = export(network, path, teacher.input_spec, outputs=kind)
        latency = measure_latency(
            load_exported(record.path), teacher.input_spec, runtime=RUNTIMES[name]
        )
        records.append(asdict(record) | {"latency_ms": asdict(latency)})
    return records


def _first_filters(module: nn.Module) -> np.ndarray[Any, Any] | None:
    convolution = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    return None if convolution is None else convolution.weight.detach().cpu().numpy()


def class_means(images: Tensor, classes: Tensor, num_classes: int) -> np.ndarray[Any, Any]:
    """Return the mean image of each class, (K, C, H, W) in [0, 1]; an empty class is black."""
    sums = torch.zeros(num_classes, *images.shape[1:])
    for part, of in zip(images.split(500), classes.split(500), strict=True):
        sums.index_add_(0, of, part.float() / 255)
    counts = torch.bincount(classes, minlength=num_classes).clamp_min(1)
    means: np.ndarray[Any, Any] = (sums / counts.view(-1, 1, 1, 1)).numpy()
    return means


def _pictures(folder: Path, teacher: Teacher, student: nn.Module) -> dict[str, Any]:
    """Return the report's arrays without real images: examples, means, histogram and filters."""
    pictures: dict[str, Any] = {}
    buffer = ReplayBuffer.reopen(folder / "replay_buffer", teacher.input_spec)
    if len(buffer):
        images = buffer.images(MOST_SHOWN)
        classes = teacher.output_spec.group(answers_for_whole(teacher, images))
        order = torch.argsort(classes, stable=True)
        shown = [order[classes[order] == k][:12] for k in classes.unique()[:20]]
        pictures["synthetic_images"] = images[torch.cat(shown)].numpy()
        pictures["synthetic_classes"] = classes[torch.cat(shown)].numpy()
        if (num := len(teacher.output_spec.groups)) > 1:
            pictures["synthetic_mean"] = class_means(images, classes, num)
            histogram = torch.bincount(classes, minlength=num)
            pictures["class_histogram"] = histogram.numpy()
    for name, module in (("teacher", teacher.module), ("student", student)):
        filters = _first_filters(module)
        if filters is not None:
            pictures[f"{name}_filters"] = filters
    return pictures
