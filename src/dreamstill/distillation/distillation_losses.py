"""Transfer: what the student pays for differing from the teacher, in logits and in features."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.distillation.config import LossName
from dreamstill.errors import ConfigError
from dreamstill.losses import features as feature_losses
from dreamstill.losses import logits as logit_losses
from dreamstill.nn.hooks import Probe, ReluInputs, eval_mode
from dreamstill.nn.quantized import QuantizedLayer
from dreamstill.nn.seeded import seeded
from dreamstill.teacher import Teacher

__all__ = ["DistillationLoss"]

ON_LOGITS: dict[LossName, Callable[[Tensor, Tensor, float], Tensor]] = {
    LossName.KL: logit_losses.kl_divergence,
    LossName.REVERSE_KL: logit_losses.reverse_kl,
    LossName.JS: logit_losses.js_divergence,
    LossName.MSE: logit_losses.mse,
    LossName.L1: logit_losses.l1,
}
ON_MAPS = (LossName.ATTENTION, LossName.BOUNDARY, LossName.MIMIC)
WEIGHTS = {
    LossName.ATTENTION: 250.0,  # ZSKT
    LossName.BOUNDARY: 3e-3,
    LossName.SIMILARITY: 3000.0,
}
"""The papers' weights, where they are not 1; that of `layers` and `mimic` is ours."""
DISTANCE, ANGLE = 25.0, 50.0
"""RKD's, within `relational`."""


def shared_layers(
    student: Probe, teacher: Probe, module: nn.Module, kept: Mapping[str, Tensor]
) -> dict[str, tuple[int, Tensor]]:
    """Layers and blocks of the teacher's `module` that the student has: on which axis are which
    of its channels.

    Of a layer and the BatchNorm behind it the BatchNorm alone. A block has the channels of the last
    layer in it, where it has as many. ConfigError where no more than the answer is shared.
    """
    modules = dict(module.named_modules())
    kinds = (nn.Conv2d, nn.Linear, _BatchNorm)
    layers = [name for name in teacher.outputs if isinstance(modules[name], kinds)]
    normed = {id(teacher.inputs[name]) for name in layers if isinstance(modules[name], _BatchNorm)}
    last = {name: name for name in layers if id(teacher.outputs[name]) not in normed}
    for name in teacher.outputs.keys() - layers - {""}:
        within = [layer for layer in layers if layer.startswith(f"{name}.")]
        if within and not isinstance(modules[name], nn.Sequential):  # whose last part says the same
            last[name] = within[-1]
    shared = {}
    for name in (name for name in teacher.outputs if name in last):
        ours, wanted = student.outputs.get(name), teacher.outputs[name]
        if not isinstance(ours, Tensor) or not isinstance(wanted, Tensor):
            continue
        axis = -1 if isinstance(modules[last[name]], nn.Linear) else 1
        channels = torch.arange(wanted.shape[axis], device=wanted.device)
        if teacher.outputs[last[name]].shape[axis] == len(channels):
            channels = kept.get(last[name], channels).to(wanted.device)
        if ours.shape == wanted.index_select(axis, channels).shape:
            shared[name] = axis, channels
    if len(shared) < min(2, len(last)):
        raise ConfigError(
            "the loss layers needs a student that was made from its teacher; of "
            f"{len(last)} layers {len(shared)} can be compared"
        )
    return shared


def last_maps(outputs: Mapping[str, Any]) -> dict[tuple[int, int], str]:
    """The last to come at each resolution (H, W): its name."""
    return {
        (output.shape[2], output.shape[3]): name
        for name, output in outputs.items()
        if isinstance(output, Tensor) and output.ndim == 4
    }


