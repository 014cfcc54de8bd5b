"""Check and freeze a teacher, and determine its capabilities."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dreamstill.config import Precision, from_plain
from dreamstill.errors import ConfigError, TeacherError, first_line
from dreamstill.evaluation import device_of
from dreamstill.input_spec import InputSpec
from dreamstill.nn.checks import (
    check_steady,
    obstacle_to_training,
    probing_images,
)
from dreamstill.nn.copying import (
    copy_network,
    is_hooked,
    make_linear_plain,
    make_output_plain,
    make_weights_plain,
)
from dreamstill.nn.hooks import Probe, batch_norm_layers, eval_mode
from dreamstill.nn.padding import make_padding_plain
from dreamstill.nn.precision import gains_from_bfloat16
from dreamstill.output_spec import UNSEEN, OutputKind, OutputSpec, examined, logits_of

__all__ = ["Capabilities", "Precision", "Teacher", "check_device", "check_trainable"]


def check_device(name: str) -> str:
    """Return the name of a device; raise ConfigError if PyTorch has none of that name here."""
    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available: {first_line(error)}") from error
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Capabilities of a teacher beyond its outputs."""

    gradient: bool
    """Whether the logits can be differentiated with respect to the input."""
    batch_norm: tuple[str, ...]
    """Names of the BatchNorm layers with running statistics, in forward order."""
    last_linear: str | None
    """Name of the linear layer that computes the logits; its input is the penultimate feature."""
    num_features: int | None
    """Size of the penultimate feature."""
    classes: bool = True
    """Whether the outputs tell classes of images apart."""
    obstacle: str | None = None
    """Reason why a copy of the network cannot be trained; None if it can."""
    scores: bool = True
    """Whether the logits rank all classes; otherwise they name one, as labels do."""
    budget: int | None = None
    """Most images that it may be asked about; None: it can be asked at will."""


