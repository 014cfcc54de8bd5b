"""Synthesize sets of images with methods that need no student, and resume after a kill."""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamstill.config import read_plain, to_plain
from dreamstill.data.class_coverage import warn_of_classes
from dreamstill.data.images import load_unlabelled
from dreamstill.errors import ConfigError, RunError
from dreamstill.files.checkpoints import digest, load_checkpoint, save_checkpoint
from dreamstill.files.image_store import (
    check_room,
    checksums,
    make_images,
    map_images,
    release_pages,
    streamed_checksums,
)
from dreamstill.files.reading import StrPath, understood
from dreamstill.files.writing import save_arrays, write_atomically, write_json
from dreamstill.formatting import bytes_of_memory
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.config import ImagesJob, SynthesizeJob
from dreamstill.pipelines.run_directory import open_run_directory
from dreamstill.process_group import (
    check_processes,
    from_main,
    gathered,
    gathered_states,
    is_main,
    own_rng,
    state_of_this,
    sum_over_processes,
)
from dreamstill.progress import OnProgress, Progress
from dreamstill.report import MOST_CLASSES
from dreamstill.report.figures import class_rows, png
from dreamstill.report.page import class_label
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.registry import needs_student, open_synthesizer
from dreamstill.teacher import Teacher

__all__ = [
    "OnProgress",
    "draw_resumable",
    "draw_images",
    "fingerprints_of",
    "images_of",
    "own_images",
    "remove_checkpoint",
    "synthesize",
]

log = logging.getLogger(__name__)

LARGE = 2**30
"""Bytes of images that are written once, and are read from the disk as they are needed."""


def draw_images(
    teacher: Teacher,
    method: str,
    config: Any,
    num_images: int,
    *,
    seed: int,
    on_progress: OnProgress = lambda progress: None,
) -> tuple[Tensor, Tensor]:
    """Return synthetic images, uint8 (N, C, H, W), and their logits (N, K), on the CPU.

    Dense logits are those of whole images: see `OutputSpec.whole`.

    Args:
        teacher: source of the images.
        method: name of the method.
        config: configuration of the method.
        num_images: N.
        seed: seed of all random numbers.
        on_progress: called after every batch.

    Raises:
        ConfigError: the method needs a student, or the images do not fit in memory.

    """
    images, logits = draw_resumable(
        None, teacher, method, config, num_images, seed=seed, on_progress=on_progress
    )
    return torch.from_numpy(images), logits


