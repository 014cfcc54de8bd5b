"""Stages of a compression pipeline."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dreamstill.compression.config import (
    FactorizeConfig,
    MergeConfig,
    PackConfig,
    PruneConfig,
    QuantizeConfig,
)
from dreamstill.compression.deep_compression.file_format import load_packed, save_packed
from dreamstill.compression.deep_compression.pack import pack, weights_of
from dreamstill.compression.factorization.factorize import factorize
from dreamstill.compression.merge import check_mergeable, merge
from dreamstill.compression.prune import check_importance, check_prunable, prune
from dreamstill.compression.quantization.quantize import (
    check_plain,
    quantize,
    quantize_without_inputs,
)
from dreamstill.config import to_plain
from dreamstill.continual.learning import check_new_classes, examples, learn
from dreamstill.data.images import load_images, load_unlabelled
from dreamstill.distillation.config import FinetuneConfig
from dreamstill.distillation.finetune import finetune
from dreamstill.distillation.initialization import initialize
from dreamstill.errors import ConfigError, TeacherError
from dreamstill.evaluation import predict
from dreamstill.exporters.config import Int8Config
from dreamstill.exporters.formats import on_cpu
from dreamstill.exporters.int8 import check_int8_formats, check_int8_layers, export_int8
from dreamstill.files.writing import save_arrays
from dreamstill.graph.batch_norm_folding import fold_batch_norm
from dreamstill.graph.modules import map_modules
from dreamstill.input_spec import InputSpec
from dreamstill.nn.closed import ClosedNetwork
from dreamstill.nn.copying import copy_network
from dreamstill.nn.quantized import QuantizedLayer, quantized_bytes
from dreamstill.pipelines.config import (
    STAGE_CONFIGS,
    DistillStage,
    LearnClassesStage,
    StageConfig,
)
from dreamstill.pipelines.distill import open_student
from dreamstill.progress import OnProgress, Progress, start_kept
from dreamstill.teacher import Teacher, check_trainable

__all__ = [
    "STAGES",
    "Outcome",
    "Stage",
    "StageContext",
    "check_layers",
    "check_stages",
    "register_stage",
]


@dataclass
class StageContext:
    """Inputs of a stage besides the network and its configuration."""

    teacher: Teacher
    images: Tensor
    rng: torch.Generator
    on_progress: OnProgress
    stem: Path
    """Path of the stage's files, without a suffix."""
    warnings: list[str] = field(default_factory=list)
    """Warnings about training that did not improve the network."""

    def progressed(self, progress: Progress) -> None:
        """Report progress, and collect a warning if training did not improve the network."""
        if progress.record.get("chosen_at_step") == 0:
            self.warnings.append(start_kept(progress.total))
        self.on_progress(progress)

    def tune(self, model: nn.Module, config: FinetuneConfig | None) -> nn.Module:
        """Fine-tune a network toward the teacher, unless `config` is None."""
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


def _distill(model: nn.Module, config: DistillStage, context: StageContext) -> Outcome:
    student = open_student(config.student, context.teacher, context.rng)
    start = initialize(context.teacher, student, config)
    student = finetune(
        context.teacher,
        student,
        context.images,
        config,
        rng=context.rng,
        inherited=start.inherited,
        reconstruct=config.reconstruct,
        pretrained=start.inherited is not None,
        on_progress=context.progressed,
    )
    return student.requires_grad_(False), {"start": start.reason}


def _prune(model: nn.Module, config: PruneConfig, context: StageContext) -> Outcome:
    pruned, rounds = prune(
        context.teacher,
        context.images,
        config,
        rng=context.rng,
        model=model,
        on_progress=context.progressed,
    )
    record: dict[str, Any] = {"rounds": [asdict(record) for record in rounds]}
    if skipped := rounds[-1].skipped:
        record["skipped"] = list(skipped)
    return pruned, record


def _merge(model: nn.Module, config: MergeConfig, context: StageContext) -> Outcome:
    merged, layers = merge(
        model, context.teacher.input_spec, config, context.images, rng=context.rng
    )
    record = {"layers": [asdict(record) for record in layers]}
    return context.tune(merged, config.finetune), record