class Teacher:
    """Frozen copy of a network in eval mode that counts its queries: one per image.

    Weights that are computed before each pass, as by weight_norm or a mask, become plain
    parameters in the copy, so that tasks can change them; a subclass of nn.Linear that does the
    same, or of nn.Conv2d that pads by itself, becomes a plain one.

    Args:
        network: maps (N, C, H, W) to logits (N, K) or (N, K, H, W); not changed.
        input_spec: shape and normalization of the input.
        num_classes: K, to be checked; None reads it from the forward pass.
        outputs: what the outputs say: classes, labels, values or dense (see `OutputKind`). Default:
            classes, those of pixels where the outputs are (N, K, H, W).
        device: device of the copy, such as "cpu" or "cuda".
        precision: float32, bfloat16, or auto for the faster one, for this network and all that it
            runs.
        role: name of the network in messages.
        factory: module:function that built the network, for the fingerprint.

    Raises:
        ConfigError: the device is not available, or the precision or the outputs are unknown.
        TeacherError: the network cannot be copied or does not run; its output is not finite
            logits (N, K) with K >= 2, or is probabilities; or the output for an image changes
            between calls or with the other images of the batch.

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
        outputs: OutputKind | str | None = None,
        device: str = "cpu",
        precision: Precision | str = Precision.AUTO,
        role: str = "teacher",
        factory: str = "",
    ) -> None:
        kind: OutputKind | None = from_plain(OutputKind | None, outputs, "outputs")
        if num_classes is not None:
            OutputSpec(num_classes, kind=kind or OutputKind.CLASSES)  # raises
        self.precision: Precision = from_plain(Precision, precision, "precision")
        check_device(device)
        self.input_spec, self.factory, self.queries = input_spec, factory, 0
        self.source: Any = None  # the file that it was loaded from, for run directories
        self._layouts: WeakKeyDictionary[nn.Module, torch.memory_format] = WeakKeyDictionary()
        cuda = [device] if device.startswith("cuda") else []
        with torch.random.fork_rng(devices=cuda):  # a network that draws from it is refused
            module = copy_network(network).to(device, torch.get_default_dtype()).eval()
            inputs = input_spec.normalize(probing_images(input_spec.shape)).to(device)
            logits, last, probe = _first_answer(module, inputs, role)
            if isinstance(logits, Mapping):
                make_output_plain(module, inputs)
                logits, last, probe = _first_answer(module, inputs, role)
            self.output_spec = examined(module, inputs, logits, role, last, kind)
            if num_classes not in (None, self.num_classes):
                raise TeacherError(f"the {role} has {self.num_classes} classes, not {num_classes}")
            check_steady(module, inputs, logits, role)
            make_weights_plain(module, inputs)
            make_linear_plain(module, inputs)
            make_padding_plain(module, inputs)
            if self.precision is Precision.AUTO:
                faster = gains_from_bfloat16(module, inputs)
                self.precision = Precision.BFLOAT16 if faster else Precision.FLOAT32
            self.module = module.requires_grad_(False)
            self.capabilities = Capabilities(
                gradient=module(inputs.clone().requires_grad_()).requires_grad,
                batch_norm=tuple(n for n in probe.inputs if n in batch_norm_layers(module)),
                last_linear=last,
                num_features=probe.inputs[last].shape[1] if last is not None else None,
                obstacle=obstacle_to_training(module, inputs),
                classes=self.output_kind is OutputKind.CLASSES,
            )

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_spec.shape))
        name = type(self.module).__name__
        what = "pixel classes" if self.output_spec.size else self.output_kind
        return f"Teacher({name}, {shape} -> {self.num_classes} {what}, {self.fingerprint})"

    @property
    def num_classes(self) -> int:
        """Number of classes, labels or values, K."""
        return self.output_spec.num_classes

    @property
    def output_kind(self) -> OutputKind:
        """Meaning of the outputs."""
        return self.output_spec.kind

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or none."""
        return self.output_spec.class_names

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K), dense ones (N, K, H, W), for inputs (N, C, H, W).

        They are differentiable in the inputs.
        """
        self.queries += len(inputs)
        return self.run(self.module, inputs)

    def run(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Run any network, such as the student, at the teacher's precision; return float32."""
        if self.precision is Precision.FLOAT32:
            output: Tensor = logits_of(network(inputs))
            return output
        if inputs.dim() == 4:  # a generator takes vectors
            inputs = inputs.contiguous(memory_format=self._layout(network, inputs))
        with torch.autocast(inputs.device.type, torch.bfloat16):
            output = logits_of(network(inputs))
        return output.float()

    def _layout(self, network: nn.Module, inputs: Tensor) -> torch.memory_format:
        """Return channels_last, which is faster, unless the network fails on it, as with `view`."""
        if network not in self._layouts:
            shown = inputs[:2].detach().contiguous(memory_format=torch.channels_last)
            with (
                torch.no_grad(),
                torch._C.DisableTorchFunction(),  # a mode that records calls is not to see this
                eval_mode(network),
                torch.autocast(inputs.device.type, torch.bfloat16),
            ):
                try:
                    network(shown)
                    self._layouts[network] = torch.channels_last
                except RuntimeError:  # another cause is raised again in the plain layout
                    self._layouts[network] = torch.contiguous_format
        return self._layouts[network]

    def with_features(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, num_classes) and penultimate features (N, num_features).

        Raises TeacherError if there is no last linear layer.
        """
        layer = self.last_linear
        with Probe({"last": layer}) as probe:
            logits = self(inputs)
        return logits, probe.inputs["last"]

    @property
    def last_linear(self) -> nn.Linear:
        """Linear layer that computes the logits; raises TeacherError if there is none."""
        if self.capabilities.last_linear is None:
            raise TeacherError("the teacher has no last linear layer, which this method needs")
        layer = self.module.get_submodule(self.capabilities.last_linear)
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of weights, factory, input spec and outputs."""
        card = (
            self.factory,
            self.num_classes,
            self.input_spec.shape,
            self.input_spec.mean,
            self.input_spec.std,
            *((self.output_kind,) if self.output_kind in UNSEEN else ()),
        )
        return hashlib.sha256(f"{self.weights_digest} {card}".encode()).hexdigest()[:16]

    @property
    def weights_digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the weights alone."""
        digest = hashlib.sha256()
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return device_of(self.module)


def check_trainable(network: nn.Module, spec: InputSpec, role: str = "network") -> None:
    """Raise TeacherError, with the reason, if a network cannot be trained."""
    inputs = spec.normalize(probing_images(spec.shape)).to(device_of(network))
    with eval_mode(network), torch.random.fork_rng(devices=[]):
        if obstacle := obstacle_to_training(network, inputs):
            raise TeacherError(f"the {role} cannot be trained: {obstacle}")


def _first_answer(module: nn.Module, inputs: Tensor, role: str) -> tuple[Any, str | None, Probe]:
    """Return a network's first output, the name of its last linear layer, and the probe."""
    linears = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    shown = inputs.clone()
    with Probe({**linears, **batch_norm_layers(module)}) as probe, torch.no_grad():
        try:
            logits = module(shown)
        except Exception as error:  # the user's own code can raise anything
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
    """Return the name of the linear layer whose recorded input reproduces the logits exactly."""
    for name, layer in reversed(linears.items()):
        if name in probe.inputs and not is_hooked(layer):
            try:
                output = layer(probe.inputs[name])
            except TypeError:  # of a class of its own, with more arguments
                continue
            if all(isinstance(x, Tensor) for x in (output, logits)) and torch.equal(output, logits):
                return name
    return None