def draw_resumable(
    checkpoint: Path | None,
    teacher: Teacher,
    method: str,
    config: Any,
    num_images: int,
    *,
    seed: int,
    checkpoint_every: float = 20.0,
    stays: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> tuple[NDArray[np.uint8], Tensor]:
    """Do as `draw_images`, but into a memory-mapped file that survives a kill.

    Args:
        checkpoint: file to save progress to, and to resume from if it exists, with the images in
            `images_of(checkpoint)`; call `remove_checkpoint` once the images are saved elsewhere.
            None keeps everything in memory.
        teacher, method, config, num_images, seed, on_progress: see `draw_images`.
        checkpoint_every: seconds between checkpoints.
        stays: the file of the images is the result.

    Raises:
        ConfigError: see `draw_images`.
        RunError: the checkpoint belongs to another teacher or configuration, or the images next to
            it have changed.

    """
    if needs_student(method, config):
        raise ConfigError(f"{method} plays against a student: use it with distill")
    if checkpoint is None or is_main():
        _check_room(num_images, teacher, checkpoint, stays=stays)
    check_processes(teacher.capabilities.budget, teacher.device)
    rng = own_rng(torch.Generator(device=teacher.device).manual_seed(seed))
    synthesizer = open_synthesizer(method, teacher, config, rng=rng)
    fingerprints = {
        "method": method,
        "settings": to_plain(config),
        "seed": seed,
        "num_images": num_images,
        "teacher": teacher.fingerprint,
    }
    drawn = _Drawn(checkpoint, checkpoint_every, fingerprints, synthesizer, rng)
    drawn.open(num_images, teacher)
    while drawn.warmed_up < synthesizer.warm_up:
        synthesizer.next_batch()
        drawn.warmed_up += 1
        drawn.save_periodically()
        on_progress(Progress("warm up", drawn.warmed_up, synthesizer.warm_up, {}))
    while drawn.done < num_images:
        batch = synthesizer.next_batch()
        for made, logits in gathered(batch.images, batch.logits):
            whole = teacher.output_spec.whole(logits)
            drawn.add(teacher.input_spec.decode(made).cpu(), whole.cpu())
        drawn.save_periodically()
        on_progress(Progress("synthesize", drawn.done, num_images, {}))
    return drawn.images, drawn.logits


def _check_room(num: int, teacher: Teacher, checkpoint: Path | None, *, stays: bool) -> None:
    """Raise ConfigError if there is no room for images; say what large sets take."""
    image = math.prod(teacher.input_spec.shape)
    folder = None if checkpoint is None else checkpoint.parent
    check_room("num_images", num, image + 4 * teacher.num_classes, folder=folder, stays=stays)
    if stays:
        log.info("The images take %s on the disk.", bytes_of_memory(num * image))


def images_of(checkpoint: Path) -> Path:
    """Return the path of the images of a checkpoint of `draw_resumable`."""
    return checkpoint.with_suffix(".npy")


def remove_checkpoint(checkpoint: Path, *, stays: bool = False) -> None:
    """Remove a checkpoint of `draw_resumable` and its images, unless they stay."""
    for path in (checkpoint, *([] if stays else [images_of(checkpoint)])):
        with suppress(OSError):  # Windows cannot remove a mapped file
            path.unlink()


class _Drawn:
    """Images drawn so far, in an array of full size; with a checkpoint, on the disk."""

    def __init__(
        self,
        path: Path | None,
        every: float,
        fingerprints: dict[str, Any],
        synthesizer: Method,
        rng: torch.Generator,
    ) -> None:
        self.path, self.every, self.fingerprints = path, every, fingerprints
        self.synthesizer, self.rng = synthesizer, rng
        self.done, self.warmed_up = 0, 0
        self.kept = path is None or is_main()
        """Whether this process has the images; one writes them."""
        self.saved = time.monotonic()

    def open(self, num: int, teacher: Teacher) -> None:
        """Allocate `num` images, or restore those of the checkpoint."""
        self.num, num = num, num if self.kept else 0
        shape = (num, *teacher.input_spec.shape)
        self.logits = torch.zeros(num, teacher.num_classes)
        self.checksums = np.zeros(num, np.uint32)
        resuming = self.path is not None and self.path.is_file()
        if self.path is None or not self.kept:
            self.images: NDArray[np.uint8] = np.zeros(shape, np.uint8)
            if resuming:
                assert self.path is not None
                self._restore(self.path)
            return
        if not resuming:
            make_images(images_of(self.path), shape)
        self.images = map_images(images_of(self.path), shape, "r+")
        if resuming:
            self._restore(self.path)

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path, str(self.rng.device))
        with understood(path, RunError, "does not fit its run"):
            found, wanted = state["origin"], self.fingerprints
            if changed := [name for name in wanted if found[name] != wanted[name]]:
                raise RunError(f"{path} was made with another {changed[0]}")
            own = state_of_this(state["processes"], self.rng)
            self.synthesizer.load_state_dict(own["method"])
            self.done, self.warmed_up = int(state["done"]), int(state["warmed_up"])
            done = slice(self.done)
            if self.kept:
                self.logits[done] = state["logits"].cpu()
                self.checksums[done] = state["checksums"].cpu().numpy()
        if self.kept and (streamed_checksums(self.images[done]) != self.checksums[done]).any():
            raise RunError(
                f"{images_of(path)} does not hold the images of its checkpoint: it was "
                "changed or damaged, and the run cannot be resumed"
            )

    def add(self, images: Tensor, logits: Tensor) -> None:
        """Store images (N, C, H, W) and logits (N, K) until the array is full."""
        slots = slice(self.done, self.done + len(images))
        room = min(len(images), self.num - self.done)
        if self.kept:
            self.logits[slots] = logits[:room]
            self.images[slots] = images[:room].numpy()
            self.checksums[slots] = checksums(self.images[slots])
            release_pages(self.images)
        self.done += room

    def save_periodically(self) -> None:
        """Write the checkpoint if the last one is older than `every` seconds."""
        if self.path is None or not from_main(time.monotonic() - self.saved >= self.every):
            return
        own = {"method": self.synthesizer.state_dict(), "rng": self.rng.get_state()}
        processes = gathered_states(own)
        self.saved = time.monotonic()
        if not is_main():
            return
        assert isinstance(self.images, np.memmap)
        self.images.flush()
        state = {
            "origin": self.fingerprints,
            "processes": processes,
            "done": self.done,
            "logits": self.logits[: self.done].clone(),
            "checksums": torch.from_numpy(self.checksums[: self.done].astype(np.int64)),
            "warmed_up": self.warmed_up,
        }
        save_checkpoint(self.path, state)


