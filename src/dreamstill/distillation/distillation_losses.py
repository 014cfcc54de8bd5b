"""Distillation losses: how far a student is from its teacher, in logits and in features.

Each loss is a class, `LOSSES` is their table by name, and `DistillationLoss` is a weighted sum.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.distillation.config import LOSS_NAMES, LossName
from dreamstill.errors import ConfigError
from dreamstill.losses import features as feature_losses
from dreamstill.losses import logits as logit_losses
from dreamstill.nn.hooks import Probe, ReluInputs, eval_mode
from dreamstill.nn.quantized import QuantizedLayer
from dreamstill.nn.seeded import seeded
from dreamstill.output_spec import OutputKind, decisions
from dreamstill.teacher import Teacher

__all__ = ["LOSSES", "DistillationLoss", "Loss", "Networks", "Observation", "register_loss"]


@dataclass(frozen=True)
class Observation:
    """Recorded tensors of one forward pass of a network."""

    logits: Tensor
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """By layer, its first input."""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """By layer, its output."""
    before_relu: Mapping[str, Tensor] = field(default_factory=dict)
    """Input of each ReLU, by number in the order of the calls."""


def observe(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    layers: Mapping[str, nn.Module],
    *,
    relus: bool,
    copy: bool = True,
) -> Observation:
    """Run a network on images; record layers, copies where later ones may change them in place."""
    entering = ReluInputs()
    with Probe(layers, copy=copy) as probe, entering if relus else nullcontext():
        logits = network(images)
    return Observation(logits, probe.inputs, probe.outputs, entering.inputs)


@dataclass(frozen=True)
class Networks:
    """The teacher and the student that a loss is made for; both run once to find their layers."""

    teacher: Teacher
    student: nn.Module
    temperature: float
    """Divides the logits in the losses that soften them; above 0."""
    rng: torch.Generator
    """Initializes the layers that some losses train."""
    inherited: Mapping[str, Tensor] = field(default_factory=dict)
    """By layer, which of the teacher's output channels the student has; all where it is absent."""

    @cached_property
    def observations(self) -> tuple[Observation, Observation]:
        """The student and the teacher on blank images, every layer and ReLU recorded."""
        return self._observed(self.student), self._observed(self.teacher.module)

    @torch.no_grad()
    def _observed(self, module: nn.Module) -> Observation:
        images = torch.zeros(2, *self.teacher.input_spec.shape, device=self.teacher.device)
        layers = {
            name: part
            for name, part in module.named_modules()
            if "parametrizations" not in name.split(".")  # these compute weights, not features
        }
        with eval_mode(module):
            return observe(module, images, layers, relus=True, copy=False)


class Loss(ABC):
    """A distillation loss, made for one student and its teacher; a call returns a scalar."""

    name: ClassVar[str]
    function: "ClassVar[staticmethod[..., Tensor]]"
    """Its formula, of the student's and the teacher's tensors, where it is one."""
    weight: ClassVar[float] = 1.0
    """The default weight."""
    before_relu: ClassVar[bool] = False
    """It compares what enters ReLUs, by number, in a first stage that initializes the student."""

    def __init__(self, networks: Networks) -> None:
        self.temperature = networks.temperature
        self.pairs: list[tuple[str, str]] = []
        """The layers of student and teacher to record; none: the logits suffice."""
        self.connectors = nn.ModuleList()
        """Layers that are trained with the student."""

    @abstractmethod
    def __call__(self, student: Observation, teacher: Observation) -> Tensor:
        """Return the loss."""


class LogitLoss(Loss):
    """A loss on the outputs (N, ...)."""

    def __call__(self, student: Observation, teacher: Observation) -> Tensor:
        """Return the loss of the outputs."""
        return self.function(student.logits, teacher.logits, self.temperature)


