"""Prune channels to a target, in rounds, fine-tuning on synthetic images after each.

Which channels hang together is torch-pruning's dependency graph, looked over in `channels`, and
importances are its own.
Magnitude and BatchNorm scale need no image. Taylor, first order on synthetic batches, stands for
that of DeepInversion (Yin et al. 2020, section 4.3), which to our knowledge sums (g w)^2 over a
filter and compares these sums across layers. Here |g w| is summed over a channel in each layer that
has weights of it, the mean is taken over these layers, and a group's scores are scaled to a mean of
1, as those of the other importances. DeepInversion's latency term is `latency`: a layer's share of
the network's time, per channel, makes slow layers go first.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.compression.channel_removal import Cut, Group, followed, library
from dreamstill.compression.config import Importance, PruneConfig, Target
from dreamstill.distillation.finetune import finetune
from dreamstill.distillation.layer_reconstruction import reconstruct
from dreamstill.errors import ConfigError, DreamstillError, TeacherError, first_line
from dreamstill.evaluation import evaluating
from dreamstill.graph.tracing import trace, written_size
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import probed_at_once, some_of
from dreamstill.profiling import count_macs, measure_latency, measure_profile
from dreamstill.progress import Progress
from dreamstill.teacher import Teacher, check_trainable

__all__ = [
    "Importance",
    "PruneConfig",
    "RoundRecord",
    "Target",
    "check_importance",
    "check_prunable",
    "prune",
]


@dataclass(frozen=True)
class RoundRecord:
    """A network after a round."""

    parameters: int
    macs: int
    latency_ms: float
    left_whole: tuple[str, ...]
    """Layers whose channels cannot be followed: they keep all of them."""


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


def importance_of(config: PruneConfig, seconds: LayerSeconds) -> Any:
    """torch-pruning's importance, less the latency of the layer that a channel belongs to."""
    tp = library()
    kinds = {
        Importance.MAGNITUDE: tp.importance.GroupMagnitudeImportance,
        Importance.BATCH_NORM: tp.importance.BNScaleImportance,
        Importance.TAYLOR: tp.importance.GroupTaylorImportance,
    }
    base = kinds[config.importance]()
    if not config.latency:
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
        return scores - config.latency * scores.mean() * saved / per_channel

    return importance


