"""The stages of a chain: one task on one network each, with its settings."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.compression.channel_removal import library
from dreamstill.compression.deep_compression.file_format import load_packed, save_packed
from dreamstill.compression.deep_compression.pack import PackConfig, pack, weights_of
from dreamstill.compression.factorization.factorize import FactorizeConfig, factorize
from dreamstill.compression.merge import MergeConfig, check_mergeable, merge
from dreamstill.compression.prune import PruneConfig, check_importance, check_prunable, prune
from dreamstill.compression.quantization.quantize import (
    QuantizeConfig,
    check_plain,
    check_without_inputs,
    quantize,
    quantize_without_inputs,
)
from dreamstill.config import config_class, no_effect, none_or_at_least, to_plain
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.finetune import finetune
from dreamstill.distillation.weight_inheritance import inherit
from dreamstill.errors import ConfigError
from dreamstill.exporters.formats import on_cpu
from dreamstill.exporters.int8 import (
    Backend,
    Method,
    check_int8_formats,
    check_int8_layers,
    export_int8,
)
from dreamstill.graph.batch_norm_folding import fold_batch_norm
from dreamstill.graph.modules import map_modules
from dreamstill.input_spec import InputSpec
from dreamstill.nn.copying import copy_network
from dreamstill.nn.quantized import QuantizedLayer, quantized_bytes
from dreamstill.pipelines.distill import RANDOM_START, open_student
from dreamstill.pipelines.synthesize import OnProgress
from dreamstill.progress import Progress, start_kept
from dreamstill.teacher import Teacher, check_trainable, open_teacher

__all__ = ["STAGES", "StageContext", "check_stages", "looks_at_images"]


@config_class
class DistillStage:
    """Settings of a distillation on the images."""

    student: str
    """module:function that builds the student."""
    inherit: bool = False
    """Start the student, a narrower copy of the teacher, from the teacher's channels."""
    reconstruct: int = 2048
    """Images on which the layers of a student that inherits are solved, by least squares, for
    what they make in the teacher, before the first step; at least 2, or 0: it starts as it was
    cut."""
    training: DistillConfig = field(default_factory=DistillConfig)
    """The training; its images are the chain's."""

    def __post_init__(self) -> None:
        none_or_at_least(self, 2, "reconstruct")
        if not self.inherit:
            no_effect(self, "without inherit", "reconstruct")
        if self.training.steps == 0 and not self.inherit:
            raise ConfigError(RANDOM_START)


@config_class
class PruneStage(PruneConfig):
    """Settings of pruning, where its library is installed."""

    def __post_init__(self) -> None:
        PruneConfig.__post_init__(self)  # slots and super() do not go together
        library()


@config_class
class MergeStage(MergeConfig):
    """Settings of merging, and of fine-tuning after it."""

    finetune: DistillConfig | None = None
    """Fine-tuning on the images; none: no step is taken."""


@config_class
class FactorizeStage(FactorizeConfig):
    """Settings of factorization, and of fine-tuning after it."""

    finetune: DistillConfig | None = None
    """Fine-tuning on the images; none: no step is taken."""


@config_class
class QuantizeStage(QuantizeConfig):
    """Settings of simulated quantization."""

    without_inputs: bool = False
    """DFQ: no image is looked at."""

    def __post_init__(self) -> None:
        QuantizeConfig.__post_init__(self)  # slots and super() do not go together
        if self.without_inputs:
            check_without_inputs(self)


@config_class
class Int8Stage:
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
            raise ConfigError("formats must name at least one; got none")
        check_int8_formats(self.formats)
        if len(set(self.formats)) < len(self.formats):
            raise ConfigError(f"formats names one twice: {', '.join(self.formats)}")
        if "pt2" not in self.formats:
            no_effect(self, "on formats without pt2", "backend")


@dataclass
class StageContext:
    """What every stage is given."""

    teacher: Teacher
    images: Tensor
    rng: torch.Generator
    on_progress: OnProgress
    stem: Path
    """Where the stage's files go, less their suffix."""
    warnings: list[str] = field(default_factory=list)
    """Of training that was in vain."""

    def progressed(self, progress: Progress) -> None:
        """Note what the record is to say of a training, and pass it on."""
        if progress.record.get("chosen_at_step") == 0:
            self.warnings.append(start_kept(progress.total))
        self.on_progress(progress)

    def tune(self, model: nn.Module, config: DistillConfig | None) -> nn.Module:
        """Fine-tune towards the teacher, if asked."""
        if config is None:
            return model
        tuned = finetune(
            self.teacher,
            model.requires_grad_(True),
            self.images,
            config,
            rng=self.rng,
            on_progress=self.progressed,
        )
        return tuned.requires_grad_(False)


Outcome = tuple[nn.Module, dict[str, Any]]


def _distill(model: nn.Module, config: DistillStage, work: StageContext) -> Outcome:
    student = open_student(config.student, work.teacher, work.rng)
    kept = inherit(work.teacher.module, student) if config.inherit else None
    student = finetune(
        work.teacher,
        student,
        work.images,
        config.training,
        rng=work.rng,
        inherited=kept,
        reconstruct=config.reconstruct,
        pretrained=config.inherit,
        on_progress=work.progressed,
    )
    return student.requires_grad_(False), {}


