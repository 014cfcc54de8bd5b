"""Configuration of distillation."""

from dataclasses import field
from enum import StrEnum

from dreamstill.config import above, at_least, config_class, no_effect, within
from dreamstill.data.augmentation import Augmentation
from dreamstill.errors import ConfigError

__all__ = ["DistillConfig", "Optimizer", "LossName"]


class Optimizer(StrEnum):
    """What changes the student's weights."""

    ADAM = "adam"
    SGD = "sgd"


class LossName(StrEnum):
    """Losses that may be summed; see `dreamstill.losses.logits` and `features`."""

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


@config_class
class DistillConfig:
    """Settings of distillation."""

    steps: int = 2000
    """Student steps; at least 0: the student stays as it starts."""
    batch_size: int = 256
    """Images of a replayed batch; fresh ones have synthesis.batch_size. At least 2."""
    prefill: int | None = None
    """Images put into the replay buffer before the first step. Default: 0 for methods that stream,
    else buffer_size."""
    fresh_every: int | None = None
    """A fresh batch every so many steps, replay in between; 0: never. Default: 1 for methods that
    stream, else 0."""
    buffer_size: int = 20_000
    """Capacity of the replay buffer in images; at least 1."""
    augment: Augmentation = field(default_factory=Augmentation)
    """Changes of replayed images."""
    losses: tuple[LossName, ...] = (LossName.KL, LossName.L1)
    """Losses, summed. On logits: kl (Hinton's), reverse-kl, js, mse, l1; on feature maps: mimic,
    attention, boundary (a first stage that initializes the student); on the penultimate features:
    relational, similarity; on all layers of a student that was made from its teacher: layers."""
    loss_weights: tuple[float, ...] | None = None
    """A weight for each loss; at least 0. Default: 1 on logits, the papers' on features."""
    boundary_share: float = 0.25
    """Share of the steps that a boundary stage takes, where there is one. 0 to 1."""
    temperature: float = 4.0
    """Of kl, reverse-kl and js; above 0. At 1 they are the plain divergences."""
    optimizer: Optimizer = Optimizer.ADAM
    """adam or sgd, of the student."""
    lr: float = 2e-3
    """Learning rate; above 0."""
    momentum: float = 0.9
    """Of sgd; in [0, 1]."""
    weight_decay: float = 0.0
    """At least 0."""
    anneal: bool = True
    """Bring the learning rate to 0 by a cosine over the steps."""
    drops: tuple[float, ...] = ()
    """Shares of the steps after which the learning rate falls to a tenth, in place of the cosine.
    In [0, 1]."""
    validate_every: int = 100
    """Steps between the judge's sittings; at least 1. The last step always has one."""
    num_validation: int = 2048
    """Synthetic images held out for the judge; at least 2."""
    freeze_batch_norm: bool = False
    """Leave the student's BatchNorm running statistics as they are: for fine-tuning on images that
    would spoil them."""
    clip_gradient: float = 0.0
    """Largest norm of the student's gradient; 0: none."""

    def fresh_period(self, *, streams: bool) -> int:
        """Steps from one fresh batch to the next, where a method streams or not; 0: none."""
        default = 1 if streams else 0
        return default if self.fresh_every is None else self.fresh_every

    def __post_init__(self) -> None:
        at_least(self, 0, "steps")
        at_least(self, 1, "buffer_size", "validate_every")
        at_least(self, 2, "batch_size", "num_validation")
        above(self, 0, "temperature", "lr")
        at_least(self, 0, "prefill", "fresh_every", "clip_gradient", "loss_weights")
        at_least(self, 0, "weight_decay")
        within(self, 0, 1, "boundary_share", "momentum", "drops")
        if self.optimizer is not Optimizer.SGD:
            no_effect(self, "without sgd", "momentum")
        if self.drops:
            no_effect(self, "beside drops", "anneal")
        if self.prefill == 0 and self.fresh_every == 0:
            raise ConfigError("prefill 0 and fresh_every 0 leave nothing to learn from")
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
