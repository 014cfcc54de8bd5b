"""Prune channels to a target, in rounds, fine-tuning on synthetic images after each.

Which channels hang together is torch-pruning's dependency graph, and importances are its own.
Magnitude and BatchNorm scale need no image. Taylor, first order on synthetic batches, stands for
that of DeepInversion (Yin et al. 2020, section 4.3), which to our knowledge sums (g w)^2 over a
filter and compares these sums across layers. Here |g w| is summed over a channel in each layer that
has weights of it, the mean is taken over these layers, and a group's scores are scaled to a mean of
1, as those of the other importances. DeepInversion's latency term is `latency`: a layer's share of
the network's time, per channel, makes slow layers go first.
"""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.errors import DreamstillError, SettingsError, TeacherError, first_line
from dreamstill.evaluate import count_macs, evaluating, measure_cost, measure_latency
from dreamstill.export import quiet
from dreamstill.plain import copy_network
from dreamstill.probe import probed_at_once, some_of
from dreamstill.settings import at_least, none_or_at_least, settings_class, within
from dreamstill.tasks.distill import DistillSettings, Progress
from dreamstill.tasks.finetune import finetune
from dreamstill.tasks.graph import trace
from dreamstill.tasks.reconstruct import reconstruct
from dreamstill.tasks.spaces import channel_spaces, is_padding
from dreamstill.teacher import Teacher, check_trainable, open_teacher

__all__ = [
    "Importance",
    "PruneSettings",
    "RoundRecord",
    "Target",
    "check_importance",
    "library",
    "prune",
]


class Importance(StrEnum):
    """What makes a channel worth keeping."""

    MAGNITUDE = "magnitude"
    BATCH_NORM = "batch-norm"
    TAYLOR = "taylor"


class Target(StrEnum):
    """What is brought down."""

    PARAMETERS = "parameters"
    MACS = "macs"
    LATENCY = "latency"


@settings_class
class PruneSettings:
    """Settings of pruning."""

    keep: float = 0.5
    """Share of the target to keep, at most; in (0, 1)."""
    target: Target = Target.MACS
    """parameters, macs, or the measured latency of one image."""
    importance: Importance = Importance.MAGNITUDE
    """magnitude, batch-norm (the scale of BatchNorm), or taylor on the images (DeepInversion)."""
    latency: float = 0.0
    """Weight of the latency term: at 1 a channel of average time has the mean importance taken off,
    one of a slow layer more. At least 0."""
    rounds: int = 4
    """Prune and fine-tune so many times; at least 1."""
    reconstruct: int = 2048
    """Images on which layers are solved, by least squares, for what they made before the cut;
    at least 2, or 0: they stay as they were cut."""
    finetune: DistillSettings | None = field(
        default_factory=lambda: DistillSettings(steps=500, batch_size=64, lr=1e-3, held_out=256)
    )
    """The fine-tuning after each round; None: no step is taken."""

    def __post_init__(self) -> None:
        within(self, 1e-6, 1 - 1e-6, "keep")
        at_least(self, 0, "latency")
        none_or_at_least(self, 2, "reconstruct")
        at_least(self, 1, "rounds")


@dataclass(frozen=True)
class RoundRecord:
    """A network after a round."""

    parameters: int
    macs: int
    latency_ms: float


def library() -> Any:
    """torch-pruning, which the extra `prune` installs; SettingsError where it is absent."""
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise SettingsError(
            "pruning needs torch-pruning: pip install 'dreamstill[prune]'"
        ) from error


LayerSeconds = dict[nn.Conv2d | nn.Linear, float]


def layer_seconds(model: nn.Module, image: Tensor, *, num_runs: int = 5) -> LayerSeconds:
    """Seconds that each convolution and linear layer takes on one image, the least of some runs."""
    seconds: LayerSeconds = {}
    started: LayerSeconds = {}

    def now() -> float:
        if image.is_cuda:
            torch.cuda.synchronize()  # launches alone are no time
        return time.perf_counter()

    def start(module: Any, args: Any) -> None:
        started[module] = now()

    def stop(module: Any, args: Any, output: Any) -> None:
        took = now() - started[module]
        seconds[module] = min(seconds.get(module, float("inf")), took)

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_pre_hook(start) for layer in layers]
    handles += [layer.register_forward_hook(stop) for layer in layers]
    try:
        with torch.no_grad():
            for _ in range(num_runs):
                model(image)
    finally:
        for handle in handles:
            handle.remove()
    return seconds


