"""Fine-tune a changed network on a set of images, towards the network it was made from."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamstill.errors import DataError
from dreamstill.pool import Pool, StoredImages
from dreamstill.synthesis.contract import Batch
from dreamstill.tasks.distill import Distillation, DistillSettings, Progress
from dreamstill.teacher import Teacher

__all__ = ["finetune"]


def finetune(
    teacher: Teacher,
    student: nn.Module,
    images: Tensor,
    settings: DistillSettings,
    *,
    rng: torch.Generator,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> nn.Module:
    """Train `student` in place towards the teacher; returns the one the judge keeps.

    Args:
        teacher: frozen; answers for the images, augmented or not.
        student: any network of the same inputs and classes.
        images: uint8 (N, C, H, W). The last `settings.held_out` of a random order, at most a
            quarter, are the judge's and are never trained on.
        settings: of the training; `prefill`, `fresh_every` and `pool` are those of the images.
        rng: order, draws and augmentation.
        on_progress: called after each step.

    Raises:
        DataError: fewer than 8 images.

    """
    if len(images) < 8:
        raise DataError(f"fine-tuning needs at least 8 images; got {len(images)}")
    order = torch.randperm(len(images), generator=rng, device=rng.device).cpu()
    held_out = min(settings.held_out, len(images) // 4)
    training, kept = images[order[:-held_out]], images[order[-held_out:]]
    settings = replace(
        settings, prefill=len(training), fresh_every=0, held_out=held_out, pool=len(training)
    )
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(Path(folder), teacher.spec, len(training), {})
        pool.add(Batch(teacher.spec.encode(training), torch.empty(0)))
        source = StoredImages(teacher, training, settings.batch_size, rng=rng)
        work = Distillation(teacher, student, source, pool, settings, rng=rng)
        shown = teacher.spec.encode(kept.to(rng.device))
        with torch.no_grad():
            work.judge.hold_out(Batch(shown, teacher(shown)))
        for progress in work.run():
            on_progress(progress)
        return work.chosen