def _prune(model: nn.Module, config: PruneStage, work: StageContext) -> Outcome:
    pruned, rounds = prune(
        work.teacher, work.images, config, rng=work.rng, model=model, on_progress=work.progressed
    )
    record: dict[str, Any] = {"rounds": [asdict(record) for record in rounds]}
    if whole := rounds[-1].left_whole:
        record["left_whole"] = list(whole)
    return pruned, record


def _merge(model: nn.Module, config: MergeStage, work: StageContext) -> Outcome:
    merged, layers = merge(model, work.teacher.spec, config, work.images, rng=work.rng)
    record = {"layers": [asdict(record) for record in layers]}
    return work.tune(merged, config.finetune), record


def _factorize(model: nn.Module, config: FactorizeStage, work: StageContext) -> Outcome:
    factorized, layers = factorize(model, work.teacher.spec, config, work.images, rng=work.rng)
    record = {"layers": [asdict(record) for record in layers]}
    return work.tune(factorized, config.finetune), record


def _quantize(model: nn.Module, config: QuantizeStage, work: StageContext) -> Outcome:
    if config.without_inputs:
        whole = open_teacher(on_cpu(model), work.teacher.spec)
        quantized = quantize_without_inputs(whole, config).to(work.teacher.device)
    else:
        quantized = quantize(
            work.teacher,
            work.images,
            config,
            rng=work.rng,
            model=model,
            on_progress=work.progressed,
        )
    layers = {n: m for n, m in quantized.named_modules() if isinstance(m, QuantizedLayer)}
    bits = {
        name: {"weight_bits": layer.weight_bits, "activation_bits": layer.activation_bits}
        for name, layer in layers.items()
    }
    record = {"layers": bits, "weight_bytes": quantized_bytes(quantized)}
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

    return map_modules(copy_network(model), change)


def _plain(model: nn.Module, spec: InputSpec) -> nn.Module:
    """`_on_grids`, compared with the network as it was."""
    plain = _on_grids(model)
    check_plain(model, plain, spec)
    return plain


def _int8(model: nn.Module, config: Int8Stage, work: StageContext) -> Outcome:
    model = _plain(model, work.teacher.spec)
    records = [
        export_int8(
            model,
            work.teacher.spec,
            work.images,
            work.stem.with_suffix(f".int8.{kind}"),
            method=config.method,
            backend=config.backend,
        )
        for kind in config.formats
    ]
    return model, {"files": [asdict(r) for r in records]}


def _pack(model: nn.Module, config: PackConfig, work: StageContext) -> Outcome:
    model = _plain(model, work.teacher.spec)
    packed = pack(
        work.teacher,
        work.images,
        config,
        rng=work.rng,
        model=model,
        on_progress=work.progressed,
    )
    path = work.stem.with_suffix(".packed")
    size = save_packed(packed, path, card=to_plain(work.teacher.spec))
    plain = copy_network(model)
    plain.load_state_dict(load_packed(path)[0])
    record = {"files": [{"path": str(path), "bytes": size}]}
    return plain, record | _left_whole(plain, weights_of(plain).values())


def looks_at_images(task: str, config: Any) -> bool:
    """A task does not, with these settings, work from the weights alone."""
    if task == "quantize":
        return not config.without_inputs
    if task in ("merge", "factorize"):
        read = config.reconstruct, getattr(config, "responses", 0), config.finetune
        return any(read)
    return True


STAGES: dict[str, tuple[type, Callable[[nn.Module, Any, StageContext], Outcome]]] = {
    "distill": (DistillStage, _distill),
    "prune": (PruneStage, _prune),
    "merge": (MergeStage, _merge),
    "factorize": (FactorizeStage, _factorize),
    "quantize": (QuantizeStage, _quantize),
    "int8": (Int8Stage, _int8),
    "pack": (PackConfig, _pack),
}


def check_stages(stages: Sequence[Any], model: nn.Module, teacher: Teacher) -> None:
    """See that stages can do what they are asked, before any image is made for them.

    Args:
        stages: with a task and its settings each.
        model: the network that the first stage after a distillation is given.
        teacher: of the chain.

    Raises:
        ConfigError, TeacherError, ExportError: what the first stage that cannot would raise.

    """
    untouched = True
    for stage in stages:
        parts = (getattr(stage.config, part.name) for part in fields(stage.config))
        if any(isinstance(part, DistillConfig) for part in parts):
            check_trainable(model, teacher.spec)
        if stage.task == "distill" and stage.config.inherit:
            inherit(teacher.module, copy_network(model))
        elif stage.task == "prune":
            check_importance(model, stage.config)
            if untouched:  # another stage before it decides how much is left to go
                check_prunable(copy_network(model), teacher, stage.config)
        elif stage.task == "int8":
            check_int8_layers(model, stage.config.formats)
        elif stage.task == "merge":
            check_mergeable(fold_batch_norm(model), stage.config)
        untouched &= stage.task == "distill"
