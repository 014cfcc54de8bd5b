"""Configuration of distillation."""

from dataclasses import field
from enum import StrEnum

from dreamstill.config import above, at_least, no_effect, settings_class, within
from dreamstill.data.augmentation import Augmentation
from dreamstill.errors import SettingsError

__all__ = ["DistillSettings", "Optimizer", "Transfer"]


class Optimizer(StrEnum):
    """What changes the student's weights."""

    ADAM = "adam"
    SGD = "sgd"


class Transfer(StrEnum):
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


@settings_class
class DistillSettings:
    """Settings of distillation."""

    steps: int = 2000
    """Student steps; at least 0: the student stays as it starts."""
    batch_size: int = 256
    """Images of a replayed batch; fresh ones have synthesis.batch_size. At least 2."""
    prefill: int | None = None
    """Images put into the pool before the first step; default: 0 for methods that stream, else
    the pool's capacity."""
    fresh_every: int | None = None
    """A fresh batch every so many steps, replay in between; 0: never. Default: 1 for methods that
    stream, else 0."""
    pool: int = 20_000
    """Capacity of the pool in images; at least 1."""
    augment: Augmentation = field(default_factory=Augmentation)
    """Changes of replayed images."""
    transfer: tuple[Transfer, ...] = (Transfer.KL, Transfer.L1)
    """Losses, summed. On logits: kl (Hinton's), reverse-kl, js, mse, l1; on feature maps: mimic,
    attention, boundary (a first stage that initializes the student); on the penultimate features:
    relational, similarity; on all layers of a student that was made from its teacher: layers."""
    transfer_weights: tuple[float, ...] | None = None
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
    judge_every: int = 100
    """Steps between the judge's sittings; at least 1. The last step always has one."""
    held_out: int = 2048
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
        at_least(self, 1, "pool", "judge_every")
        at_least(self, 2, "batch_size", "held_out")
        above(self, 0, "temperature", "lr")
        at_least(self, 0, "prefill", "fresh_every", "clip_gradient", "transfer_weights")
        at_least(self, 0, "weight_decay")
        within(self, 0, 1, "boundary_share", "momentum", "drops")
        if self.optimizer is not Optimizer.SGD:
            no_effect(self, "without sgd", "momentum")
        if self.drops:
            no_effect(self, "beside drops", "anneal")
        if self.prefill == 0 and self.fresh_every == 0:
            raise SettingsError("prefill 0 and fresh_every 0 leave nothing to learn from")
        if not self.transfer:
            raise SettingsError(f"transfer must name at least one of {', '.join(Transfer)}")
        if len(set(self.transfer)) < len(self.transfer):
            raise SettingsError(f"transfer names a loss twice: {', '.join(self.transfer)}")
        if self.transfer == (Transfer.BOUNDARY,):
            raise SettingsError("boundary only initializes the student: name a loss beside it")
        if not {Transfer.KL, Transfer.REVERSE_KL, Transfer.JS} & {*self.transfer}:
            no_effect(self, "without kl, reverse-kl or js", "temperature")
        if Transfer.BOUNDARY not in self.transfer:
            no_effect(self, "without boundary", "boundary_share")
        weights = self.transfer_weights
        if weights is not None and len(weights) != len(self.transfer):
            raise SettingsError(
                f"transfer_weights must have {len(self.transfer)} values; got {weights}"
            )
