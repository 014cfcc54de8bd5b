"""The public functions: a teacher and images in, a smaller network out, nothing else changed."""

import copy
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dreamstill.black_box.config import BlackBoxConfig
from dreamstill.compression.config import (
    FactorizeConfig,
    MergeConfig,
    PackConfig,
    PruneConfig,
    QuantizeConfig,
)
from dreamstill.config import OutputKind, Precision, did_you_mean, from_plain, to_plain
from dreamstill.continual.config import LearnClassesConfig
from dreamstill.continual.learning import learn
from dreamstill.data.images import load_images, load_unlabelled, truth_of
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.budget import within_budget
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.default_method import open_default
from dreamstill.distillation.distillation import Distillation
from dreamstill.distillation.finetune import finetune
from dreamstill.distillation.initialization import initialize
from dreamstill.distillation.model_selection import ModelSelector
from dreamstill.distillation.plan import (
    log_plan,
    memory_estimate,
    plan,
    plan_on_images,
    with_time_left,
)
from dreamstill.distillation.suiting import check_baselines, suited, suited_to_method
from dreamstill.errors import ConfigError, DataError
from dreamstill.evaluation import confusion_of, intersection_over_union, predict, scores
from dreamstill.exporters.formats import export
from dreamstill.files.reading import StrPath
from dreamstill.formatting import shown
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.output_spec import OutputSpec
from dreamstill.pipelines.compress import compressed, networks_of, no_images
from dreamstill.pipelines.config import STAGE_CONFIGS, CompressJob, StageConfig
from dreamstill.pipelines.distill import check_student, open_student
from dreamstill.pipelines.goal import GoalJob
from dreamstill.pipelines.process import seeded_process
from dreamstill.pipelines.pursue import compressed_toward
from dreamstill.pipelines.stages import STAGES, StageContext, check_stages, register_stage
from dreamstill.pipelines.synthesize import draw_images
from dreamstill.process_group import check_processes, own_rng, rank
from dreamstill.profiling import Profile, measure_profile
from dreamstill.progress import OnProgress, Progress
from dreamstill.quiet import without_messages
from dreamstill.report import write_goal_report
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import ImageProgramsConfig, NoiseConfig
from dreamstill.synthesis.presets import PRESETS, method_config
from dreamstill.synthesis.registry import (
    DEFAULT_METHOD,
    METHODS,
    missing_capabilities,
    open_synthesizer,
    register_method,
)
from dreamstill.synthesis.stored_images import StoredImages
from dreamstill.synthesis.validation_set import validation_set
from dreamstill.teacher import Teacher

__all__ = [
    "Result",
    "compress",
    "distill",
    "evaluate",
    "export",
    "factorize",
    "learn_classes",
    "list_methods",
    "list_presets",
    "load_teacher",
    "merge",
    "pack",
    "profile",
    "prune",
    "quantize",
    "register_method",
    "register_stage",
    "synthesize",
]

Images = Tensor | NDArray[np.uint8] | StrPath
"""uint8 (N, C, H, W), or the path of an .npz with x, or of a folder of pictures."""


@dataclass(repr=False)
class Result:
    """A network that a task made."""

    model: nn.Module
    """The network, in eval mode; it maps (N, C, H, W) in the teacher's input space to logits."""
    input_spec: InputSpec
    """Its input."""
    history: list[dict[str, float]]
    """A record per training step: step, loss and, after a validation, agreement and kl."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further results of the task, such as the channels removed from each layer."""

    @cached_property
    def profile(self) -> Profile:
        """Parameters, multiply-accumulates, bytes, and the latency of one image in PyTorch."""
        return measure_profile(self.model, self.input_spec)

    def _rows(self) -> dict[str, str]:
        profile = self.profile
        rows = {
            "network": type(self.model).__name__,
            "parameters": shown(profile.parameters),
            "MACs": shown(profile.macs),
            "bytes": shown(profile.bytes),
            "latency": f"{profile.latency_ms.median:.3f} ms in {profile.latency_ms.runtime}",
        }
        if self.history:
            rows["steps"] = shown(len(self.history))
        return rows

    def __repr__(self) -> str:
        return f"Result({', '.join(f'{name}: {value}' for name, value in self._rows().items())})"

    def _repr_html_(self) -> str:
        cells = (
            f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in self._rows().items()
        )
        return f"<table>{''.join(cells)}</table>"