class SoftenedLoss(LogitLoss):
    """A loss on the softened answers to every decision: see `dreamstill.output_spec.decisions`."""

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        self.kind = networks.teacher.output_kind

    def __call__(self, student: Observation, teacher: Observation) -> Tensor:
        """Return the mean over the decisions; of values see `values_divergence`."""
        if self.kind is OutputKind.VALUES:
            return logit_losses.values_divergence(student.logits, teacher.logits)
        rows = (decisions(seen.logits, self.kind) for seen in (student, teacher))
        return self.function(*rows, self.temperature)


class Kl(SoftenedLoss):
    """KL(teacher || student) of softened answers: Hinton et al. 2015."""

    name, function = LossName.KL, staticmethod(logit_losses.kl_divergence)


class ReverseKl(SoftenedLoss):
    """KL(student || teacher) of softened answers."""

    name, function = LossName.REVERSE_KL, staticmethod(logit_losses.reverse_kl)


class Js(SoftenedLoss):
    """Jensen-Shannon divergence of softened answers: Yin et al. 2020."""

    name, function = LossName.JS, staticmethod(logit_losses.js_divergence)


class Mse(LogitLoss):
    """Mean squared difference of logits: Ba and Caruana 2014."""

    name, function = LossName.MSE, staticmethod(logit_losses.mse)


class L1(LogitLoss):
    """Mean absolute difference of logits: Fang et al. 2019 (DFAD)."""

    name, function = LossName.L1, staticmethod(logit_losses.l1)


class MapLoss(Loss):
    """A loss on the last feature maps (N, C, H, W) at each resolution that both networks have."""

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        student, teacher = (_last_maps(seen) for seen in map(self._maps, networks.observations))
        self.pairs = [(student[size], teacher[size]) for size in student if size in teacher]
        if not self.pairs:
            entering = " that enter a ReLU" if self.before_relu else ""
            raise ConfigError(
                f"the loss {self.name} needs feature maps of one size{entering} in both networks; "
                f"the student has {list(student)}, the teacher {list(teacher)}"
            )
        ours, theirs = map(self._maps, networks.observations)
        for mine, wanted in self.pairs:
            channels = ours[mine].shape[1], theirs[wanted].shape[1]
            connector = self.connector(*channels, networks.rng)
            self.connectors.append(connector.to(networks.teacher.device))

    def connector(self, ours: int, theirs: int, rng: torch.Generator) -> nn.Module:
        """Make a layer that gives the student's maps the channels of the teacher's."""
        return nn.Identity()

    def _maps(self, seen: Observation) -> Mapping[str, Any]:
        return seen.before_relu if self.before_relu else seen.outputs

    def losses(self, student: Observation, teacher: Observation) -> list[Tensor]:
        """Return the loss at each resolution."""
        ours, theirs = self._maps(student), self._maps(teacher)
        return [
            self.function(connector(ours[mine]), theirs[wanted])
            for connector, (mine, wanted) in zip(self.connectors, self.pairs, strict=True)
        ]

    def __call__(self, student: Observation, teacher: Observation) -> Tensor:
        """Return the sum over the resolutions."""
        return sum(self.losses(student, teacher), student.logits.new_zeros(()))


def _last_maps(outputs: Mapping[str, Any]) -> dict[tuple[int, int], str]:
    """Return, by resolution (H, W), the name of the last feature maps that have it."""
    maps = {name: o for name, o in outputs.items() if isinstance(o, Tensor) and o.ndim == 4}
    return {(output.shape[2], output.shape[3]): name for name, output in maps.items()}


class Attention(MapLoss):
    """Attention maps: Zagoruyko and Komodakis 2017; the weight is that of ZSKT."""

    name, function = LossName.ATTENTION, staticmethod(feature_losses.attention)
    weight = 250.0


class Mimic(MapLoss):
    """Feature maps, the student's after a 1x1 convolution: Li, Jin and Yan 2017."""

    name, function = LossName.MIMIC, staticmethod(feature_losses.mimic)

    def connector(self, ours: int, theirs: int, rng: torch.Generator) -> nn.Module:
        """Make a 1x1 convolution."""
        with seeded(rng):
            return nn.Conv2d(ours, theirs, 1)


