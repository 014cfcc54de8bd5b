"""The main job from end to end, as the command line and the demo run it."""

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from dreamstill.classes import class_counts, warn_of_classes
from dreamstill.errors import SettingsError, shown
from dreamstill.files import save_arrays, write_atomically, write_json
from dreamstill.folder import claimed
from dreamstill.images import load_images, load_unlabelled
from dreamstill.reading import StrPath
from dreamstill.report import MOST_CLASSES, write_report
from dreamstill.report.figures import class_rows
from dreamstill.run import Job, TeacherFile, distill, open_from
from dreamstill.settings import read_plain, to_plain
from dreamstill.sources import MOST_IMAGES, draw_beside, forget
from dreamstill.summarize import export_run, summarize
from dreamstill.synthesis import METHODS, missing_offers
from dreamstill.synthesis.knowledge_within import data_similarity
from dreamstill.synthesis.noise import NoiseSettings
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.tasks.distill import DistillSettings, Progress
from dreamstill.teacher import Teacher

__all__ = ["demo", "distill_and_report", "inspect", "synthesize"]

OnProgress = Callable[[Progress], None]


def inspect(teacher: Teacher, images: StrPath | None = None) -> dict[str, Any]:
    """What the teacher is and offers, and the methods that can use it, as plain values.

    With unlabelled images (.npz with x) also how alike they are to what it was trained on.
    """
    offers = teacher.offers
    similarity = {}
    if images is not None:
        given = teacher.spec.encode(load_unlabelled(images, teacher.spec)[:2000])
        similarity["data_similarity"] = data_similarity(teacher, given.to(teacher.device))
    return similarity | {
        "input": list(teacher.spec.shape),
        "mean": list(teacher.spec.mean),
        "std": list(teacher.spec.std),
        "num_classes": teacher.num_classes,
        "parameters": sum(p.numel() for p in teacher.module.parameters()),
        "gradient": offers.gradient,
        "batch_norm_layers": len(offers.batch_norm),
        "last_linear": offers.last_linear,
        "penultimate_features": offers.num_features,
        "methods": [name for name in METHODS if not missing_offers(name, teacher)],
        "fingerprint": teacher.fingerprint,
    }


def synthesize(
    folder: StrPath,
    job: Job,
    num_images: int,
    *,
    resume: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Make `num_images` images: folder/images.npz with x, y, logits, and images.png.

    With `resume` what is finished in the folder is taken up: the settings must be the same.

    Raises:
        SettingsError: no image is asked for, there is no room for so many, or the method plays
            against a student.
        TeacherError: the teacher does not open, or lacks what the method needs.
        RunError: the folder is not empty, holds nothing to resume, or other images, or cannot be
            written.
        NonFiniteError: the loss of the images is not finite; before the update.

    """
    if not 1 <= num_images <= MOST_IMAGES:
        bound = "at least 1" if num_images < 1 else f"at most {MOST_IMAGES:,}"
        raise SettingsError(f"num_images must be {bound}; got {shown(num_images)}")
    folder = Path(folder)
    teacher = open_from(job.teacher, device=job.device, precision=job.precision)
    names = ("teacher", "method", "synthesis", "seed", "device", "precision")
    with claimed(
        folder,
        {name: to_plain(getattr(job, name)) for name in names} | {"num_images": num_images},
        {"teacher": teacher.fingerprint},
        device=job.device,
        resume=resume,
        worth=("images.npz", "images.pt"),
        makes=("images.npy",),
    ):
        if not (folder / "summary.json").is_file():  # the last file that is written
            _write_images(folder, job, teacher, num_images, on_progress)
        summary = read_plain(folder / "summary.json")
    files = {"images": str(folder / "images.npz"), "picture": str(folder / "images.png")}
    return files | summary


def _write_images(
    folder: Path, job: Job, teacher: Teacher, num_images: int, on_progress: OnProgress
) -> None:
    """Make images and all that is told of them."""
    checkpoint = folder / "images.pt"
    x, logits = draw_beside(
        checkpoint,
        teacher,
        job.method,
        job.synthesis,
        num_images,
        seed=job.seed,
        checkpoint_every=job.checkpoint_every,
        on_progress=on_progress,
    )
    classes = logits.argmax(1)
    arrays = {"x": x, "y": classes.numpy(), "logits": logits.numpy()}
    save_arrays(folder / "images.npz", **arrays)
    write_atomically(folder / "images.png", draw_classes(torch.from_numpy(x), classes))
    summary = {
        "num_images": num_images,
        "images_per_class": class_counts(logits).tolist(),
        "queries": teacher.queries,
        "warnings": warn_of_classes(logits),
    }
    write_json(folder / "summary.json", summary)
    forget(checkpoint)


def draw_classes(x: torch.Tensor, classes: torch.Tensor) -> bytes:
    """A PNG of ten images of each class; of uint8 (N, C, H, W) and classes (N,)."""
    present = classes.unique()[:MOST_CLASSES]
    shown = [x[(classes == k).nonzero()[:10, 0]] for k in present]
    rows = [[image.numpy() / 255 for image in images] for images in shown]
    return class_rows(rows, [str(k) for k in present.tolist()])


def distill_and_report(
    folder: StrPath, job: Job, *, resume: bool = False, on_progress: OnProgress
) -> dict[str, Any]:
    """Distill, measure without real data, and write the report."""
    teacher = open_from(job.teacher, device=job.device, precision=job.precision)
    distill(folder, job, teacher, resume=resume, on_progress=on_progress)
    summary = summarize(folder)
    write_report(folder)
    return summary


def demo_jobs(weights: Path, seed: int, steps: int) -> tuple[Job, Job]:
    """The demo's job and its noise floor: the same student, start, steps and schedule."""
    # small batches: on a network this small the number of steps decides, not their size
    distillation = DistillSettings(steps=steps, batch_size=64, lr=1e-3, judge_every=500, pool=5000)
    job = Job(
        teacher=TeacherFile(weights=str(weights)),
        student="dreamstill.nets.lenet:lenet5_half",
        method="structured_noise",
        synthesis=StructuredNoiseSettings(batch_size=64),
        inherit=True,
        distill=distillation,
        seed=seed,
    )
    return job, replace(job, method="noise", synthesis=NoiseSettings(batch_size=64))


def demo(
    folder: StrPath,
    *,
    seed: int = 0,
    steps: int = 1000,
    resume: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """The embedded LeNet-5 to LeNet-5-Half, its noise floor, real digits, exports and report."""
    folder = Path(folder)
    with as_file(files("dreamstill") / "assets") as assets:
        job, floor = demo_jobs(assets / "lenet5_mnist.safetensors", seed, steps)
        floor_folder = folder / "noise_floor"
        going_on = resume and (floor_folder / "settings.json").is_file()
        distill(folder, job, open_from(job.teacher), resume=resume, on_progress=on_progress)
        distill(
            floor_folder, floor, open_from(floor.teacher), resume=going_on, on_progress=on_progress
        )
        teacher = open_from(job.teacher)
        real = load_images(assets / "digits.npz", teacher.spec, teacher.num_classes)
        export_run(folder)
        source = "2,000 real MNIST digits, unseen by the teacher"
        summary = summarize(folder, real=real, source=source, floor=floor_folder)
    write_report(folder)
    return summary