def _factorize(model: nn.Module, config: FactorizeConfig, context: StageContext) -> Outcome:
    factorized, layers = factorize(
        model, context.teacher.input_spec, config, context.images, rng=context.rng
    )
    record = {"layers": [asdict(record) for record in layers]}
    return context.tune(factorized, config.finetune), record


def _quantize(model: nn.Module, config: QuantizeConfig, context: StageContext) -> Outcome:
    if config.without_inputs:
        kind = context.teacher.output_kind
        whole = Teacher(on_cpu(model), context.teacher.input_spec, outputs=kind)
        quantized = quantize_without_inputs(whole, config).to(context.teacher.device)
    else:
        quantized = quantize(
            context.teacher,
            context.images,
            config,
            rng=context.rng,
            model=model,
            on_progress=context.progressed,
        )
    layers = {n: m for n, m in quantized.named_modules() if isinstance(m, QuantizedLayer)}
    bits = {
        name: {"weight_bits": layer.weight_bits, "activation_bits": layer.activation_bits}
        for name, layer in layers.items()
    }
    record = {"layers": bits, "weight_bytes": quantized_bytes(quantized)}
    return quantized, record | _skipped(quantized, layers.values())


def _skipped(model: nn.Module, changed: Iterable[nn.Module]) -> dict[str, list[str]]:
    """Return a record with the names of the weights outside the changed layers."""
    done = {id(value) for layer in changed for value in layer.parameters()}
    names = [n for n, p in model.named_parameters() if p.ndim > 1 and id(p) not in done]
    return {"skipped": names} if names else {}


def _on_grids(model: nn.Module) -> nn.Module:
    """Replace quantized layers by plain ones with weights on the same grids, in a copy.

    The runtime of an exported file quantizes activations itself, or not at all.
    """

    def change(name: str, module: nn.Module) -> nn.Module | None:
        return module.plain() if isinstance(module, QuantizedLayer) else None

    return map_modules(copy_network(model), change)


def _plain(model: nn.Module, spec: InputSpec) -> nn.Module:
    """Return `_on_grids(model)`, after a check that it computes the same as the model."""
    plain = _on_grids(model)
    check_plain(model, plain, spec)
    return plain


def _int8(model: nn.Module, config: Int8Config, context: StageContext) -> Outcome:
    model = _plain(model, context.teacher.input_spec)
    records = [
        export_int8(
            model,
            context.teacher.input_spec,
            context.images,
            context.stem.with_name(f"{context.stem.name}.int8.{kind}"),
            calibration=config.calibration,
            backend=config.backend,
            outputs=context.teacher.output_kind,
        )
        for kind in config.formats
    ]
    return model, {"files": [asdict(r) for r in records]}


def _pack(model: nn.Module, config: PackConfig, context: StageContext) -> Outcome:
    model = _plain(model, context.teacher.input_spec)
    packed = pack(
        context.teacher,
        context.images,
        config,
        rng=context.rng,
        model=model,
        on_progress=context.progressed,
    )
    path = context.stem.with_name(f"{context.stem.name}.packed")
    size = save_packed(packed, path, card=to_plain(context.teacher.input_spec))
    plain = copy_network(model)
    plain.load_state_dict(load_packed(path)[0])
    record = {"files": [{"path": str(path), "bytes": size}]}
    return plain, record | _skipped(plain, weights_of(plain).values())


def _learn_classes(model: nn.Module, config: LearnClassesStage, context: StageContext) -> Outcome:
    spec, old = context.teacher.input_spec, _like(context.teacher, model)
    new, labels = load_images(config.new, spec, first=old.num_classes)
    learned = learn(
        old,
        context.images,
        new,
        labels,
        config,
        rng=context.rng,
        on_progress=context.progressed,
    )
    named = labels[:0]
    if len(context.images):
        named = predict(model, spec, context.images).argmax(1)
    shown = examples((context.images, named), (new, labels))
    save_arrays(context.stem.with_name(f"{context.stem.name}.npz"), **shown)
    record = {"old_classes": old.num_classes, "classes": learned.num_classes}
    names = list(context.teacher.class_names)
    return learned.module, record | ({"class_names": names} if names else {})


def _like(teacher: Teacher, model: nn.Module) -> Teacher:
    """Return a network as a teacher on the device and in the precision of another."""
    device, precision, kind = str(teacher.device), teacher.precision, teacher.output_kind
    return Teacher(model, teacher.input_spec, outputs=kind, device=device, precision=precision)