def _layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every module by name, but those that make a weight: what they put out is no map."""
    return {
        name: part
        for name, part in module.named_modules()
        if "parametrizations" not in name.split(".")
    }


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module.layer if isinstance(module, QuantizedLayer) else module, nn.Linear)


class DistillationLoss:
    """The sum of the chosen losses; holds the connectors that some of them learn.

    Maps are compared where student and teacher share a resolution: `attention` and `mimic` on what
    leaves the last layer or block there, `boundary` on what enters the last ReLU, through a
    connector where the channels differ.
    `relational` and `similarity` compare the penultimate features.
    `layers` compares every layer and block channel by channel, where the student was made from the
    teacher.

    Args:
        teacher, student: both run once, to see their layers.
        names: what to sum.
        weights: one for each name; None: the papers'.
        temperature: of the losses on logits.
        rng: initializes the connectors.
        kept: by layer, which of the teacher's outputs the student has; all where it is absent.

    Raises:
        ConfigError: the two networks share no resolution or no layer, or one has no last linear
            layer.

    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        names: tuple[LossName, ...],
        *,
        weights: tuple[float, ...] | None,
        temperature: float,
        rng: torch.Generator,
        kept: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.teacher, self.student, self.temperature = teacher, student, temperature
        self.kept = dict(kept or {})
        self.weights = dict(
            zip(names, weights or (WEIGHTS.get(n, 1.0) for n in names), strict=True)
        )
        self.connectors = nn.ModuleDict()
        self.pairs: dict[LossName, list[tuple[str, str]]] = {}
        self.watched: tuple[dict[str, nn.Module], dict[str, nn.Module]] = ({}, {})
        if any(name not in ON_LOGITS for name in names):
            with torch.no_grad():
                self._pair(rng)

    def _pair(self, rng: torch.Generator) -> None:
        """Choose what to compare and make the connectors between them."""
        seen, entered = [], []
        inputs = torch.zeros(2, *self.teacher.input_spec.shape, device=self.teacher.device)
        for module in (self.student, self.teacher.module):
            with (
                eval_mode(module),
                Probe(_layers(module)) as probe,
                ReluInputs() as relus,
            ):
                module(inputs)
            seen.append(probe)
            entered.append(relus)
        for name in self.weights:
            if name is LossName.BOUNDARY:
                student, teacher = (relus.inputs for relus in entered)
            elif name in ON_LOGITS:
                continue
            else:
                student, teacher = (probe.outputs for probe in seen)
            self.pairs[name] = self._pairs_of(name, student, teacher, seen)
            for ours, wanted in self.pairs[name]:
                if name in (LossName.BOUNDARY, LossName.MIMIC):
                    channels = (student[ours].shape[1], teacher[wanted].shape[1])
                    if name is LossName.MIMIC or channels[0] != channels[1]:
                        self._connect(name, ours, channels, rng)
                if name is not LossName.BOUNDARY:
                    self.watched[0][ours] = self.student.get_submodule(ours)
                    self.watched[1][wanted] = self.teacher.module.get_submodule(wanted)

    def _pairs_of(
        self,
        name: LossName,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        probes: list[Probe],
    ) -> list[tuple[str, str]]:
        if name is LossName.LAYERS:
            of = self.teacher.module
            self.shared = shared_layers(probes[0], probes[1], of, self.kept)
            return [(layer, layer) for layer in self.shared]
        if name not in ON_MAPS:
            last = [
                [n for n in outputs if _is_linear(module.get_submodule(n))]
                for outputs, module in ((student, self.student), (teacher, self.teacher.module))
            ]
            if not all(last):
                raise ConfigError(f"the loss {name.value} needs a linear layer in both networks")
            return [(last[0][-1], last[1][-1])]
        student_maps, teacher_maps = last_maps(student), last_maps(teacher)
        shared = [size for size in student_maps if size in teacher_maps]
        if not shared:
            entering = " that enter a ReLU" if name is LossName.BOUNDARY else ""
            raise ConfigError(
                f"the loss {name.value} needs feature maps of one size{entering} in both networks; "
                f"the student has {list(student_maps)}, the teacher {list(teacher_maps)}"
            )
        return [(student_maps[size], teacher_maps[size]) for size in shared]

    def _connect(
        self, name: LossName, layer: str, channels: tuple[int, int], rng: torch.Generator
    ) -> None:
        with seeded(rng):
            layers: list[nn.Module] = [nn.Conv2d(*channels, 1, bias=name is LossName.MIMIC)]
            if name is LossName.BOUNDARY:
                nn.init.kaiming_normal_(layers[0].get_parameter("weight"), mode="fan_out")
                layers.append(nn.BatchNorm2d(channels[1]))
        self.connectors[self._key(name, layer)] = nn.Sequential(*layers).to(self.teacher.device)

    def _connected(self, name: LossName, layer: str, maps: Tensor) -> Tensor:
        """The student's maps with the teacher's channels."""
        key = self._key(name, layer)
        connected: Tensor = self.connectors[key](maps) if key in self.connectors else maps
        return connected

    @staticmethod
    def _key(name: LossName, layer: str) -> str:
        return f"{name.value}:{layer}".replace(".", "/")

    def initialize(self, images: Tensor) -> Tensor:
        """The weighted `boundary` alone on (N, C, H, W) in the teacher's input space.

        It initializes the student, in a stage of its own.
        """
        with ReluInputs() as student:
            self.teacher.run(self.student, images)
        with torch.no_grad(), ReluInputs() as teacher:
            self.teacher(images)
        total = images.new_zeros(())
        for depth, (mine, theirs) in enumerate(reversed(self.pairs[LossName.BOUNDARY])):
            ours = self._connected(LossName.BOUNDARY, mine, student.inputs[mine])
            loss = feature_losses.activation_boundary(ours, teacher.inputs[theirs])
            total = total + loss / 2**depth  # the paper weights layers 1, 1/2, 1/4 from the top
        return self.weights[LossName.BOUNDARY] * total

    def __call__(self, images: Tensor, logits: Tensor | None = None) -> Tensor:
        """The weighted sum of all but `boundary` on a batch.

        Args:
            images: (N, C, H, W) in the teacher's input space.
            logits: the teacher's answer (N, K), if it was asked already.

        """
        names = [name for name in self.weights if name is not LossName.BOUNDARY]
        student, teacher = (Probe(layers, copy=True) for layers in self.watched)
        with student:
            output = self.teacher.run(self.student, images)
        if logits is None or any(name not in ON_LOGITS for name in names):
            with torch.no_grad(), teacher:
                logits = self.teacher(images)
        total: Tensor = output.new_zeros(())
        for name in names:
            if name in ON_LOGITS:
                loss = ON_LOGITS[name](output, logits, self.temperature)
            else:
                loss = self._on_features(name, student, teacher)
            total = total + self.weights[name] * loss
        return total

    def _on_features(self, name: LossName, student: Probe, teacher: Probe) -> Tensor:
        total = next(iter(student.outputs.values())).new_zeros(())
        for mine, theirs in self.pairs[name]:
            ours, wanted = student.outputs[mine], teacher.outputs[theirs]
            if name is LossName.LAYERS:
                error = feature_losses.layer_error(ours, wanted.index_select(*self.shared[theirs]))
                total = total + error / len(self.pairs[name])
            elif name is LossName.ATTENTION:
                total = total + feature_losses.attention(ours, wanted)
            elif name is LossName.MIMIC:
                ours = self._connected(name, mine, ours)
                total = total + feature_losses.mimic(ours, wanted)
            else:
                ours, wanted = student.inputs[mine], teacher.inputs[theirs]
                if name is LossName.SIMILARITY:
                    total = feature_losses.similarity_preserving(ours, wanted)
                else:
                    total = DISTANCE * feature_losses.relational_distance(ours, wanted)
                    total = total + ANGLE * feature_losses.relational_angle(ours, wanted)
        return total
