"""Fine-tune a changed network on a set of images, towards the network it was made from."""

from collections.abc import Callable, Mapping
from dataclasses import fields

import torch
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.data.stored_images import StoredImages
from dreamstill.distillation.config import DistillConfig, FinetuneConfig
from dreamstill.distillation.trainer import Distillation
from dreamstill.errors import DataError
from dreamstill.nn.hooks import shown_at_once
from dreamstill.progress import Progress
from dreamstill.teacher import Teacher, check_trainable

__all__ = ["finetune"]


def finetune(
    teacher: Teacher,
    student: nn.Module,
    images: Tensor,
    config: FinetuneConfig,
    *,
    rng: torch.Generator,
    inherited: Mapping[str, Tensor] | None = None,
    reconstruct: int = 0,
    pretrained: bool = True,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> nn.Module:
    """Train `student` in place towards the teacher; return the one the judge keeps.

    Images stay in memory. A start that no step improves on is returned, and a warning logged.

    Args:
        teacher: frozen; answers for the images, augmented or not.
        student: any network of the same inputs and classes.
        images: uint8 (N, C, H, W). The last `config.num_validation` of a random order, at most a
            quarter, are the judge's and are never trained on.
        config: of the training; on at most `config.buffer_size` of the images.
        rng: order, draws and augmentation.
        inherited, reconstruct, pretrained: how the student starts; see `Distillation`.
        on_progress: called after each step; the last record has chosen_at_step.

    Raises:
        DataError: fewer than 8 images.
        ConfigError: `prefill` or `fresh_every` is set: there is nothing to synthesize.
        TeacherError: the student cannot be trained.

    """
    if len(images) < 8:
        raise DataError(f"fine-tuning needs at least 8 images; got {len(images)}")
    check_trainable(student, teacher.input_spec)
    order = torch.randperm(len(images), generator=rng, device=rng.device).cpu()
    num_validation = min(config.num_validation, len(images) // 4)
    training, kept = (
        images[order[:-num_validation]],
        images[order[-num_validation:]],
    )
    num = len(training)
    given = {part.name: getattr(config, part.name) for part in fields(FinetuneConfig)}
    given |= {"prefill": num, "fresh_every": 0, "num_validation": num_validation}
    config = DistillConfig(**given, buffer_size=num, inherit=True)
    buffer = ReplayBuffer(None, teacher.input_spec, num)
    for part in training.split(500):
        buffer.add(Batch(teacher.input_spec.encode(part), torch.empty(0)))
    work = Distillation(
        teacher,
        student,
        StoredImages(teacher, training, config.batch_size, rng=rng),
        buffer,
        config,
        rng=rng,
        inherited=inherited,
        reconstruct=reconstruct,
        pretrained=pretrained,
    )
    for part in kept.split(shown_at_once(teacher.input_spec.shape)):
        work.selector.hold_out(answered(teacher, teacher.input_spec.encode(part.to(rng.device))))
    for progress in work.run():
        on_progress(progress)
    return work.chosen
