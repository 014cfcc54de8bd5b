"""Choose how a student starts: from its teacher's channels, or with the weights that it has."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.weight_inheritance import inherit
from dreamstill.errors import ConfigError, TeacherError
from dreamstill.nn.graph_network import named_like
from dreamstill.teacher import Teacher

__all__ = ["Start", "initialize"]


class Start(NamedTuple):
    """Start of a student."""

    inherited: Mapping[str, Tensor] | None
    """By layer, which of the teacher's output channels the student has; None: it did not
    inherit."""
    reason: str
    """The start and why, in a sentence."""


def initialize(teacher: Teacher, student: nn.Module, config: DistillConfig) -> Start:
    """Let a student inherit, in place, if `config.inherit` says so or, at auto, if it can.

    Raises:
        ConfigError: `inherit` is true, or `steps` 0, and the student is no narrower copy of the
            teacher; it is left as it was.
        TeacherError: `inherit` is true, and channels cannot be followed through a network.

    """
    if config.inherit is False:
        return Start(None, "The student starts with its own, usually random weights, as asked.")
    if teacher.capabilities.budget is not None and config.inherit == "auto" and config.steps:
        own = "The student starts with its own, usually random weights"
        return Start(None, f"{own}, for those of a black box are not known.")
    try:
        whole = named_like(teacher.module, student)
        inherited = inherit(whole, student, teacher.input_spec)
    except (ConfigError, TeacherError) as error:
        if config.inherit is True or not config.steps:
            raise
        reason = str(error).partition("; ")[0]  # without advice for those who asked for it
        own = "The student starts with its own, usually random weights, for it cannot inherit"
        return Start(None, f"{own}: {reason}.")
    how = "inherits its most important channels"
    if config.reconstruct:
        how += f"; its layers are then reconstructed on {config.reconstruct:,} images"
    return Start(inherited, f"The student, a narrower copy of the teacher, {how}.")