def prune(
    teacher: Teacher,
    images: Tensor,
    config: PruneConfig,
    *,
    rng: torch.Generator,
    model: nn.Module | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[nn.Module, list[RoundRecord]]:
    """Remove channels from a copy of a network and fine-tune it towards the teacher, in rounds.

    Layers whose channels cannot be followed to all that read them keep them: see `channels`.

    Args:
        teacher: what the copy is fine-tuned towards.
        images: uint8 (N, C, H, W), synthetic or not.
        config: see PruneConfig.
        rng: of the reconstruction and the fine-tuning.
        model: what is pruned; default: the teacher itself. Left as it was.
        on_progress: called after each step.

    Returns:
        The narrower network, and its cost and the layers left whole after each round.

    Raises:
        ConfigError: the target cannot be met, torch-pruning is absent, or the importance is of
            BatchNorm layers and there are none.
        TeacherError: the network has no last linear layer to leave alone, or no other layer
            whose channels can be followed.

    """
    own = model is None or model is teacher.module
    model = copy_network(teacher.module if model is None else model)
    plan = check_prunable(model, teacher, config)
    records, of_teacher = [], dict[str, Tensor]()
    for step in range(1, config.rounds + 1):
        goal = plan.cost * config.keep ** (step / config.rounds)
        cut = _narrow(before := model, plan, teacher, images, config, goal)
        model, kept = cut.model, _kept(cut)
        if config.reconstruct:
            shown = some_of(images, config.reconstruct).to(teacher.device)
            reconstruct(before, model, kept, teacher.input_spec.encode(shown), rng=rng)
        if own:
            of_teacher = {
                n: of_teacher[n][left] if of_teacher else left for n, left in kept.items()
            }
        if config.finetune is not None:
            model = finetune(
                teacher,
                model,
                images,
                config.finetune,
                rng=rng,
                inherited=of_teacher,
                on_progress=on_progress,
            )
        cost = measure_profile(model, teacher.input_spec)
        whole = tuple(name for name, _ in model.named_modules() if name in plan.whole)
        records.append(RoundRecord(cost.parameters, cost.macs, cost.latency_ms.median, whole))
    return model.eval().requires_grad_(False), records


@dataclass
class Plan:
    """What is known of a network before anything is removed for good."""

    last: str
    """The layer whose outputs are the classes."""
    cost: float
    """Of the whole network, in terms of the target."""
    widths: dict[str, int]
    """By layer that makes channels, how many its group has."""
    whole: dict[str, str]
    """Layers whose channels cannot be followed, and why."""

    def leave(self, groups: Iterable[Group], wrong: dict[str, str], model: nn.Module) -> None:
        """Let the groups that came out wrong keep their channels from now on."""
        for group in groups:
            if group.name in wrong:
                written = [_written(model, name) for name in group.makers]
                reason = next(filter(None, written), wrong[group.name])
                self.whole |= dict.fromkeys(group.makers, reason)


def check_prunable(model: nn.Module, teacher: Teacher, config: PruneConfig) -> Plan:
    """Find what of a network can go, and see that it is enough; no image is looked at.

    Raises what `prune` raises.
    """
    check_trainable(model, teacher.input_spec)  # the library follows gradients from layer to layer
    last = _last_layer(model, teacher, config)
    plan = Plan(last, _cost(model, teacher, config.target), {}, {})
    inputs = _chance_inputs(teacher)
    groups = list(Cut(copy_network(model), inputs[:1]).groups([last]))
    rng = torch.Generator().manual_seed(0)
    gone = {}
    for group in groups:
        plan.widths |= dict.fromkeys(group.makers, group.width)
        size = group.width // group.parcels
        spare = torch.randperm(size, generator=rng)[_least(group, plan, config) :]
        if len(spare):
            gone[group.name] = group.at(spare)
    cut, wrong = followed(model, inputs, gone)
    plan.leave(groups, wrong, model)
    able = {name for group in groups if group.name in gone for name in group.makers}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and name not in {last, *able}:
            plan.whole.setdefault(name, "their channels hang on what cannot lose any")
    if gone.keys() <= wrong.keys():
        raise TeacherError(
            f"no layer of {type(model).__name__} can lose channels: {_reasons(plan.whole)}"
        )
    if config.target is not Target.LATENCY:
        left = _cost(cut.model, teacher, config.target)
        if left > config.keep * plan.cost:
            raise _unmet(plan, config, left)
    return plan


def _chance_inputs(teacher: Teacher) -> Tensor:
    """Three images of noise, in the input space."""
    rng = torch.Generator().manual_seed(0)
    size = (3, *teacher.input_spec.shape)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=rng)
    return teacher.input_spec.encode(images.to(teacher.device))


def _unmet(plan: Plan, config: PruneConfig, left: float) -> ConfigError:
    """The error of a target that is out of reach."""
    whole = f", {_reasons(plan.whole)}" if plan.whole else ""
    return ConfigError(
        f"keep {config.keep} of {config.target.value} cannot be met: {left / plan.cost:.3f} is "
        f"the least with keep_layer {config.keep_layer}{whole}"
    )


def _reasons(whole: dict[str, str]) -> str:
    """Layers that are left whole, the first with its reason."""
    names = list(whole)
    if not names:
        return "they have one each"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    written = [reason for reason in whole.values() if "written in" in reason]
    return f"{', '.join(names[:3])}{more} left whole: {(written or list(whole.values()))[0]}"


def _written(model: nn.Module, name: str) -> str | None:
    """Where a layer's number of channels is written into the network's code."""
    weight: Any = model.get_submodule(name).weight
    try:
        return written_size(trace(model), name, len(weight))
    except TeacherError:  # torch-pruning follows what torch.fx cannot
        return None


def _least(group: Group, plan: Plan, config: PruneConfig) -> int:
    """How many channels of each of its parcels a group keeps at least."""
    size = plan.widths[group.name] / group.parcels
    return min(group.width // group.parcels, max(1, math.ceil(config.keep_layer * size - 1e-9)))


def _kept(cut: Cut) -> dict[str, Tensor]:
    """Of each convolution, linear and BatchNorm layer with weights, the outputs that are left."""
    return {
        name: mask.nonzero().flatten()
        for name, layer in cut.model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear | _BatchNorm) and layer.weight is not None
        for mask in [cut.outputs.get(name, torch.ones(len(layer.weight), dtype=torch.bool))]
    }


def _last_layer(model: nn.Module, teacher: Teacher, config: PruneConfig) -> str:
    """Name of the layer whose outputs stay, in a network that can be pruned as asked."""
    last = Teacher(model, teacher.input_spec, device=str(teacher.device)).capabilities.last_linear
    if last is None:
        raise TeacherError("pruning needs a last linear layer: its outputs are the classes")
    check_importance(model, config)
    return last


