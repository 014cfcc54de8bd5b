"""Open a teacher from a module or a file, freeze it, and say what it offers.

A teacher's file is a safetensors or weights-only state dict; a card beside it (the same name with
.json or .toml) says which factory builds the module and what input it takes.
"""

import hashlib
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dreamstill.config import Precision, from_plain
from dreamstill.errors import TeacherError, first_line
from dreamstill.input_spec import InputSpec
from dreamstill.nn.checks import (
    check_logits,
    check_steady,
    logits_of,
    obstacle_to_training,
    probing_images,
)
from dreamstill.nn.copying import copy_network, is_hooked, make_weights_plain
from dreamstill.nn.hooks import Probe, batch_norm_layers, eval_mode

__all__ = ["Capabilities", "Precision", "Teacher", "check_trainable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a teacher gives beside its logits."""

    gradient: bool
    """Logits can be differentiated with respect to the input."""
    batch_norm: tuple[str, ...]
    """Names of the BatchNorm layers with running statistics, in forward order."""
    last_linear: str | None
    """Name of the linear layer that makes the logits; its input is the penultimate feature."""
    num_features: int | None
    """Size of the penultimate feature."""
    obstacle: str | None = None
    """Why a copy of the network cannot be trained as it is; None: it can."""


class Teacher:
    """A copy of a network, frozen in eval mode and examined; it counts its queries.

    Weights that are computed before each pass, as by weight_norm or a mask, become plain ones in
    the copy: tasks change weights. One image shown is one query.

    Args:
        network: any network that maps (N, C, H, W) to (N, K) logits; left as it was.
        input_spec: its input.
        num_classes: K where it is known; checked. Read from the forward pass where it is None.
        device: where to put the copy, such as "cpu" or "cuda".
        precision: in which it and whatever it runs compute: float32 or bfloat16.
        role: what messages call it.
        factory: module:function that built it, for its fingerprint.

    Raises:
        TeacherError: a pass fails; the output is not finite (N, K) logits with K >= 2, or is
            probabilities; the answer for an image differs from one call to the next, or with the
            other images of its batch; the network cannot be copied.

    Examples:
        >>> import dreamstill as ds
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
        >>> teacher = ds.Teacher(network, ds.InputSpec((1, 8, 8), mean=(0.5,), std=(0.5,)))
        >>> teacher.num_classes
        4

    """

    def __init__(
        self,
        network: nn.Module,
        input_spec: InputSpec,
        *,
        num_classes: int | None = None,
        device: str = "cpu",
        precision: Precision | str = Precision.FLOAT32,
        role: str = "teacher",
        factory: str = "",
    ) -> None:
        if num_classes is not None and num_classes < 2:
            raise TeacherError(f"num_classes must be at least 2; got {num_classes}")
        self.precision: Precision = from_plain(Precision, precision, "precision")
        self.input_spec, self.factory, self.queries = input_spec, factory, 0
        self.class_names: tuple[str, ...] = ()
        self.source: Any = None  # the file that it was loaded from, for runs in a directory
        self._layouts: WeakKeyDictionary[nn.Module, torch.memory_format] = WeakKeyDictionary()
        cuda = [device] if device.startswith("cuda") else []
        with torch.random.fork_rng(devices=cuda):  # a network may draw from it, and is then refused
            module = copy_network(network).to(device, torch.get_default_dtype()).eval()
            inputs = input_spec.normalize(probing_images(input_spec.shape)).to(device)
            logits, last, probe = _first_answer(module, inputs, role)
            check_logits(module, inputs, logits, role, last)
            if num_classes is not None and logits.shape[1] != num_classes:
                raise TeacherError(f"the {role} has {logits.shape[1]} classes, not {num_classes}")
            check_steady(module, inputs, logits, role)
            make_weights_plain(module, inputs)
            self.module = module.requires_grad_(False)
            self.num_classes = int(logits.shape[1])
            self.capabilities = Capabilities(
                gradient=module(inputs.clone().requires_grad_()).requires_grad,
                batch_norm=tuple(n for n in probe.inputs if n in batch_norm_layers(module)),
                last_linear=last,
                num_features=probe.inputs[last].shape[1] if last is not None else None,
                obstacle=obstacle_to_training(module, inputs),
            )

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_spec.shape))
        name = type(self.module).__name__
        return f"Teacher({name}, {shape} -> {self.num_classes} classes, {self.fingerprint})"

    def __call__(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) in the input space -> (N, num_classes) logits; differentiable in inputs."""
        self.queries += len(inputs)
        return self.run(self.module, inputs)

    def run(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """What any network, say the student, puts out at the teacher's precision, as float32."""
        if self.precision is Precision.FLOAT32:
            output: Tensor = logits_of(network(inputs))
            return output
        if inputs.dim() == 4:  # a generator takes vectors
            inputs = inputs.contiguous(memory_format=self._layout(network, inputs))
        with torch.autocast(inputs.device.type, torch.bfloat16):
            output = logits_of(network(inputs))
        return output.float()

    def _layout(self, network: nn.Module, inputs: Tensor) -> torch.memory_format:
        """Channels last is the fast one, and not for networks that `view` what they are given."""
        if network not in self._layouts:
            shown = inputs[:2].detach().contiguous(memory_format=torch.channels_last)
            with (
                torch.no_grad(),
                eval_mode(network),
                torch.autocast(inputs.device.type, torch.bfloat16),
            ):
                try:
                    network(shown)
                    self._layouts[network] = torch.channels_last
                except RuntimeError:  # what else is wrong, the plain layout shows
                    self._layouts[network] = torch.contiguous_format
        return self._layouts[network]

    def with_features(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, num_classes) and penultimate features (N, num_features).

        Args:
            inputs: (N, C, H, W) in the input space.

        Raises:
            TeacherError: the logits do not come from a linear layer.

        """
        layer = self.last_linear
        with Probe({"last": layer}) as probe:
            logits = self(inputs)
        return logits, probe.inputs["last"]

    @property
    def last_linear(self) -> nn.Linear:
        """Return the layer that makes the logits; TeacherError where there is none."""
        if self.capabilities.last_linear is None:
            raise TeacherError("the teacher has no last linear layer, which this method needs")
        layer = self.module.get_submodule(self.capabilities.last_linear)
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def fingerprint(self) -> str:
        """Return the teacher's name in records: 16 hex digits of a SHA-256.

        It covers all that decides the answers: weights, factory, input and number of classes.
        """
        card = (
            self.factory,
            self.num_classes,
            self.input_spec.shape,
            self.input_spec.mean,
            self.input_spec.std,
        )
        return hashlib.sha256(f"{self.weights_digest} {card}".encode()).hexdigest()[:16]

    @property
    def weights_digest(self) -> str:
        """16 hex digits of the SHA-256 of the weights alone."""
        digest = hashlib.sha256()
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))


def check_trainable(network: nn.Module, spec: InputSpec, role: str = "network") -> None:
    """TeacherError where a network cannot be trained as it is, with what stands against it."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    inputs = spec.normalize(probing_images(spec.shape)).to(device)
    with eval_mode(network), torch.random.fork_rng(devices=[]):
        if obstacle := obstacle_to_training(network, inputs):
            raise TeacherError(f"the {role} cannot be trained: {obstacle}")


def _first_answer(module: nn.Module, inputs: Tensor, role: str) -> tuple[Any, str | None, Probe]:
    """Run a network for the first time: its answer, the linear layer that makes it, and a probe."""
    linears = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    shown = inputs.clone()
    with Probe({**linears, **batch_norm_layers(module)}) as probe, torch.no_grad():
        try:
            logits = module(shown)
        except Exception as error:  # the user's own code: anything can come out of it
            raise TeacherError(
                f"the {role} does not run on inputs of shape {tuple(inputs.shape[1:])}: "
                f"{first_line(error)}"
            ) from error
    if not torch.equal(shown, inputs):
        raise TeacherError(
            f"the {role} changes its input in place: write x = x - m in its forward, not x -= m"
        )
    return logits, _last_linear(linears, probe, logits), probe


@torch.no_grad()
def _last_linear(linears: dict[str, nn.Linear], probe: Probe, logits: Any) -> str | None:
    """The linear layer whose recorded input reproduces the logits exactly."""
    for name, layer in reversed(linears.items()):
        if name in probe.inputs and not is_hooked(layer):
            output = layer(probe.inputs[name])
            if isinstance(logits, Tensor) and torch.equal(output, logits):
                return name
    return None