class Boundary(MapLoss):
    """Activation boundaries before the last ReLUs: Heo et al. 2019 (AB)."""

    name, function = LossName.BOUNDARY, staticmethod(feature_losses.activation_boundary)
    weight = 3e-3
    before_relu = True

    def connector(self, ours: int, theirs: int, rng: torch.Generator) -> nn.Module:
        """Make a 1x1 convolution with BatchNorm where the channels differ."""
        if ours == theirs:
            return nn.Identity()
        with seeded(rng):
            convolution = nn.Conv2d(ours, theirs, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
        return nn.Sequential(convolution, nn.BatchNorm2d(theirs))

    def losses(self, student: Observation, teacher: Observation) -> list[Tensor]:
        """Return the losses from the last resolution on, weighted 1, 1/2, 1/4 as in the paper."""
        losses = reversed(super().losses(student, teacher))
        return [loss / 2**depth for depth, loss in enumerate(losses)]


class FeatureLoss(Loss):
    """A loss on the penultimate features (N, D), the inputs of the last linear layers."""

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        modules = (networks.student, networks.teacher.module)
        last = [
            [layer for layer in seen.outputs if _is_linear(module.get_submodule(layer))][-1:]
            for seen, module in zip(networks.observations, modules, strict=True)
        ]
        if not all(last):
            raise ConfigError(f"the loss {self.name} needs a linear layer in both networks")
        self.pairs = [(last[0][0], last[1][0])]

    def __call__(self, student: Observation, teacher: Observation) -> Tensor:
        """Return the loss of the features."""
        ((ours, theirs),) = self.pairs
        return self.function(student.inputs[ours], teacher.inputs[theirs])


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module.layer if isinstance(module, QuantizedLayer) else module, nn.Linear)


class Similarity(FeatureLoss):
    """Similarities of the images in a batch: Tung and Mori 2019 (SP)."""

    name, function = LossName.SIMILARITY, staticmethod(feature_losses.similarity_preserving)
    weight = 3000.0


class Relational(FeatureLoss):
    """Distances and angles between the images in a batch: Park et al. 2019 (RKD)."""

    name, function = LossName.RELATIONAL, staticmethod(feature_losses.relational)


class Layers(Loss):
    """Every layer and block of a student that was made from its teacher, channel by channel."""

    name = LossName.LAYERS

    def __init__(self, networks: Networks) -> None:
        super().__init__(networks)
        self.channels = shared_layers(networks)
        self.pairs = [(layer, layer) for layer in self.channels]

    def __call__(self, student: Observation, teacher: Observation) -> Tensor:
        """Return the mean over the layers of the error relative to the teacher's variance."""
        total = student.logits.new_zeros(())
        for name, (axis, channels) in self.channels.items():
            wanted = teacher.outputs[name].index_select(axis, channels)
            error = feature_losses.layer_error(student.outputs[name], wanted)
            total = total + error / len(self.channels)
        return total


