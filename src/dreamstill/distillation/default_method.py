"""Choose what makes the images of a student for which no method was asked."""

import math

import torch
from torch import nn

from dreamstill.distillation.budget import within_budget
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.initialization import Start
from dreamstill.profiling import count_macs, macs_of
from dreamstill.quiet import without_messages
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import FastDfkdConfig, ImageProgramsConfig
from dreamstill.synthesis.methods.fastdfkd import FastDfkd
from dreamstill.synthesis.registry import DEFAULT_METHOD, missing_capabilities, open_synthesizer
from dreamstill.teacher import Teacher

__all__ = ["open_default"]

LEAST_STEPS = 2000
"""Steps from which on FastDFKD is not behind image programs in the same time (docs/fastdfkd.md).
Where minutes are given it gains nothing, and a choice by timed steps might change on resuming."""
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
) -> Method:
    """Return image programs, or FastDFKD that begins with their images, where it is ahead.

    That is for a student from random weights with steps to learn, of a teacher of small images that
    has classes, a gradient and BatchNorm, and that computes more than the generator does: else more
    steps on drawn images take the student further in the same time.

    Args:
        teacher, student, config: of the distillation; left as they are.
        drawn: configuration of the image programs.
        start: how the student starts.
        rng: of all random numbers.

    """
    if not _fastdfkd_can(teacher, drawn, config, start):
        return open_synthesizer(DEFAULT_METHOD, teacher, drawn, rng=rng)
    settings = FastDfkdConfig(batch_size=drawn.batch_size, widths=WIDTHS, flip=config.augment.flip)
    tried = FastDfkd(teacher, settings, rng=torch.Generator(rng.device).manual_seed(0))
    making = macs_of(tried.generator.module, tried.generator.draw(1))
    with without_messages():  # the distillation says how many steps its visits take
        steps = within_budget(teacher, student, config, tried).steps
    if steps >= LEAST_STEPS and making < count_macs(teacher.module, teacher.input_spec):
        return FastDfkd(teacher, settings, rng=rng, drawn=drawn)
    return open_synthesizer(DEFAULT_METHOD, teacher, drawn, rng=rng)


def _fastdfkd_can(
    teacher: Teacher, drawn: ImageProgramsConfig, config: DistillConfig, start: Start
) -> bool:
    """Return whether FastDFKD can make the batches, and was tried on the like."""
    return (
        start.inherited is None
        and config.minutes is None
        and math.prod(teacher.input_spec.shape) <= MOST_VALUES
        and teacher.capabilities.budget is None
        and not missing_capabilities("fastdfkd", teacher)
        and drawn.batch_size > 1
        and config.fresh_period(FastDfkd.fresh_every) > 0
    )
