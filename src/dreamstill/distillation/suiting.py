"""Suit a training to a teacher that answers within a budget, or with labels alone."""

from dataclasses import replace
from typing import TypeVar

from dreamstill.black_box.config import NUM_EXAMINED, check_pays
from dreamstill.config import no_effect
from dreamstill.data.config import NO_AUGMENTATION
from dreamstill.distillation.config import DistillConfig, FinetuneConfig, LossName
from dreamstill.errors import ConfigError
from dreamstill.synthesis.base import Method
from dreamstill.teacher import Teacher

__all__ = ["check_baselines", "suited", "suited_to_method"]

Config = TypeVar("Config", bound=FinetuneConfig)

ON_SCORES = (LossName.L1, LossName.MSE)
"""Losses that compare the logits themselves."""


def suited(teacher: Teacher, config: Config) -> Config:
    """Return the configuration of a training toward this teacher.

    Within a budget, images keep their answers, and so are not augmented. Labels alone are learned
    by cross-entropy, KL at temperature 1, in the place of the default losses.

    Raises:
        ConfigError: a setting has no effect, a loss needs scores, or the budget is too small.

    """
    if (budget := teacher.capabilities.budget) is not None:
        check_pays(budget, config.num_validation)
        if config.augment != NO_AUGMENTATION:
            no_effect(config, "on a black box, which would have to answer again", "augment")
        config = replace(config, augment=NO_AUGMENTATION)
    if not teacher.capabilities.scores:
        usual = FinetuneConfig()
        if (config.losses, config.temperature) == (usual.losses, usual.temperature):
            return replace(config, losses=(LossName.KL,), temperature=1.0)
        if wrong := [name for name in config.losses if name in ON_SCORES]:
            raise ConfigError(
                f"the loss {wrong[0]} compares scores, and the teacher answers with labels alone: "
                "take kl at temperature 1, which is cross-entropy"
            )
    return config


def suited_to_method(teacher: Teacher, config: DistillConfig, method: Method) -> DistillConfig:
    """Do as `suited`, and let the images of a method that needs no student be made once.

    They are as many as the budget pays beside the validation set, unless `prefill` says how many.
    """
    config = suited(teacher, config)
    budget = teacher.capabilities.budget
    if budget is None or method.adversarial or config.fresh_every is not None:
        return config
    size = method.config.batch_size
    paid = budget - NUM_EXAMINED - config.num_validation
    prefill = max(size, paid // size * size) if config.prefill is None else config.prefill
    most = max(config.buffer_size, prefill)
    return replace(config, prefill=prefill, fresh_every=0, buffer_size=most)


def check_baselines(teacher: Teacher, wanted: bool) -> None:
    """Raise ConfigError if baselines are wanted that would share a budget with the student."""
    if wanted and teacher.capabilities.budget is not None:
        raise ConfigError(
            "baselines would share the budget of the black box: distill on images of noise by "
            "itself, with a black box and a budget of its own"
        )
