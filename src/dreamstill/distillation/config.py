"""Configuration of distillation and fine-tuning."""

from dataclasses import field, replace
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator

from dreamstill.config import (
    Bool,
    BoolOrAuto,
    Float,
    Int,
    Text,
    above,
    at_least,
    config_class,
    no_effect,
    within,
    zero_or_at_least,
)
from dreamstill.data.config import Augmentation
from dreamstill.errors import ConfigError, quoted

__all__ = ["DistillConfig", "FinetuneConfig", "LOSS_NAMES", "LossName", "Optimizer"]

PREFILL = 4096
"""Images to begin with, of a method that makes a batch for every few steps."""


class Optimizer(StrEnum):
    """The optimizer of the student."""

    ADAM = "adam"
    SGD = "sgd"


class LossName(StrEnum):
    """Names of the distillation losses; see `dreamstill.distillation.distillation_losses`."""

    KL = "kl"
    REVERSE_KL = "reverse-kl"
    JS = "js"
    MSE = "mse"
    L1 = "l1"
    ATTENTION = "attention"
    BOUNDARY = "boundary"
    LAYERS = "layers"
    MIMIC = "mimic"
    RELATIONAL = "relational"
    SIMILARITY = "similarity"


LOSS_NAMES: dict[str, str] = {name.value: name for name in LossName}
"""Names that `losses` may hold; `register_loss` adds to them."""


def _known_loss(name: str) -> str:
    if name not in LOSS_NAMES:
        raise ConfigError(f"must be one of {', '.join(LOSS_NAMES)}; got {quoted(name)}")
    return LOSS_NAMES[name]


Loss = Annotated[Text, AfterValidator(_known_loss)]


@config_class
class FinetuneConfig:
    """Configuration of training a network toward its teacher on a set of images."""

    steps: Annotated[Int, at_least(0)] = 2000
    """Optimizer steps; at least 0. 0 leaves the student as it starts."""
    batch_size: Annotated[Int, at_least(2)] = 256
    """Images per step; at least 2. A batch that a method just made has synthesis.batch_size."""
    augment: Augmentation = field(default_factory=Augmentation)
    """Random changes of the images."""
    losses: tuple[Loss, ...] = (LossName.KL, LossName.L1)
    """Distillation losses, summed. On logits: kl, reverse-kl, js, mse, l1. On feature maps: mimic,
    attention, boundary (a first phase that initializes the student). On penultimate features:
    relational, similarity. On all layers of a student made from its teacher: layers."""
    loss_weights: tuple[Annotated[Float, at_least(0)], ...] | None = None
    """One weight per loss, at least 0. Default: 1 on logits, the papers' weights on features."""
    boundary_share: Annotated[Float, within(0, 1)] = 0.25
    """Share of the steps that the boundary phase takes; 0 to 1."""
    temperature: Annotated[Float, above(0)] = 4.0
    """Temperature of kl, reverse-kl and js; above 0. At 1 they are the plain divergences."""
    optimizer: Optimizer = Optimizer.ADAM
    """adam or sgd."""
    lr: Annotated[Float, above(0)] = 2e-3
    """Learning rate; above 0."""
    momentum: Annotated[Float, within(0, 1)] = 0.9
    """Momentum of sgd; 0 to 1."""
    weight_decay: Annotated[Float, at_least(0)] = 0.0
    """Weight decay; at least 0."""
    warm_up: Annotated[Float, within(0, 0.5)] = 0.0
    """Share of the steps over which the learning rate rises from 0; 0 to 0.5."""
    anneal: Bool = True
    """Anneal the learning rate to 0 by a cosine over the steps after the warm-up."""
    drops: tuple[Annotated[Float, within(0, 1)], ...] = ()
    """Shares of the steps, 0 to 1, after which the learning rate falls to a tenth, in place of the
    cosine."""
    validate_every: Annotated[Int, at_least(1)] = 100
    """Steps between validations; at least 1. The last step is always followed by one."""
    num_validation: Annotated[Int, at_least(2)] = 1024
    """Images of the teacher's validation set, for model selection; at least 2."""
    freeze_batch_norm: Bool = False
    """Leave the student's BatchNorm statistics as they are, for images that would spoil them."""
    clip_gradient: Annotated[Float, at_least(0)] = 0.0
    """Largest norm of the student's gradient; 0 for no limit."""

    def __post_init__(self) -> None:
        if self.optimizer is not Optimizer.SGD:
            no_effect(self, "without sgd", "momentum")
        if self.drops:
            no_effect(self, "beside drops", "anneal")
        if not self.losses:
            raise ConfigError(f"losses must name at least one of {', '.join(LossName)}")
        if len(set(self.losses)) < len(self.losses):
            raise ConfigError(f"losses names one twice: {', '.join(self.losses)}")
        if self.losses == (LossName.BOUNDARY,):
            raise ConfigError("boundary only initializes the student: name a loss beside it")
        if not {LossName.KL, LossName.REVERSE_KL, LossName.JS} & {*self.losses}:
            no_effect(self, "without kl, reverse-kl or js", "temperature")
        if LossName.BOUNDARY not in self.losses:
            no_effect(self, "without boundary", "boundary_share")
        weights = self.loss_weights
        if weights is not None and len(weights) != len(self.losses):
            raise ConfigError(f"loss_weights must have {len(self.losses)} values; got {weights}")


