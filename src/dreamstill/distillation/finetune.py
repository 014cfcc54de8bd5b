"""Fine-tune a changed network on a set of images, towards the network it was made from."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dreamstill.data.batch import answered
from dreamstill.distillation.batch_stream import replay
from dreamstill.distillation.config import FinetuneConfig
from dreamstill.distillation.layer_reconstruction import reconstruct as reconstruct_layers
from dreamstill.distillation.model_selection import ModelSelector
from dreamstill.distillation.suiting import suited
from dreamstill.distillation.trainer import Trainer
from dreamstill.errors import DataError
from dreamstill.nn.graph_network import named_like
from dreamstill.nn.hooks import some_of
from dreamstill.progress import OnProgress
from dreamstill.synthesis.validation_set import validation_set
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
    on_progress: OnProgress = lambda progress: None,
) -> nn.Module:
    """Train `student` in place towards the teacher; return the best one, by the validation set.

    Images stay in memory. A start that no step improves on is returned, and a warning logged.

    Args:
        teacher: frozen; answers for the images, augmented or not.
        student: any network of the same inputs and classes.
        images: uint8 (N, C, H, W), all trained on.
        config: of the training.
        rng: order, draws and augmentation.
        inherited, pretrained: how the student starts; see `Trainer`.
        reconstruct: images on which the layers of a student that inherits are reconstructed before
            the first step; 0: it starts as it is.
        on_progress: called after each step; the last record has chosen_at_step.

    Raises:
        BudgetError: the teacher's budget does not pay for all images.
        DataError: fewer than 8 images.
        TeacherError: the student cannot be trained.

    """
    if len(images) < 8:
        raise DataError(f"fine-tuning needs at least 8 images; got {len(images)}")
    check_trainable(student, teacher.input_spec)
    config, spec = suited(teacher, config), teacher.input_spec
    validation = validation_set(teacher, config.num_validation, on_progress)
    selector = ModelSelector(validation, spec, teacher.output_kind)
    trainer = Trainer(
        *(teacher, student, replay(images, spec, config, rng), selector, config),
        rng=rng,
        inherited=inherited,
        pretrained=pretrained,
    )
    if teacher.capabilities.budget is not None:  # it is known now whether it suffices
        for some in images.split(config.batch_size):
            answered(teacher, spec.encode(some.to(rng.device)))
    if inherited is not None and reconstruct:
        shown = spec.encode(some_of(images, reconstruct).to(rng.device))
        whole = named_like(teacher.module, student)
        reconstruct_layers(whole, student, inherited, shown, rng=rng)
    for progress in trainer.run():
        on_progress(progress)
    return trainer.chosen