def check_importance(model: nn.Module, config: PruneConfig) -> None:
    """ConfigError for an importance that reads what the network has not."""
    scaled = any(isinstance(m, _BatchNorm) and m.affine for m in model.modules())
    if config.importance is Importance.BATCH_NORM and not scaled:
        raise ConfigError(
            f"importance {config.importance.value} reads BatchNorm's scales, and "
            f"{type(model).__name__} has none: take magnitude or taylor"
        )


def _cost(model: nn.Module, teacher: Teacher, target: Target) -> float:
    if target is Target.MACS:
        return count_macs(model, teacher.input_spec)
    if target is Target.PARAMETERS:
        return sum(p.numel() for p in model.parameters())
    with evaluating(model):
        return measure_latency(model, teacher.input_spec, device=teacher.device).median


def _narrow(
    model: nn.Module,
    plan: Plan,
    teacher: Teacher,
    images: Tensor,
    config: PruneConfig,
    goal: float,
) -> Cut:
    """A copy without the least important channels, cut so that the goal is met.

    Where layers read anything else after it, the makers are left whole and others chosen.
    """
    inputs = _chance_inputs(teacher)
    while True:
        trial = Cut(copy_network(model), teacher.input_spec.encode(images[:1].to(teacher.device)))
        groups = list(trial.groups([plan.last, *plan.whole]))
        failed: Exception | None = None
        try:
            _remove_least(trial, plan, teacher, images, config, goal)
        except DreamstillError:
            raise
        except Exception as error:  # where the library took channels wrong
            failed = error
        gone = {
            group.name: (~trial.outputs[group.name]).nonzero().flatten().tolist()
            for group in groups
            if group.name in trial.outputs
        }
        cut, wrong = followed(model, inputs, gone)
        plan.leave(groups, wrong, model)
        if failed is not None and not wrong:
            raise TeacherError(
                f"{type(model).__name__} does not run with channels cut: {first_line(failed)}"
            ) from failed
        if not wrong:
            return cut


def _remove_least(
    trial: Cut,
    plan: Plan,
    teacher: Teacher,
    images: Tensor,
    config: PruneConfig,
    goal: float,
) -> None:
    """Remove the least important channels, a hundredth at a time, until the goal is met."""
    example = teacher.input_spec.encode(images[:1].to(teacher.device))
    seconds = layer_seconds(trial.model, example) if config.latency else {}
    importance = importance_of(config, seconds)
    total = 0
    for step in range(1, 101):
        if config.importance is Importance.TAYLOR:
            _gradients(trial.model, teacher, images)
        ranked = list[tuple[Group, Tensor, Tensor]]()  # group, scores, positions that can go
        for group in trial.groups([plan.last, *plan.whole]):
            with torch.no_grad():
                scores = importance(group.parts)
            if scores is not None:
                scores = scores.view(group.parcels, -1).mean(0).cpu()
                spare = scores.argsort()[: len(scores) - _least(group, plan, config)]
                ranked.append((group, scores, spare))
        trial.model.zero_grad()
        count = sum(len(scores) for _, scores, _ in ranked)
        total = total or count
        scores = torch.cat([scores[spare] for _, scores, spare in ranked] or [torch.empty(0)])
        if not len(scores):
            raise _unmet(plan, config, _cost(trial.model, teacher, config.target))
        num_gone = min(count - int(total * (1 - 0.0099 * step)), len(scores))
        if num_gone > 0:
            threshold = scores.sort().values[num_gone - 1]
            for group, scores, spare in ranked:
                if len(gone := spare[scores[spare] <= threshold]):
                    trial.remove(group.name, group.at(gone))
        if _cost(trial.model, teacher, config.target) <= goal:
            return
    raise _unmet(plan, config, _cost(trial.model, teacher, config.target))


def _gradients(model: nn.Module, teacher: Teacher, images: Tensor) -> None:
    """Fill .grad with that of the cross-entropy with the classes that the teacher names.

    Not of the divergence from the teacher: that is flat where the network is still the teacher.
    """
    model.zero_grad()
    images = some_of(images, 256)
    for part in images.split(probed_at_once(teacher.input_spec.shape)):
        shown = teacher.input_spec.encode(part.to(teacher.device))
        with torch.no_grad():
            classes = teacher(shown).argmax(1)
        loss = nn.functional.cross_entropy(model(shown), classes, reduction="sum")
        (loss / len(images)).backward()