def importance_of(settings: PruneSettings, seconds: LayerSeconds) -> Any:
    """torch-pruning's importance, less the latency of the layer that a channel belongs to."""
    tp = library()
    kinds = {
        Importance.MAGNITUDE: tp.importance.GroupMagnitudeImportance,
        Importance.BATCH_NORM: tp.importance.BNScaleImportance,
        Importance.TAYLOR: tp.importance.GroupTaylorImportance,
    }
    base = kinds[settings.importance]()
    if not settings.latency:
        return base
    channels = sum(layer.weight.shape[0] for layer in seconds)
    per_channel = sum(seconds.values()) / channels
    widths = dict[frozenset[nn.Module], int]()  # of when the time was taken

    def importance(group: Any) -> Any:
        scores = base(group)
        if scores is None:
            return None
        layers = frozenset(dep.target.module for dep, _ in group)
        width = widths.setdefault(layers, len(scores))
        saved = sum(seconds.get(layer, 0.0) for layer in layers) / width
        # in the importance's own units: an average channel's time costs `latency` of the mean score
        return scores - settings.latency * scores.mean() * saved / per_channel

    return importance


def prune(
    teacher: Teacher,
    images: Tensor,
    settings: PruneSettings,
    *,
    rng: torch.Generator,
    model: nn.Module | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[nn.Module, list[RoundRecord]]:
    """A narrower copy of a network, fine-tuned towards the teacher, and its cost after each round.

    Args:
        teacher: what the copy is fine-tuned towards.
        images: uint8 (N, C, H, W), synthetic or not.
        settings: see PruneSettings.
        rng: of the reconstruction and the fine-tuning.
        model: what is pruned; default: the teacher itself. Left as it was.
        on_progress: called after each step.

    Raises:
        SettingsError: the target cannot be met, torch-pruning is absent, or the importance is of
            BatchNorm layers and there are none.
        TeacherError: the network has no last linear layer to leave alone, or does not run with
            channels cut.

    """
    library()
    own = model is None or model is teacher.module
    model = copy_network(teacher.module if model is None else model)
    check_trainable(model, teacher.spec)  # the library follows gradients from layer to layer
    last = _last_layer(model, teacher, settings)
    model.requires_grad_(True)
    whole = _cost(model, teacher, settings.target)
    records = []
    of_teacher: dict[str, Tensor] = {}
    for step in range(1, settings.rounds + 1):
        goal = whole * settings.keep ** (step / settings.rounds)
        before = copy_network(model) if settings.reconstruct else model
        try:
            with quiet():
                kept = _narrow(model, last, teacher, images, settings, goal)
        except DreamstillError:
            raise
        except Exception as error:  # the library does not follow every operation
            raise TeacherError(
                f"{type(model).__name__} does not run with channels cut: {first_line(error)}"
            ) from error
        if settings.reconstruct:
            shown = some_of(images, settings.reconstruct).to(teacher.device)
            reconstruct(before, model, kept, teacher.spec.encode(shown), rng=rng)
        if own:
            of_teacher = {
                n: of_teacher[n][left] if of_teacher else left for n, left in kept.items()
            }
        if settings.finetune is not None:
            model = finetune(
                teacher,
                model,
                images,
                settings.finetune,
                rng=rng,
                inherited=of_teacher,
                on_progress=on_progress,
            )
        cost = measure_cost(model, teacher.spec)
        records.append(RoundRecord(cost.parameters, cost.macs, cost.latency_ms.median))
    return model.eval().requires_grad_(False), records


def _last_layer(model: nn.Module, teacher: Teacher, settings: PruneSettings) -> str:
    """Name of the layer whose outputs stay, in a network that can be pruned as asked."""
    last = open_teacher(model, teacher.spec, device=str(teacher.device)).offers.last_linear
    if last is None:
        raise TeacherError("pruning needs a last linear layer: its outputs are the classes")
    check_importance(model, settings)
    return last


def check_importance(model: nn.Module, settings: PruneSettings) -> None:
    """SettingsError for an importance that reads what the network has not."""
    scaled = any(isinstance(m, _BatchNorm) and m.affine for m in model.modules())
    if settings.importance is Importance.BATCH_NORM and not scaled:
        raise SettingsError(
            f"importance {settings.importance.value} reads BatchNorm's scales, and "
            f"{type(model).__name__} has none: take magnitude or taylor"
        )


def _cost(model: nn.Module, teacher: Teacher, target: Target) -> float:
    if target is Target.MACS:
        return count_macs(model, teacher.spec)
    if target is Target.PARAMETERS:
        return sum(p.numel() for p in model.parameters())
    with evaluating(model):
        return measure_latency(model, teacher.spec, device=teacher.device).median


def padded_layers(model: nn.Module) -> list[str]:
    """Layers whose channels are padded further on: the library cuts them and leaves the padding."""
    try:
        spaces = channel_spaces(trace(model))
    except TeacherError:  # torch-pruning follows what torch.fx cannot
        return []
    padded = [space for space in spaces if any(map(is_padding, space.unclear))]
    for space in spaces:
        if space.inlay:
            padded += [space, space.inlay.space]
    return [name for space in padded for name in space.makers]


def _narrow(
    model: nn.Module,
    last: str,
    teacher: Teacher,
    images: Tensor,
    settings: PruneSettings,
    goal: float,
) -> dict[str, Tensor]:
    """Remove the least important channels, a hundredth at a time, until the goal is met.

    Returns the output channels that each convolution, linear and BatchNorm layer has left.
    """
    kinds = (nn.Conv2d, nn.Linear, _BatchNorm)
    names = {m: name for name, m in model.named_modules() if isinstance(m, kinds)}
    kept = {
        name: torch.arange(len(layer.weight))
        for layer, name in names.items()
        if layer.weight is not None  # of a BatchNorm without scale
    }
    example = teacher.spec.encode(images[:1].to(teacher.device))
    model.eval()
    seconds = layer_seconds(model, example) if settings.latency else {}
    pruner = library().pruner.BasePruner(
        model,
        example,
        importance=importance_of(settings, seconds),
        global_pruning=True,
        pruning_ratio=0.99,
        max_pruning_ratio=0.95,
        iterative_steps=100,
        ignored_layers=[
            *(model.get_submodule(name) for name in (last, *padded_layers(model))),
            *(
                m for m in model.modules() if isinstance(m, nn.MultiheadAttention)
            ),  # heads divide it
        ],
    )
    for _ in range(100):
        if settings.importance is Importance.TAYLOR:
            _gradients(model, teacher, images)
        for group in pruner.step(interactive=True):
            for dependency, indices in group:
                name = names.get(dependency.target.module)
                if name in kept and pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                    left = torch.ones(len(kept[name]), dtype=torch.bool)
                    left[indices] = False
                    kept[name] = kept[name][left]
            group.prune()
        model.zero_grad()
        if _cost(model, teacher, settings.target) <= goal:
            return kept
    raise SettingsError(f"keep {settings.keep} of {settings.target.value} cannot be met")


def _gradients(model: nn.Module, teacher: Teacher, images: Tensor) -> None:
    """Fill .grad with that of the cross-entropy with the classes that the teacher names.

    Not of the divergence from the teacher: that is flat where the network is still the teacher.
    """
    model.zero_grad()
    images = some_of(images, 256)
    for part in images.split(probed_at_once(teacher.spec.shape)):
        shown = teacher.spec.encode(part.to(teacher.device))
        with torch.no_grad():
            classes = teacher(shown).argmax(1)
        loss = nn.functional.cross_entropy(model(shown), classes, reduction="sum")
        (loss / len(images)).backward()
