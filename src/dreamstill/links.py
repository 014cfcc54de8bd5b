"""The links of a chain: one task on one network each, with its settings."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.errors import SettingsError
from dreamstill.run import RANDOM_START, open_student
from dreamstill.settings import no_effect, none_or_at_least, to_plain
from dreamstill.sources import OnProgress
from dreamstill.tasks.distill import DistillSettings
from dreamstill.tasks.factorize import FactorizeSettings, factorize
from dreamstill.tasks.finetune import finetune
from dreamstill.tasks.graph import map_modules
from dreamstill.tasks.inherit import inherit
from dreamstill.tasks.int8 import Backend, Method, check_int8_formats, export_int8
from dreamstill.tasks.merge import MergeSettings, merge
from dreamstill.tasks.pack import PackSettings, pack, weights_of
from dreamstill.tasks.packed import load_packed, save_packed
from dreamstill.tasks.prune import PruneSettings, library, prune
from dreamstill.tasks.quantize import (
    QuantizeSettings,
    check_without_inputs,
    quantize,
    quantize_without_inputs,
)
from dreamstill.tasks.quantized import QuantizedLayer, check_plain, quantized_bytes
from dreamstill.teacher import InputSpec, Teacher, open_teacher

__all__ = ["TASKS", "Work"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillLink:
    """Settings of a distillation on the images."""

    student: str
    """module:function that builds the student."""
    inherit: bool = False
    """Start the student, a narrower copy of the teacher, from the teacher's channels."""
    reconstruct: int = 2048
    """Images on which the layers of a student that inherits are solved, by least squares, for
    what they make in the teacher, before the first step; at least 2, or 0: it starts as it was
    cut."""
    training: DistillSettings = field(default_factory=DistillSettings)
    """The training; its images are the chain's."""

    def __post_init__(self) -> None:
        none_or_at_least(self, 2, "reconstruct")
        if not self.inherit:
            no_effect(self, "without inherit", "reconstruct")
        if self.training.steps == 0 and not self.inherit:
            raise SettingsError(RANDOM_START)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneLink(PruneSettings):
    """Settings of pruning, where its library is installed."""

    def __post_init__(self) -> None:
        PruneSettings.__post_init__(self)  # slots and super() do not go together
        library()


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeLink(MergeSettings):
    """Settings of merging, and of fine-tuning after it."""

    finetune: DistillSettings | None = None
    """Fine-tuning on the images; none: no step is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorizeLink(FactorizeSettings):
    """Settings of factorization, and of fine-tuning after it."""

    finetune: DistillSettings | None = None
    """Fine-tuning on the images; none: no step is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeLink(QuantizeSettings):
    """Settings of simulated quantization."""

    without_inputs: bool = False
    """DFQ: no image is looked at."""

    def __post_init__(self) -> None:
        QuantizeSettings.__post_init__(self)  # slots and super() do not go together
        if self.without_inputs:
            check_without_inputs(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Link:
    """Settings of static int8 files."""

    formats: tuple[str, ...] = ("onnx",)
    """onnx, for onnxruntime; pt2, by torchao; pte, for ExecuTorch."""
    method: Method | None = None
    """How ranges are read off the images: MinMax, Percentile (99.999 %) or Entropy, the least
    divergence from what is rounded; none: the library's own, MinMax in onnxruntime and the least
    squared error in torchao."""
    backend: Backend = Backend.X86
    """For which kernels a pt2 is quantized: x86 or xnnpack."""

    def __post_init__(self) -> None:
        if not self.formats:
            raise SettingsError("formats must name at least one; got none")
        check_int8_formats(self.formats)
        if len(set(self.formats)) < len(self.formats):
            raise SettingsError(f"formats names one twice: {', '.join(self.formats)}")
        if "pt2" not in self.formats:
            no_effect(self, "on formats without pt2", "backend")


@dataclass
class Work:
    """What every link is given."""

    teacher: Teacher
    images: Tensor
    rng: torch.Generator
    on_progress: OnProgress
    stem: Path
    """Where the link's files go, less their suffix."""

    def tune(self, model: nn.Module, settings: DistillSettings | None) -> nn.Module:
        """Fine-tune towards the teacher, if asked."""
        if settings is None:
            return model
        tuned = finetune(
            self.teacher,
            model.requires_grad_(True),
            self.images,
            settings,
            rng=self.rng,
            on_progress=self.on_progress,
        )
        return tuned.requires_grad_(False)


Outcome = tuple[nn.Module, dict[str, Any]]


def _distill(model: nn.Module, settings: DistillLink, work: Work) -> Outcome:
    student = open_student(settings.student, work.teacher, work.rng)
    kept = inherit(work.teacher.module, student) if settings.inherit else None
    student = finetune(
        work.teacher,
        student,
        work.images,
        settings.training,
        rng=work.rng,
        inherited=kept,
        reconstruct=settings.reconstruct,
        on_progress=work.on_progress,
    )
    return student.requires_grad_(False), {}


def _prune(model: nn.Module, settings: PruneLink, work: Work) -> Outcome:
    pruned, rounds = prune(
        work.teacher, work.images, settings, rng=work.rng, model=model, on_progress=work.on_progress
    )
    return pruned, {"rounds": [asdict(record) for record in rounds]}


def _merge(model: nn.Module, settings: MergeLink, work: Work) -> Outcome:
    merged, layers = merge(model, work.teacher.spec, settings, work.images, rng=work.rng)
    record = {"layers": [asdict(record) for record in layers]}
    return work.tune(merged, settings.finetune), record


def _factorize(model: nn.Module, settings: FactorizeLink, work: Work) -> Outcome:
    factorized, layers = factorize(model, work.teacher.spec, settings, work.images, rng=work.rng)
    record = {"layers": [asdict(record) for record in layers]}
    return work.tune(factorized, settings.finetune), record


def _quantize(model: nn.Module, settings: QuantizeLink, work: Work) -> Outcome:
    if settings.without_inputs:
        whole = open_teacher(model, work.teacher.spec)
        quantized = quantize_without_inputs(whole, settings)
    else:
        quantized = quantize(
            work.teacher,
            work.images,
            settings,
            rng=work.rng,
            model=model,
            on_progress=work.on_progress,
        )
    layers = {n: m for n, m in quantized.named_modules() if isinstance(m, QuantizedLayer)}
    bits = {
        name: {"weight_bits": layer.weight_bits, "activation_bits": layer.activation_bits}
        for name, layer in layers.items()
    }
    record = {"layers": bits, "bytes": quantized_bytes(quantized)}
    return quantized, record | _left_whole(quantized, layers.values())


def _left_whole(model: nn.Module, changed: Iterable[nn.Module]) -> dict[str, list[str]]:
    """Names of the matrices and kernels that are in none of the changed layers, as a record."""
    done = {id(value) for layer in changed for value in layer.parameters()}
    names = [n for n, p in model.named_parameters() if p.ndim > 1 and id(p) not in done]
    return {"left_whole": names} if names else {}


def _on_grids(model: nn.Module) -> nn.Module:
    """A network whose quantized layers are plain ones again, their weights left on their grids.

    For files whose inputs are quantized by their runtime, or not at all.
    """

    def change(name: str, module: nn.Module) -> nn.Module | None:
        return module.plain() if isinstance(module, QuantizedLayer) else None

    return map_modules(copy.deepcopy(model), change)


def _plain(model: nn.Module, spec: InputSpec) -> nn.Module:
    """`_on_grids`, compared with the network as it was."""
    plain = _on_grids(model)
    check_plain(model, plain, spec)
    return plain


def _int8(model: nn.Module, settings: Int8Link, work: Work) -> Outcome:
    model = _plain(model, work.teacher.spec)
    records = [
        export_int8(
            model,
            work.teacher.spec,
            work.images,
            work.stem.with_suffix(f".int8.{kind}"),
            method=settings.method,
            backend=settings.backend,
        )
        for kind in settings.formats
    ]
    return model, {"files": [asdict(r) for r in records], "bytes": records[0].bytes}


def _pack(model: nn.Module, settings: PackSettings, work: Work) -> Outcome:
    model = _plain(model, work.teacher.spec)
    packed = pack(
        work.teacher,
        work.images,
        settings,
        rng=work.rng,
        model=model,
        on_progress=work.on_progress,
    )
    path = work.stem.with_suffix(".packed")
    size = save_packed(packed, path, card=to_plain(work.teacher.spec))
    plain = copy.deepcopy(model)
    plain.load_state_dict(load_packed(path)[0])
    record = {"files": [{"path": str(path), "bytes": size}], "bytes": size}
    return plain, record | _left_whole(plain, weights_of(plain).values())


TASKS: dict[str, tuple[type, Callable[[nn.Module, Any, Work], Outcome]]] = {
    "distill": (DistillLink, _distill),
    "prune": (PruneLink, _prune),
    "merge": (MergeLink, _merge),
    "factorize": (FactorizeLink, _factorize),
    "quantize": (QuantizeLink, _quantize),
    "int8": (Int8Link, _int8),
    "pack": (PackSettings, _pack),
}
