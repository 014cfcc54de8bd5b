"""Run the job that teaches a network new classes without the old data."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamstill.continual.learning import average_and_forgetting, check_new_classes, grow, learn
from dreamstill.data.class_coverage import warn_of_classes
from dreamstill.data.images import load_images, load_unlabelled
from dreamstill.errors import ExportError
from dreamstill.evaluation import accuracy, confusion_matrix, predict
from dreamstill.exporters.formats import export
from dreamstill.files.checkpoints import save_weights
from dreamstill.files.reading import StrPath
from dreamstill.files.writing import save_arrays, write_json
from dreamstill.loaders.state_dict import load_weights
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.config import LearnClassesJob
from dreamstill.pipelines.process import seeded_process
from dreamstill.pipelines.run_directory import open_run_directory
from dreamstill.pipelines.synthesize import OnProgress, fingerprints_of, own_images
from dreamstill.teacher import Teacher

__all__ = ["LEARNED", "learn_classes"]

LEARNED = "network.safetensors"


def learn_classes(
    folder: StrPath,
    job: LearnClassesJob,
    *,
    resume: bool = False,
    real: StrPath | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Teach a network new classes, and write it as .safetensors, .onnx and .pt2.

    Args:
        folder: run directory, new or empty; with `resume`, one of the same job.
        job: configuration.
        resume: reuse finished images and a finished network.
        real: images and labels of old and new classes, as .npz or a directory, to measure accuracy
            before and after learning, and forgetting.
        on_progress: called after every step.

    Returns:
        Content of summary.json: numbers of classes, files or the reason why there are none, and,
        with `real`, accuracy on old and new classes, its average and forgetting.

    Raises:
        TeacherError: the network cannot be opened, or has no last linear layer.
        DataError: images or labels are wrong, or a label is of an old class.
        RunError: the directory is not empty, or belongs to another job, teacher or images.
        ConfigError: the method needs a student, or does not fit the network.
        NonFiniteError: a loss is not finite.

    """
    folder, real = Path(folder), Path(real) if real else None
    teacher = open_from(job.teacher, device=job.device, precision=job.precision)
    new, labels = load_images(Path(job.new), teacher.input_spec, first=teacher.num_classes)
    check_new_classes(teacher, new, labels)
    num_classes = int(labels.max()) + 1
    test = load_images(real, teacher.input_spec, num_classes) if real else None
    given = load_unlabelled(Path(job.images), teacher.input_spec) if job.images else None
    with open_run_directory(
        folder,
        job,
        fingerprints_of(teacher, images=given, new=new, labels=labels),
        resume=resume,
        resume_from=("images.npz", "images.pt", LEARNED),
        intermediate=("images.npy",),
    ):
        synthetic = new[:0] if given is None else given
        if given is None and job.learn_classes.reads_images:
            synthetic = own_images(folder / "images.npz", job, teacher, on_progress)
        warnings, named = list[str](), labels[:0]
        if len(synthetic):
            logits = predict(teacher.module, teacher.input_spec, synthetic)
            warnings = warn_of_classes(logits, given=given is not None)
            named = logits.argmax(1)
        network = _learned(folder / LEARNED, job, teacher, synthetic, new, labels, on_progress)
        pictures = _learned_from((synthetic, named), (new, labels))
        return _summarize(folder, teacher, network, real, test, pictures, warnings)


def _summarize(
    folder: Path,
    teacher: Teacher,
    network: Teacher,
    real: Path | None,
    test: tuple[Tensor, Tensor] | None,
    pictures: dict[str, np.ndarray[Any, Any]],
    warnings: list[str],
) -> dict[str, Any]:
    """Measure and export the network; write pictures.npz and summary.json."""
    summary: dict[str, Any] = {
        "old_classes": teacher.num_classes,
        "classes": network.num_classes,
        "warnings": warnings,
    }
    if teacher.class_names:
        summary["class_names"] = list(teacher.class_names)
    if test is not None and real is not None:
        x, y = test
        before, after = (predict(of.module, teacher.input_spec, x) for of in (teacher, network))
        summary |= {"images": real.name} | _kept(before, after, y)
        confusion = confusion_matrix(after, y, network.num_classes)
        pictures = pictures | {"confusion": confusion.numpy()}
    save_arrays(folder / "pictures.npz", **pictures)
    summary["files"] = []
    try:
        for kind in ("onnx", "pt2"):
            record = export(network.module, folder / f"network.{kind}", teacher.input_spec)
            summary["files"].append(asdict(record))
    except ExportError as error:  # the network is trained: its summary is still of use
        summary["not_exported"] = str(error)
    write_json(folder / "summary.json", summary)
    return summary


def _learned(
    path: Path,
    job: LearnClassesJob,
    teacher: Teacher,
    synthetic: Tensor,
    new: Tensor,
    labels: Tensor,
    on_progress: OnProgress,
) -> Teacher:
    """Train the network and save it to `path`, or load it from there if it is finished."""
    rng = torch.Generator().manual_seed(job.seed)
    if path.is_file():
        model = grow(teacher, int(labels.max()) + 1, rng)
        model.load_state_dict(load_weights(path))
        return Teacher(model, teacher.input_spec, device=job.device, precision=job.precision)
    with seeded_process(job.seed, job.device):
        network = learn(
            teacher, synthetic, new, labels, job.learn_classes, rng=rng, on_progress=on_progress
        )
    save_weights(path, network.module)
    return network


def _kept(before: Tensor, after: Tensor, y: Tensor) -> dict[str, Any]:
    """Return accuracy on old, new and single classes, from logits before and after; forgetting.

    The average is over two tasks, the old and the new classes, not over images.
    """
    num_old = before.shape[1]
    old = y < num_old
    by_class = [
        {
            "class": int(k),
            "before": accuracy(before[y == k], y[y == k]) if k < num_old else None,
            "after": accuracy(after[y == k], y[y == k]),
        }
        for k in y.unique()
    ]
    found: dict[str, Any] = {}
    for name, of in (("old", old), ("new", ~old)):
        if of.any():
            found[f"accuracy_{name}"] = accuracy(after[of], y[of])
    if old.any():
        found["accuracy_old_before"] = accuracy(before[old], y[old])
    if old.any() and not old.all():
        found["average_accuracy"], found["forgetting"] = average_and_forgetting(
            [
                [found["accuracy_old_before"]],
                [found["accuracy_old"], found["accuracy_new"]],
            ]
        )
    return found | {"by_class": by_class}


def _learned_from(
    *sources: tuple[Tensor, Tensor],
) -> dict[str, np.ndarray[Any, Any]]:
    """Return images for the report, uint8 (N, C, H, W), 12 per class and source, and classes."""
    picked = [
        (images[index], classes[index])
        for images, classes in sources
        for index in ((classes == k).nonzero()[:12, 0] for k in classes.unique())
    ]
    images, classes = (torch.cat(parts).numpy() for parts in zip(*picked, strict=True))
    return {"images": images, "classes": classes}