def own_images(path: Path, job: ImagesJob, teacher: Teacher, on_progress: OnProgress) -> Tensor:
    """Return the synthetic images of a job, uint8 (N, C, H, W); read `path`, or write it first."""
    if not path.is_file():
        write_own_images(path, job, teacher, on_progress)
    return load_unlabelled(path, teacher.input_spec)


def write_own_images(path: Path, job: ImagesJob, teacher: Teacher, on_progress: OnProgress) -> None:
    """Synthesize the images of a job and write them to `path`."""
    checkpoint = path.with_suffix(".pt")
    images, _ = draw_resumable(
        checkpoint,
        teacher,
        job.first_method,
        job.synthesis,
        4000 if job.num_images is None else job.num_images,
        seed=job.seed,
        checkpoint_every=job.checkpoint_every,
        on_progress=on_progress,
    )
    save_arrays(path, x=images)
    remove_checkpoint(checkpoint)


def fingerprints_of(teacher: Teacher, **given: Tensor | None) -> dict[str, str]:
    """Return the fingerprint of the teacher and digests of the given tensors, by name."""
    return {"teacher": teacher.fingerprint} | {
        name: digest(values.numpy().reshape(-1).data)
        for name, values in given.items()
        if values is not None
    }


def synthesize(
    folder: StrPath,
    job: SynthesizeJob,
    *,
    resume: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Write synthetic images to FOLDER/images.npz, with x, y and logits, and to images.png.

    Of a GiB or more x is images.npy, in the place of which images.npz has crc32, the checksum of
    each image. y are the groups of `OutputSpec.group`, such as classes; dense logits are of whole
    images.

    Args:
        folder: run directory, new or empty; with `resume`, one of the same job.
        job: configuration.
        resume: continue with the finished images.
        on_progress: called after every batch.

    Returns:
        Paths of the files and the content of summary.json; {} in a process that is not the main
        one.

    Raises:
        ConfigError: the images do not fit on the disk, or the method needs a student.
        TeacherError: the teacher does not open, or lacks a capability.
        RunError: the directory is not empty, belongs to another job, or cannot be written.
        NonFiniteError: a loss is not finite; raised before the update.

    """
    teacher = open_from(job.teacher, device=job.device, precision=job.precision)
    with open_run_directory(
        Path(folder),
        job,
        {"teacher": teacher.fingerprint},
        device=job.device,
        resume=resume,
        resume_from=("images.npz", "images.pt"),
        intermediate=("images.npy",),
        changeable=("checkpoint_every",),
        needed=("images.pt", "summary.json"),
    ) as folder:
        if not (folder / "summary.json").is_file():  # the last file that is written
            _write_images(folder, job, teacher, on_progress)
        if not is_main():
            return {}
        summary = read_plain(folder / "summary.json")
    files = {"images": str(folder / "images.npz"), "picture": str(folder / "images.png")}
    return files | summary


def _write_images(
    folder: Path, job: SynthesizeJob, teacher: Teacher, on_progress: OnProgress
) -> None:
    """Synthesize images, and write images.npz, images.png and summary.json."""
    checkpoint = folder / "images.pt"
    size = job.num_images * math.prod(teacher.input_spec.shape)
    stays = size >= LARGE
    x, logits = draw_resumable(
        checkpoint,
        teacher,
        job.first_method,
        job.synthesis,
        job.num_images,
        seed=job.seed,
        checkpoint_every=job.checkpoint_every,
        stays=stays,
        on_progress=on_progress,
    )
    queries = sum_over_processes(teacher.queries)
    if not is_main():
        return
    classes, counts = teacher.output_spec.group(logits), teacher.output_spec.counts(logits)
    given = {"crc32": streamed_checksums(x)} if stays else {"x": x}
    save_arrays(folder / "images.npz", **given, y=classes.numpy(), logits=logits.numpy())
    picture = draw_classes(torch.from_numpy(x), classes, teacher.output_spec.groups)
    write_atomically(folder / "images.png", picture)
    summary = {
        "num_images": job.num_images,
        "images_per_class": counts.tolist(),
        "queries": queries,
        "warnings": warn_of_classes(counts, job.num_images, kind=teacher.output_kind),
    }
    write_json(folder / "summary.json", summary)
    remove_checkpoint(checkpoint, stays=stays)


def draw_classes(x: torch.Tensor, classes: torch.Tensor, names: Sequence[str]) -> bytes:
    """Return a PNG with ten images per class from images, uint8 (N, C, H, W), and classes (N,)."""
    present = classes.unique()[:MOST_CLASSES]
    shown = [x[(classes == k).nonzero()[:10, 0]] for k in present]
    rows = [[image.numpy() / 255 for image in images] for images in shown]
    return png(class_rows(rows, [class_label(k, names) for k in present.tolist()]))