def load_teacher(
    weights: StrPath,
    *,
    factory: str | None = None,
    input_spec: InputSpec | None = None,
    card: StrPath | None = None,
    num_classes: int | None = None,
    outputs: OutputKind | str | None = None,
    device: str = "cpu",
    precision: Precision | str = "auto",
    allow_pickle: bool = False,
    black_box: BlackBoxConfig | None = None,
) -> Teacher:
    """Open a teacher from a file, or one of which only the answers are known.

    Args:
        weights: path of a .safetensors file, a torch state dict, or a network that needs no
            factory (.onnx, .pt2, TorchScript); or another name that `TeacherFile.weights`
            describes.
        factory: "module:function" that builds the network. Default: the card's.
        input_spec: its input. Default: the card's.
        card: path of a .json or .toml file with factory, shape, mean and std or range. Default: the
            one beside the weights, with their name.
        num_classes: checked against the network.
        outputs: classes, labels, values or dense; see `Teacher`. Default: the card's.
        device: where to put it, such as "cpu" or "cuda".
        precision: float32, bfloat16, or auto for the faster one.
        allow_pickle: consent to run the code in a full pickle; never for a file you do not trust.
        black_box: how it is asked, where only the answers are known.

    Raises:
        ConfigError: there is no factory, the device is not available, or a value is unknown.
        TeacherError: a file or the network is wrong.

    """
    spec = {} if input_spec is None else to_plain(input_spec)
    file = TeacherFile(
        weights=os.fspath(weights),
        card=None if card is None else os.fspath(card),
        factory=factory,
        num_classes=num_classes,
        outputs=from_plain(OutputKind | None, outputs, "outputs"),
        allow_pickle=allow_pickle,
        black_box=black_box,
        **spec,
    )
    known: Precision = from_plain(Precision, precision, "precision")
    teacher = open_from(file, device=device, precision=known)
    teacher.source = file
    return teacher


def list_methods(teacher: Teacher | None = None) -> list[str]:
    """Return the names of the methods that make images, or of those that a teacher can serve.

    Examples:
        >>> "image_programs" in list_methods()
        True

    """
    return [name for name in METHODS if teacher is None or not missing_capabilities(name, teacher)]


def list_presets(method: str | None = None) -> dict[str, list[str]]:
    """Return the names of the presets by method, or those of one method.

    Examples:
        >>> list_presets("zskt")
        {'zskt': ['cifar10', 'svhn']}

    """
    if method is not None:
        _known_method(method)
    names = [name for name in METHODS if method in (None, name)]
    return {name: list(PRESETS.get(name, ())) for name in names}