@config_class
class DistillConfig(FinetuneConfig):
    """Configuration of distilling a student, on images made before or while it learns."""

    minutes: Annotated[Float, above(0)] | None = None
    """Minutes of training in the place of `steps`: as many steps as a timed one lets fit, beside
    what is made before the first step; above 0."""
    visits: Annotated[Int, at_least(1)] | None = None
    """Image visits in the place of `steps`, rounded up to whole steps; at least 1."""
    lr: Annotated[Float, above(0)] = 5e-3
    """Learning rate; above 0."""
    warm_up: Annotated[Float, within(0, 0.5)] = 0.1
    """Share of the steps over which the learning rate rises from 0; 0 to 0.5."""
    inherit: BoolOrAuto = "auto"
    """Start the student from the teacher's most important channels: true, false for the weights
    that it was built with, or auto: where it is a narrower copy of the teacher."""
    reconstruct: Annotated[Int, zero_or_at_least(2)] = 2048
    """Images on which the layers of a student that inherits are reconstructed, by least squares for
    the teacher's outputs, before the first step; at least 2, or 0 to skip this."""
    prefill: Annotated[Int, at_least(0)] | None = None
    """Images put into the replay buffer before the first step. Default: 0 for methods that make a
    batch for each step, 4096 for those that make one for every few, else buffer_size."""
    fresh_every: Annotated[Int, at_least(0)] | None = None
    """Train on a fresh batch every so many steps and on replayed ones in between; 0 for never.
    Default: the method's, 1 for those that make each batch quickly, 0 for slow ones."""
    buffer_size: Annotated[Int, at_least(1)] = 20_000
    """Capacity of the replay buffer in images; at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefill == 0 and self.fresh_every == 0:
            raise ConfigError("prefill 0 and fresh_every 0 leave nothing to learn from")
        if self.minutes is not None:
            no_effect(self, f"beside {self.minutes:g} minutes", "steps", "visits")
        if self.visits is not None:
            no_effect(self, f"beside {self.visits:,} visits", "steps")
        if self.inherit is False:
            no_effect(self, "without inherit", "reconstruct")
            if self.steps == 0:
                raise ConfigError(
                    "0 steps leave a student at its random start: take steps, or let it inherit"
                )

    def spelled_out(self, default: int) -> "DistillConfig":
        """Return the same with `prefill` and `fresh_every` as they are for a method."""
        return replace(
            self, prefill=self.num_prefill(default), fresh_every=self.fresh_period(default)
        )

    def fresh_period(self, default: int) -> int:
        """Return the steps from one fresh batch to the next, 0 for none; `default` the method's."""
        return default if self.fresh_every is None else self.fresh_every

    def num_prefill(self, default: int) -> int:
        """Return the images to make before the first step; `default` as of `fresh_period`."""
        if self.prefill is not None:
            return self.prefill
        if default == 1:
            return 0
        return min(PREFILL, self.buffer_size) if default else self.buffer_size