def _after_learn_classes(
    model: nn.Module, config: LearnClassesStage, teacher: Teacher, images: Tensor
) -> tuple[Teacher, Tensor]:
    images = torch.cat([images, load_unlabelled(config.new, teacher.input_spec)])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return _like(teacher, model), images[order]


class Stage(NamedTuple):
    """Implementation of a task."""

    run: Callable[[nn.Module, Any, StageContext], Outcome]
    """Function of a network (not changed), configuration and context that returns a new network
    and its record."""
    check: Callable[[nn.Module, Any, Teacher, bool], None] | None = None
    """Function that raises early what the run would raise. Its arguments are the network, the
    configuration, the teacher, and whether no earlier stage changes the network."""
    after: Callable[[nn.Module, Any, Teacher, Tensor], tuple[Teacher, Tensor]] | None = None
    """Function that returns the teacher and the images of later stages, where this stage changes
    them. Its arguments are the new network, the configuration, and the teacher and images so
    far."""


def _check_distill(model: nn.Module, config: DistillStage, teacher: Teacher, first: bool) -> None:
    check_trainable(model, teacher.input_spec)
    initialize(teacher, copy_network(model), config)


def _check_prune(model: nn.Module, config: PruneConfig, teacher: Teacher, first: bool) -> None:
    check_importance(model, config)
    if first:  # otherwise an earlier stage determines the network's size
        check_prunable(copy_network(model), teacher, config)


def _check_merge(model: nn.Module, config: MergeConfig, teacher: Teacher, first: bool) -> None:
    check_mergeable(fold_batch_norm(model), config)


def _check_int8(model: nn.Module, config: Int8Config, teacher: Teacher, first: bool) -> None:
    check_int8_formats(config.formats)
    check_int8_layers(model, config.formats)


def _check_learn_classes(
    model: nn.Module, config: LearnClassesStage, teacher: Teacher, first: bool
) -> None:
    images, labels = load_images(config.new, teacher.input_spec, first=teacher.num_classes)
    check_new_classes(_like(teacher, copy_network(model)), images, labels)


STAGES: dict[str, Stage] = {
    "distill": Stage(_distill, _check_distill),
    "prune": Stage(_prune, _check_prune),
    "merge": Stage(_merge, _check_merge),
    "factorize": Stage(_factorize),
    "quantize": Stage(_quantize),
    "int8": Stage(_int8, _check_int8),
    "pack": Stage(_pack),
    "learn_classes": Stage(_learn_classes, _check_learn_classes, _after_learn_classes),
}
"""Tasks of a compression pipeline; STAGE_CONFIGS has their configuration classes."""


def register_stage(name: str, config: Any, stage: Stage) -> None:
    """Register a custom task for `compress` and TOML files.

    Args:
        name: name of the task; not yet in STAGES.
        config: configuration class, made with `dreamstill.config.config_class`.
        stage: implementation.

    Raises:
        ConfigError: the name is taken, or is none for files.

    """
    if not re.fullmatch(r"\w+", name):
        raise ConfigError(f"a task is named by letters, digits and _; got {name!r}")
    if name in STAGES:
        raise ConfigError(f"there is a task {name!r} already: choose another name")
    STAGE_CONFIGS[name], STAGES[name] = config, stage


def check_layers(model: nn.Module, task: str) -> None:
    """Raise TeacherError if a task is to change a network whose layers are closed."""
    if isinstance(model, ClosedNetwork):
        raise TeacherError(f"{task} changes layers, and cannot here: {model.reason}")


def check_stages(stages: Sequence[StageConfig], model: nn.Module, teacher: Teacher) -> None:
    """Check that every stage can run, before any image is synthesized.

    Args:
        stages: tasks with their configuration.
        model: the last student of the pipeline, or the teacher's network if there is none.
        teacher: teacher of the pipeline.

    Raises:
        ConfigError, TeacherError, ExportError: a stage cannot run on the network.

    """
    first = True
    for stage in stages:
        check_layers(model, stage.task)
        if getattr(stage.config, "finetune", None) is not None:
            check_trainable(model, teacher.input_spec)
        if check := STAGES[stage.task].check:
            check(model, stage.config, teacher, first)
        first &= stage.task == "distill"