def shared_layers(networks: Networks) -> dict[str, tuple[int, Tensor]]:
    """Find the layers and blocks of the teacher that the student has too, at least two.

    Of a layer and the BatchNorm behind it only the BatchNorm is compared. A block has the channels
    of the last layer in it, where their numbers agree. Returns, by layer, the axis of its channels
    and which of the teacher's channels the student has.
    """
    student, teacher = networks.observations
    modules = dict(networks.teacher.module.named_modules())
    kinds = (nn.Conv2d, nn.Linear, _BatchNorm)
    layers = [name for name in teacher.outputs if isinstance(modules[name], kinds)]
    normed = {id(teacher.inputs[name]) for name in layers if isinstance(modules[name], _BatchNorm)}
    last = {name: name for name in layers if id(teacher.outputs[name]) not in normed}
    for name in teacher.outputs.keys() - layers - {""}:
        within = [layer for layer in layers if layer.startswith(f"{name}.")]
        if within and not isinstance(modules[name], nn.Sequential):  # its last part is the same
            last[name] = within[-1]
    shared = {}
    for name in (name for name in teacher.outputs if name in last):
        ours, wanted = student.outputs.get(name), teacher.outputs[name]
        if not isinstance(ours, Tensor) or not isinstance(wanted, Tensor):
            continue
        axis = -1 if isinstance(modules[last[name]], nn.Linear) else 1
        channels = torch.arange(wanted.shape[axis], device=wanted.device)
        if teacher.outputs[last[name]].shape[axis] == len(channels):
            channels = networks.inherited.get(last[name], channels).to(wanted.device)
        if ours.shape == wanted.index_select(axis, channels).shape:
            shared[name] = axis, channels
    if len(shared) < min(2, len(last)):
        raise ConfigError(
            "the loss layers needs a student that was made from its teacher; of "
            f"{len(last)} layers {len(shared)} can be compared"
        )
    return shared


ON_FEATURES = (Attention, Boundary, Layers, Mimic, Relational, Similarity)
LOSSES: dict[str, type[Loss]] = {
    loss.name: loss for loss in (Kl, ReverseKl, Js, Mse, L1, *ON_FEATURES)
}


def register_loss(loss: type[Loss]) -> type[Loss]:
    """Add a loss under its name, for `losses` of every training; return it, as a decorator does.

    Raises ConfigError if the name is taken.
    """
    if loss.name in LOSSES:
        raise ConfigError(f"there is a loss {loss.name!r} already: choose another name")
    LOSSES[loss.name] = loss
    LOSS_NAMES[loss.name] = loss.name
    return loss


class DistillationLoss:
    """The weighted sum of some distillation losses.

    Args:
        networks: the teacher and the student.
        names: the losses, keys of `LOSSES`.
        weights: one for each loss, at least 0; None: their defaults.

    Raises:
        ConfigError: the networks have no layers that one of the losses can compare.

    """

    def __init__(
        self, networks: Networks, names: Sequence[str], weights: Sequence[float] | None = None
    ) -> None:
        self.teacher, self.student = networks.teacher, networks.student
        self.parts = {name: LOSSES[name](networks) for name in names}
        self.weights = weights or [part.weight for part in self.parts.values()]
        self.connectors = nn.ModuleList(part.connectors for part in self.parts.values())

    def __call__(self, images: Tensor, logits: Tensor | None = None) -> Tensor:
        """Return the sum of all losses but those that initialize the student.

        Takes images (N, C, H, W) in the teacher's input space and, if known, its answer (N, K).
        """
        return self._sum(images, logits, before_relu=False)

    def initialize(self, images: Tensor) -> Tensor:
        """Return the sum of the losses that initialize the student, on (N, C, H, W)."""
        return self._sum(images, None, before_relu=True)

    def _sum(self, images: Tensor, logits: Tensor | None, *, before_relu: bool) -> Tensor:
        weighted = [
            (weight, part)
            for weight, part in zip(self.weights, self.parts.values(), strict=True)
            if part.before_relu == before_relu
        ]
        pairs = [pair for _, part in weighted for pair in part.pairs if not before_relu]
        layers = {ours: self.student.get_submodule(ours) for ours, _ in pairs}
        run = partial(self.teacher.run, self.student)
        student = observe(run, images, layers, relus=before_relu)
        if logits is None or pairs:
            layers = {theirs: self.teacher.module.get_submodule(theirs) for _, theirs in pairs}
            with torch.no_grad():
                teacher = observe(self.teacher, images, layers, relus=before_relu)
        else:
            teacher = Observation(logits)
        losses = (weight * part(student, teacher) for weight, part in weighted)
        return sum(losses, student.logits.new_zeros(()))
