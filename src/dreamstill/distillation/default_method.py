"""Choose what makes the images of a student for which no method was asked."""

import math

import torch
from torch import nn

from dreamstill.distillation.budget import within_budget
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.initialization import Start
from dreamstill.profiling import count_macs, macs_of
from dreamstill.progress import OnProgress
from dreamstill.quiet import without_messages
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import FastDfkdConfig, ImageProgramsConfig
from dreamstill.synthesis.methods.fastdfkd import FastDfkd
from dreamstill.synthesis.registry import DEFAULT_METHOD, missing_capabilities, open_synthesizer
from dreamstill.synthesis.validation_set import validation_set
from dreamstill.teacher import Teacher

__all__ = ["open_default"]

LEAST_STEPS = 1000
"""Steps from which on FastDFKD follows. In the same time it was behind image programs after 360 and
level after 2,400 for a wide CNN. For ResNet-56 it was 19 points ahead after 1,500, which took half
as long again (docs/fastdfkd.md)."""
MOST_VALUES = 3 * 32 * 32
"""Values of the largest images that it was measured on; it keeps all activations of a batch."""
WIDTHS = (32, 16)
"""Channels of its generator, for a CPU."""


def open_default(
    teacher: Teacher,
    student: nn.Module,
    drawn: ImageProgramsConfig,
    config: DistillConfig,
    start: Start,
    *,
    rng: torch.Generator,
    follow: bool | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Method:
    """Return image programs, or FastDFKD that begins with their images, where it is ahead.

    That is for a student with steps to learn, of a teacher of small images that has classes, a
    gradient and BatchNorm, and that computes more than the generator does: else more steps on drawn
    images take the student further in the same time.

    Args:
        teacher, student, config: of the distillation; left as they are.
        drawn: configuration of the image programs.
        start: how the student starts.
        rng: of all random numbers.
        follow: whether FastDFKD follows, where that was chosen before. Default: it is chosen; steps
            are timed for that where `config` has minutes.
        on_progress: called while the validation set is made that timed steps need.

    """

    def fastdfkd(rng: torch.Generator) -> FastDfkd:
        flip = config.augment.flip
        settings = FastDfkdConfig(batch_size=drawn.batch_size, widths=WIDTHS, flip=flip)
        return FastDfkd(teacher, settings, rng=rng, drawn=drawn)

    if follow is None:
        follow = _fastdfkd_can(teacher, drawn, config) and _is_ahead(
            fastdfkd(torch.Generator(rng.device).manual_seed(0)),
            *(student, config, start, on_progress),
        )
    return fastdfkd(rng) if follow else open_synthesizer(DEFAULT_METHOD, teacher, drawn, rng=rng)


def _fastdfkd_can(teacher: Teacher, drawn: ImageProgramsConfig, config: DistillConfig) -> bool:
    """Return whether FastDFKD can make the batches, and was tried on the like."""
    return (
        math.prod(teacher.input_spec.shape) <= MOST_VALUES
        and teacher.capabilities.budget is None
        and not missing_capabilities("fastdfkd", teacher)
        and drawn.batch_size > 1
        and config.fresh_period(FastDfkd.fresh_every) > 0
    )


def _is_ahead(
    fastdfkd: FastDfkd,
    student: nn.Module,
    config: DistillConfig,
    start: Start,
    on_progress: OnProgress,
) -> bool:
    """Return whether FastDFKD's generator is small enough, and the budget large enough for it."""
    teacher = fastdfkd.teacher
    making = macs_of(fastdfkd.generator.module, fastdfkd.generator.draw(1))
    if making >= count_macs(teacher.module, teacher.input_spec):
        return False
    timed: tuple[Method | None, ...] = (fastdfkd,)
    if config.minutes is not None:
        validation_set(teacher, config.num_validation, on_progress)
        timed = (None, fastdfkd)  # training alone is timed at once
    with without_messages():  # the distillation says how many steps its budget holds
        return all(
            within_budget(teacher, student, config, method, inherited=start.inherited).steps
            >= LEAST_STEPS
            for method in timed
        )