def synthesize(
    teacher: Teacher,
    method: Any = DEFAULT_METHOD,
    *,
    num_images: int = 1000,
    preset: str | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Tensor:
    """Make images from a teacher alone.

    Args:
        teacher: the network.
        method: name of a method, or a method's configuration.
        num_images: how many; at least 1.
        preset: name of a preset of the method; see `list_presets`.
        seed: of everything random.
        progress: called after every batch.

    Returns:
        uint8 (num_images, C, H, W) on the CPU.

    Raises:
        ConfigError: the method or the preset is unknown, the method needs a student, or there is
            no room for so many images.
        TeacherError: the teacher lacks what the method needs.

    Examples:
        >>> import dreamstill as ds
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
        >>> teacher = ds.Teacher(net, ds.InputSpec((1, 8, 8), mean=(0.5,), std=(0.5,)))
        >>> ds.synthesize(teacher, num_images=20).shape
        torch.Size([20, 1, 8, 8])

    """
    if num_images < 1:
        raise ConfigError(f"num_images must be at least 1; got {num_images}")
    name, config = _method(method, preset)
    images, _ = draw_images(
        teacher, name, config, num_images, seed=seed, on_progress=progress or _silent
    )
    return images


def distill(
    teacher: Teacher,
    student: Any,
    images: Any = None,
    config: DistillConfig | None = None,
    *,
    baselines: bool = False,
    bound: Images | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Result:
    """Train a student toward a teacher.

    Args:
        teacher: the network to learn from. The plan is logged at level INFO.
        student: a network, which is copied; a function or "module:function" that builds one; or
            "auto:0.5" for the teacher with half of every width. A narrower copy of the teacher
            starts from its channels, unless `config.inherit` is False.
        images: uint8 (N, C, H, W), or a path; or what makes them while the student learns: the name
            or configuration of a method, or a synthesizer. Default: image_programs, and fastdfkd
            after it where a student learns more from that.
        config: of the training. Given images need no `prefill`, `fresh_every` and `buffer_size`.
        baselines: train the same student in the same way on clipped noise too, and on `bound`.
        bound: real images, for the real-data bound.
        seed: of everything random.
        progress: called after every synthesized batch and every step.

    Returns:
        The student selected on synthetic images; its `details` have the plan, and the results of
        the baselines as `noise_baseline` and `real_data_bound`.

    Raises:
        ConfigError: the configuration contradicts itself, the teacher or the student.
        DataError: fewer than 8 images, or images that do not fit the teacher.
        TeacherError: the student does not run, or the teacher lacks what the method needs.
        NonFiniteError: a loss is not finite.

    """
    if bound is not None and not baselines:
        raise ConfigError("bound has no effect without baselines: leave it out")
    check_baselines(teacher, baselines)
    config, rng = config or DistillConfig(), torch.Generator(teacher.device).manual_seed(seed)
    real = None if bound is None else _images(bound, teacher.input_spec)
    result, method = _distilled(teacher, student, images, config, seed, progress)
    if not baselines:
        return result
    size = config.batch_size
    if config.minutes is not None:  # the same for the baselines
        config = replace(config, steps=len(result.history), minutes=None)
    if method is not None:
        size, config = method.config.batch_size, config.spelled_out(method.fresh_every)
    others: dict[str, Any] = {"noise_baseline": NoiseConfig(batch_size=size)}
    if real is not None:
        stored = StoredImages(teacher, real, size, rng=rng)
        others["real_data_bound"] = real if method is None else stored
    for name, source in others.items():
        with without_messages():  # that it learns little is the purpose of a baseline
            made, _ = _distilled(teacher, student, source, config, seed, progress)
        result.details[name] = made
    return result


def _distilled(
    teacher: Teacher,
    student: Any,
    images: Any,
    config: DistillConfig,
    seed: int,
    progress: OnProgress | None,
) -> tuple[Result, Method | None]:
    """Distill once; return the student, and what made its images, or None if they were given."""
    history, note = _history(progress)
    rng = torch.Generator(teacher.device).manual_seed(seed)
    check_processes(teacher.capabilities.budget, teacher.device)
    with seeded_process(seed + rank(), str(teacher.device)):
        network = _student(student, teacher, rng)
        start = initialize(teacher, network, config)
        options: dict[str, Any] = {
            **{"rng": rng, "inherited": start.inherited},
            "reconstruct": config.reconstruct,
        }
        method = (
            open_default(
                *(teacher, network, ImageProgramsConfig(), config, start),
                rng=own_rng(rng),
                on_progress=note,
            )
            if images is None
            else _synthesizer(images, teacher, own_rng(rng))
        )
        config = (
            suited(teacher, config) if method is None else suited_to_method(teacher, config, method)
        )
        config = within_budget(teacher, network, config, method, inherited=start.inherited)
        if method is None:
            given = _images(images, teacher.input_spec)
            sentences, warnings = plan_on_images(teacher, config, start, len(given)), []
            log_plan(sentences)
            pretrained = start.inherited is not None
            network = finetune(
                *(teacher, network, given, config),
                pretrained=pretrained,
                on_progress=note,
                **options,
            )
        else:
            buffer = ReplayBuffer(None, teacher.input_spec, config.buffer_size)
            validation_set(teacher, config.num_validation, note)
            work = Distillation(teacher, network, method, buffer, config, **options)
            sentences = plan(work, start, _name(images))
            log_plan(sentences, memory_estimate(work))
            for step in with_time_left(work.run()):
                note(step)
            network, warnings = work.chosen, work.warnings
    validation = validation_set(teacher, config.num_validation)
    selector = ModelSelector(validation, teacher.input_spec, teacher.output_kind)
    agreed, _ = selector.measure(network)
    details = {"plan": sentences, "validation_agreement": agreed, "warnings": warnings}
    model = network.eval().requires_grad_(False)
    return Result(model, teacher.input_spec, history, details), method


def _name(source: Any) -> str:
    """Return the name of a method, or of the class of a synthesizer."""
    if source is None:
        return DEFAULT_METHOD
    return type(source).__name__ if isinstance(source, Method) else _method(source, None)[0]


def prune(
    teacher: Teacher,
    images: Images,
    config: PruneConfig | None = None,
    *,
    model: nn.Module | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Result:
    """Remove the least important channels, and fine-tune toward the teacher.

    Args:
        teacher: what the network is fine-tuned toward.
        images: uint8 (N, C, H, W), synthetic or not, or a path.
        config: what to keep, of what, and how.
        model: the network to prune. Default: a copy of the teacher's.
        seed: of everything random.
        progress: called after every step.

    Raises:
        ConfigError: the target cannot be met.
        TeacherError: no channel can be followed through the network.
        DataError: fewer than 8 images, or images that do not fit the teacher.

    """
    return _run("prune", teacher, images, config or PruneConfig(), model, seed, progress)


def merge(
    teacher: Teacher,
    images: Images | None = None,
    config: MergeConfig | None = None,
    *,
    model: nn.Module | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Result:
    """Merge neurons and filters that do nearly the same.

    Args:
        teacher: what the network is fine-tuned toward, if it is.
        images: uint8 (N, C, H, W), or a path; None with `reconstruct` 0: from the weights alone.
        config: what to keep, and how.
        model: the network to merge. Default: a copy of the teacher's.
        seed: of everything random.
        progress: called after every step.

    Raises:
        ConfigError: a named layer cannot be made narrower, or images are needed.
        TeacherError: the network cannot be traced.

    """
    return _run("merge", teacher, images, config or MergeConfig(), model, seed, progress)


def factorize(
    teacher: Teacher,
    images: Images | None = None,
    config: FactorizeConfig | None = None,
    *,
    model: nn.Module | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Result:
    """Split layers into products of smaller ones.

    Args:
        teacher: what the network is fine-tuned toward, if it is.
        images: uint8 (N, C, H, W), or a path; None with `responses` and `reconstruct` 0: from the
            weights alone.
        config: what to keep, and how.
        model: the network to factorize. Default: a copy of the teacher's.
        seed: of everything random.
        progress: called after every step.

    Raises:
        ConfigError: no ranks meet the target, or images are needed.

    """
    return _run("factorize", teacher, images, config or FactorizeConfig(), model, seed, progress)


def quantize(
    teacher: Teacher,
    images: Images | None = None,
    config: QuantizeConfig | None = None,
    *,
    model: nn.Module | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Result:
    """Simulate weights and activations of 2 to 8 bits.

    Args:
        teacher: what the network is fine-tuned toward, if it is.
        images: uint8 (N, C, H, W) to calibrate on, or a path. None: no image is looked at (DFQ).
        config: the bits, and how.
        model: the network to quantize. Default: a copy of the teacher's.
        seed: of everything random.
        progress: called after every step.

    Raises:
        ConfigError: a field needs images.
        TeacherError: the network has no layer that can be quantized, or cannot be traced.

    """
    config = config or QuantizeConfig()
    if images is None:
        config = replace(config, without_inputs=True)
    return _run("quantize", teacher, images, config, model, seed, progress)


def pack(
    teacher: Teacher,
    images: Images,
    config: PackConfig | None = None,
    *,
    path: StrPath | None = None,
    model: nn.Module | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Result:
    """Prune, share and Huffman-code the weights (Deep Compression).

    Args:
        teacher: what the network is fine-tuned toward.
        images: uint8 (N, C, H, W), or a path.
        config: what to keep, and how.
        path: where to write the packed file, ending in .packed; None: nowhere.
        model: the network to pack. Default: a copy of the teacher's.
        seed: of everything random.
        progress: called after every step.

    Returns:
        The network as it is read back from the packed file, whose size is in `details`.

    Raises:
        ConfigError: the path does not end in .packed.
        TeacherError: no layer can be packed.
        DataError: fewer than 8 images, or images that do not fit the teacher.

    """
    if path is not None and Path(path).suffix != ".packed":
        raise ConfigError(f"path must end in .packed; got {str(path)!r}")
    stem = None if path is None else Path(path).with_suffix("")
    return _run("pack", teacher, images, config or PackConfig(), model, seed, progress, stem=stem)


def learn_classes(
    teacher: Teacher,
    images: Images | None,
    new: Images,
    labels: Any = None,
    config: LearnClassesConfig | None = None,
    *,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Result:
    """Teach a network new classes without the data of the old ones.

    Args:
        teacher: the network that knows the K old classes.
        images: uint8 (N, C, H, W) in place of the old classes' data, or a path; None for the
            recipes lwf and finetune.
        new: uint8 (M, C, H, W) of the new classes, or the path of an .npz with x and y, or of a
            folder with one of pictures for each class.
        labels: (M,) from K on; None where `new` is a path.
        config: the recipe and the training.
        seed: of everything random.
        progress: called after every step.

    Raises:
        ConfigError: labels are missing, or images or labels have no effect.
        DataError: images or labels are wrong, or a label is below K.
        TeacherError: the network has no last linear layer.

    """
    config = config or LearnClassesConfig()
    history, note = _history(progress)
    if images is not None and not config.reads_images:
        raise ConfigError(f"images have no effect on the recipe {config.recipe}: leave them out")
    if isinstance(new, Tensor | np.ndarray):
        if labels is None:
            raise ConfigError("there are no labels: give those of the images, (M,)")
        given, classes = _images(new, teacher.input_spec), torch.as_tensor(labels)
    else:
        if labels is not None:
            raise ConfigError("labels have no effect beside a path, which has them: leave them out")
        given, classes = load_images(new, teacher.input_spec, first=teacher.num_classes)
    old = given[:0] if images is None else _images(images, teacher.input_spec)
    rng = torch.Generator().manual_seed(seed)
    with seeded_process(seed, str(teacher.device)):
        network = learn(teacher, old, given, classes, config, rng=rng, on_progress=note)
    return Result(network.module, teacher.input_spec, history)


def compress(
    teacher: Teacher,
    images: Any = DEFAULT_METHOD,
    stages: Sequence[Any] = (),
    *,
    to: str | None = None,
    format: Sequence[str] | None = None,
    lose_at_most: float | None = None,
    minutes: float | None = None,
    student: str | None = None,
    folder: StrPath | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Result:
    """Make a network small by several tasks, or toward a goal.

    Args:
        teacher: what every stage is fine-tuned toward. With stages and a folder, of `load_teacher`.
        images: uint8 (N, C, H, W), or a path; or the name or the configuration of a method.
        stages: configurations, such as [PruneConfig(keep=0.5), QuantizeConfig()]; each runs on the
            network that the one before it made.
        to: goal in place of stages: int8, w4, half, quarter, 10x, 500KB; see `GoalJob`.
        format: file formats, such as ("onnx", "pte"); the first counts for goals of bytes.
        lose_at_most: largest predicted loss, in points of agreement.
        minutes: after which the search for the goal begins nothing new.
        student: "module:function" of a student of your own, to try too.
        folder: where networks, files, records and a report page go, so that a run that was killed
            can be resumed; None: nothing is written, and neither `to` nor `Int8Config` can be.
        resume: continue what is finished in the folder.
        seed: of everything random.
        progress: called after every synthesized batch and step.

    Returns:
        The last, or recommended, network; `details` has a record per stage or, with a folder, its
        summary, whose `missed` says what is missed of the goal.

    Raises:
        ConfigError: a stage is of no known task, or cannot follow the one before it; no such goal.
        TeacherError, DataError, NonFiniteError, ExportError: see the tasks.
        RunError: the folder holds something else, or cannot be written.

    """
    options = {"format": format, "lose_at_most": lose_at_most, "minutes": minutes}
    given = {k: v for k, v in (options | {"student": student}).items() if v is not None}
    if to is not None:
        if stages or folder is None:
            lack = "it writes files: give compress a folder" if not stages else "leave stages out"
            raise ConfigError(f"to {to!r} finds the stages by itself; {lack}")
        return _compress_toward(
            Path(folder), teacher, images, {"to": to, **given}, resume, seed, progress
        )
    if given:
        raise ConfigError(f"{next(iter(given))} has no effect without a goal: give to, or leave it")
    named = [StageConfig(task=_task_of(config), config=config) for config in stages]
    if folder is not None:
        return _compress_in(Path(folder), teacher, images, named, resume, seed, progress)
    return _compress_in_memory(teacher, images, named, seed, progress)


SCORES = {OutputKind.VALUES: {"accuracy": "r2"}, OutputKind.DENSE: {"accuracy": "mean_iou"}}
"""Names in `evaluate` of the figure that networks are compared by, where it is no accuracy."""


def evaluate(
    model: nn.Module,
    images: Any,
    labels: Any,
    input_spec: InputSpec,
    *,
    outputs: OutputKind | str = "classes",
) -> dict[str, Any]:
    """Measure a network on labelled images.

    Args:
        model: maps (N, C, H, W) in its input space to (N, K) logits; left as it was.
        images: uint8 (N, C, H, W).
        labels: (N,) of 0 to K - 1; of labels (N, K) of 0 and 1; of values (N, K); of dense outputs
            (N, H, W), 255 or -1 where there is no class.
        input_spec: its input.
        outputs: classes, labels, values or dense; see `Teacher`.

    Returns:
        Of classes `accuracy` in [0, 1], `calibration_error` in [0, 1] (expected, 15 bins), and
        `confusion`, (K, K) counts with a row per true class. Of labels `accuracy`, the share that
        is right, and `average_precision`, its mean over labels. Of values `r2` and
        `absolute_error`. Of dense outputs `mean_iou`, `pixel_accuracy`, `iou` (K,), nan for a class
        that is nowhere, and `confusion` of pixels.

    Raises:
        DataError: there is no image, images are not uint8 of the network's shape, or images and
            labels do not belong together.

    """
    kind: OutputKind = from_plain(OutputKind, outputs, "outputs")
    given = _images(images, input_spec)
    if len(given) == 0:
        raise DataError("there is no image to evaluate on")
    found = predict(model, input_spec, given)
    spec = OutputSpec(found.shape[1], kind=kind, size=tuple(found.shape[2:]))
    truth = truth_of(torch.as_tensor(labels).cpu().numpy(), len(given), spec, "given")
    titles = {"ece": "calibration_error"} | SCORES.get(kind, {})
    measured: dict[str, Any] = {
        titles.get(name, name): value for name, value in scores(found, truth, kind).items()
    }
    if (counts := confusion_of(found, truth, kind)) is not None:
        measured["confusion"] = counts
        if kind is OutputKind.DENSE:
            measured["iou"] = intersection_over_union(counts.double())
    return measured


def profile(model: nn.Module, input_spec: InputSpec) -> Profile:
    """Count a network's parameters, multiply-accumulates and bytes, and time it for one image.

    Args:
        model: any network; left as it was.
        input_spec: its input.

    """
    return measure_profile(model, input_spec)


def _silent(progress: Progress) -> None:
    """Show nothing."""


def _history(progress: OnProgress | None) -> tuple[list[dict[str, float]], OnProgress]:
    """Return a list, and a callback that puts the records of training steps into it."""
    history: list[dict[str, float]] = []

    def note(step: Progress) -> None:
        if step.record:
            history.append(step.record)
        (progress or _silent)(step)

    return history, note


def _run(
    task: str,
    teacher: Teacher,
    images: Any,
    config: Any,
    model: nn.Module | None,
    seed: int,
    progress: OnProgress | None,
    *,
    stem: Path | None = None,
) -> Result:
    """Run a task of the pipelines in memory."""
    network = teacher.module
    if model is not None:
        network = copy.deepcopy(model).to(teacher.device).eval()
    stage = StageConfig(task=task, config=config)
    check_stages([stage], network, teacher)
    if images is None and stage.reads_images:
        raise ConfigError(f"{task} reads images with this configuration: give some")
    spec = teacher.input_spec
    given = no_images(spec) if images is None else _images(images, spec)
    if stage.reads_images and len(given) == 0:
        raise DataError(f"{task} reads images: got 0")
    history, note = _history(progress)
    rng = torch.Generator(teacher.device).manual_seed(seed)
    with tempfile.TemporaryDirectory() as temporary:
        context = StageContext(teacher, given, rng, note, stem or Path(temporary) / task)
        with seeded_process(seed, str(teacher.device)):
            made, details = STAGES[task].run(network, config, context)
    if context.warnings:
        details = details | {"warnings": context.warnings}
    return Result(made.eval(), teacher.input_spec, history, details)


def _compress_in_memory(
    teacher: Teacher,
    images: Any,
    stages: list[StageConfig],
    seed: int,
    progress: OnProgress | None,
) -> Result:
    """Run a pipeline without a directory."""
    # refuses a wrong order
    job = CompressJob(teacher=TeacherFile(weights=""), stages=tuple(stages), seed=seed)
    if any(stage.task == "int8" for stage in stages):
        raise ConfigError("int8 writes files: give compress a folder for them")
    check_stages(stages, networks_of(job, teacher)[-1], teacher)
    given = (
        _made_images(images, teacher, seed, progress)
        if job.reads_images
        else no_images(teacher.input_spec)
    )
    history: list[dict[str, float]] = []
    model, records = teacher.module, []
    for index, stage in enumerate(stages):
        result = _run(stage.task, teacher, given, stage.config, model, seed + index, progress)
        model = result.model
        if after := STAGES[stage.task].after:
            teacher, given = after(model, stage.config, teacher, given)
        history += result.history
        records.append({"task": stage.task} | result.details)
    return Result(model, teacher.input_spec, history, {"stages": records})


def _compress_in(
    folder: Path,
    teacher: Teacher,
    images: Any,
    stages: list[StageConfig],
    resume: bool,
    seed: int,
    progress: OnProgress | None,
) -> Result:
    """Run a pipeline in a directory."""
    if teacher.source is None:
        raise ConfigError("a run in a folder opens its teacher again: use one of load_teacher")
    job = CompressJob(
        teacher=teacher.source, stages=tuple(stages), **_settings(teacher, images, seed)
    )
    history, note = _history(progress)
    model, summary = compressed(folder, job, resume=resume, on_progress=note)
    return Result(model, teacher.input_spec, history, summary)


def _compress_toward(
    folder: Path,
    teacher: Teacher,
    images: Any,
    goal: dict[str, Any],
    resume: bool,
    seed: int,
    progress: OnProgress | None,
) -> Result:
    """Search for a network that meets a goal, in a directory."""
    source = teacher.source or TeacherFile(weights="")
    job = GoalJob(teacher=source, **goal, **_settings(teacher, images, seed))
    history, note = _history(progress)
    model, summary = compressed_toward(folder, job, teacher, resume=resume, on_progress=note)
    write_goal_report(folder)
    return Result(model, teacher.input_spec, history, summary)


def _settings(teacher: Teacher, images: Any, seed: int) -> dict[str, Any]:
    """Return the settings of a job in a directory: of its images, its seed and its device."""
    source: dict[str, Any] = {}
    if isinstance(images, str) and images in METHODS:
        source["method"] = images
    elif not isinstance(images, Tensor | np.ndarray | str | Path):
        source["method"], source["synthesis"] = _method(images, None)
    elif isinstance(images, str | Path):
        source["images"] = images
    else:
        raise ConfigError("a run in a folder reads its images again: save them, and give the path")
    return source | {
        "seed": seed,
        "device": str(teacher.device),
        "precision": teacher.precision,
    }


def _task_of(config: Any) -> str:
    """Return the task whose configuration this is."""
    for task, kind in STAGE_CONFIGS.items():
        if type(config) is kind:
            return task
    known = ", ".join(kind.__name__ for kind in STAGE_CONFIGS.values())
    raise ConfigError(f"a stage must be one of {known}; got {type(config).__name__}")


def _known_method(name: str) -> str:
    if name not in METHODS:
        close = did_you_mean(name, METHODS)
        raise ConfigError(f"unknown method {name!r}{close}; known: {', '.join(METHODS)}")
    return name


def _method(method: Any, preset: str | None) -> tuple[str, Any]:
    """Return the name and the configuration of a method, given as either."""
    if isinstance(method, str):
        return method, method_config(_known_method(method), None, preset)
    for name, entry in METHODS.items():
        if isinstance(method, entry.config) and type(method) is entry.config:
            return name, method
    raise ConfigError(f"method must be a name or a configuration; got {type(method).__name__}")


def _synthesizer(images: Any, teacher: Teacher, rng: torch.Generator) -> Method | None:
    """Return the synthesizer that `images` is or names; None for images themselves."""
    if isinstance(images, Tensor | np.ndarray | Path):
        return None
    if isinstance(images, str):
        is_file = images not in METHODS and (Path(images).suffix or Path(images).is_dir())
        return None if is_file else open_synthesizer(*_named(images, teacher), rng=rng)
    if hasattr(images, "next_batch"):
        made: Method = images
        if (own := own_rng(made.rng)) is not made.rng:  # it is the same in all processes
            made.rng.set_state(own.get_state())
        return made
    return open_synthesizer(*_named(images, teacher), rng=rng)


def _named(method: Any, teacher: Teacher) -> tuple[str, Teacher, Any]:
    name, config = _method(method, None)
    return name, teacher, config


def _images(images: Any, spec: InputSpec) -> Tensor:
    """Return uint8 images (N, C, H, W) from an array or a path; DataError if they do not fit."""
    if not isinstance(images, Tensor | np.ndarray):
        return load_unlabelled(images, spec)
    given = torch.as_tensor(images)
    if given.dtype != torch.uint8 or given.shape[1:] != spec.shape:
        raise DataError(
            f"images must be uint8 (N, {', '.join(map(str, spec.shape))}); got {given.dtype} "
            f"{tuple(given.shape)}"
        )
    return given.cpu()


def _made_images(images: Any, teacher: Teacher, seed: int, progress: OnProgress | None) -> Tensor:
    """Return images that are given, or those of a method."""
    rng = torch.Generator(teacher.device)
    if isinstance(images, Tensor | np.ndarray) or _synthesizer(images, teacher, rng) is None:
        return _images(images, teacher.input_spec)
    return synthesize(teacher, images, num_images=4000, seed=seed, progress=progress)


def _student(student: Any, teacher: Teacher, rng: torch.Generator) -> nn.Module:
    """Return the student to train: a copy of a network, or what a factory builds."""
    if isinstance(student, nn.Module):
        network = copy.deepcopy(student).to(teacher.device)
        return check_student(network, teacher, type(student).__name__)
    return open_student(student, teacher, rng)
