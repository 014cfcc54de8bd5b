"""Prune channels to a target in rounds, fine-tuning on synthetic images after each round.

Channel groups and importances come from torch-pruning; `channel_removal` verifies the groups.
Magnitude and BatchNorm scale need no images. Taylor follows DeepInversion (Yin et al. 2020, section
4.3), which to our knowledge sums (g w)^2 over a filter and compares the sums across layers. Here
|g w| is summed over a channel in each layer of its group and averaged over these layers, and the
scores of a group are scaled to a mean of 1, as for the other importances. DeepInversion's latency
term is `latency`: channels of slow layers are removed first.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.compression.config import Importance, PruneConfig, Target
from dreamstill.distillation.finetune import finetune
from dreamstill.distillation.layer_reconstruction import reconstruct
from dreamstill.errors import ConfigError, DreamstillError, TeacherError, first_line
from dreamstill.evaluation import evaluating
from dreamstill.graph.channel_removal import Cut, Group, followed
from dreamstill.graph.tracing import trace, written_size
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import probed_at_once, some_of
from dreamstill.output_spec import OutputKind, decisions
from dreamstill.profiling import count_macs, measure_latency, measure_profile
from dreamstill.progress import OnProgress, under
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
    """Profile of the network after a round."""

    parameters: int
    macs: int
    latency_ms: float
    skipped: tuple[str, ...]
    """Layers that keep all channels because these cannot be followed."""


LayerSeconds = dict[nn.Conv2d | nn.Linear, float]


def layer_seconds(model: nn.Module, image: Tensor, *, num_runs: int = 5) -> LayerSeconds:
    """Return each layer's latency on an image (1, C, H, W) in seconds, the minimum over runs."""
    seconds: LayerSeconds = {}
    started: LayerSeconds = {}

    def now() -> float:
        if image.is_cuda:
            torch.cuda.synchronize()  # kernels run asynchronously
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
    """Return torch-pruning's importance, reduced by the latency that a channel causes."""
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
    widths = dict[frozenset[nn.Module], int]()  # at the time of the measurement

    def importance(group: Any) -> Any:
        scores = base(group)
        if scores is None:
            return None
        layers = frozenset(dep.target.module for dep, _ in group)
        width = widths.setdefault(layers, len(scores))
        saved = sum(seconds.get(layer, 0.0) for layer in layers) / width
        # in units of the score: a channel of average latency loses `latency` times the mean
        return scores - config.latency * scores.mean() * saved / per_channel

    return importance


def prune(
    teacher: Teacher,
    images: Tensor,
    config: PruneConfig,
    *,
    rng: torch.Generator,
    model: nn.Module | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> tuple[nn.Module, list[RoundRecord]]:
    """Remove channels from a copy of a network and fine-tune it towards the teacher, in rounds.

    A layer keeps all its channels if they cannot be followed to every layer that reads them.

    Args:
        teacher: target of the fine-tuning.
        images: uint8 (N, C, H, W), synthetic or real.
        config: see PruneConfig.
        rng: generator for reconstruction and fine-tuning.
        model: network to prune, not modified; default: the teacher.
        on_progress: called after each step.

    Returns:
        The pruned network, and its profile and the unpruned layers after each round.

    Raises:
        ConfigError: the target cannot be met, or the importance is batch-norm and the network has
            no BatchNorm.
        TeacherError: no layer but those that make the logits can be pruned.

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
                on_progress=under(f"round {step} of {config.rounds}", on_progress),
            )
        cost = measure_profile(model, teacher.input_spec)
        skipped = tuple(name for name, _ in model.named_modules() if name in plan.skipped)
        records.append(RoundRecord(cost.parameters, cost.macs, cost.latency_ms.median, skipped))
    return model.eval().requires_grad_(False), records


@dataclass
class Plan:
    """Facts about a network, found before pruning."""

    cost: float
    """Target quantity (MACs, parameters or milliseconds) of the unpruned network."""
    widths: dict[str, int]
    """Number of channels in a layer's channel group, by layer name."""
    skipped: dict[str, str]
    """Reason why a layer's channels cannot be followed, by layer name."""

    def skip(self, groups: Iterable[Group], wrong: dict[str, str], model: nn.Module) -> None:
        """Exclude the groups in `wrong` from further pruning."""
        for group in groups:
            if group.name in wrong:
                written = [_written(model, name) for name in group.makers]
                reason = next(filter(None, written), wrong[group.name])
                self.skipped |= dict.fromkeys(group.makers, reason)


def check_prunable(model: nn.Module, teacher: Teacher, config: PruneConfig) -> Plan:
    """Check, without images, that enough of a network can be pruned; raise as `prune` does."""
    check_trainable(model, teacher.input_spec)  # torch-pruning follows gradients
    check_importance(model, config)
    plan = Plan(_cost(model, teacher, config.target), {}, {})
    inputs = teacher.input_spec.encode(teacher.input_spec.noise(3).to(teacher.device))
    groups = list(Cut(copy_network(model), inputs[:1]).groups())
    rng = torch.Generator().manual_seed(0)
    gone = {}
    for group in groups:
        plan.widths |= dict.fromkeys(group.makers, group.width)
        size = group.width // group.sections
        spare = torch.randperm(size, generator=rng)[_least(group, plan, config) :]
        if len(spare):
            gone[group.name] = group.at(spare)
    cut, wrong = followed(model, inputs, gone)
    plan.skip(groups, wrong, model)
    able = {name for group in groups if group.name in gone for name in group.makers}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and name not in {*cut.last, *able}:
            plan.skipped.setdefault(name, "their channels hang on what cannot lose any")
    if gone.keys() <= wrong.keys():
        raise TeacherError(
            f"no layer of {type(model).__name__} can lose channels: {_reasons(plan.skipped)}"
        )
    if config.target is not Target.LATENCY:
        left = _cost(cut.model, teacher, config.target)
        if left > config.keep * plan.cost:
            raise _unmet(plan, config, left)
    return plan


def _unmet(plan: Plan, config: PruneConfig, left: float) -> ConfigError:
    """Return the error for a target that cannot be met; `left` is the least possible value."""
    skipped = f", {_reasons(plan.skipped)}" if plan.skipped else ""
    return ConfigError(
        f"keep {config.keep} of {config.target.value} cannot be met: {left / plan.cost:.3f} is "
        f"the least with keep_layer {config.keep_layer}{skipped}"
    )


def _reasons(skipped: dict[str, str]) -> str:
    """Format the names of unpruned layers with one reason."""
    names = list(skipped)
    if not names:
        return "they have one each"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    written = [reason for reason in skipped.values() if "written in" in reason]
    return f"{', '.join(names[:3])}{more} skipped: {(written or list(skipped.values()))[0]}"


def _written(model: nn.Module, name: str) -> str | None:
    """Return where the network's code hard-codes a layer's number of channels, or None."""
    weight: Any = model.get_submodule(name).weight
    try:
        return written_size(trace(model), name, len(weight))
    except TeacherError:  # torch-pruning can follow networks that torch.fx cannot trace
        return None


def _least(group: Group, plan: Plan, config: PruneConfig) -> int:
    """Return the least number of channels that each part of a group keeps."""
    size = plan.widths[group.name] / group.sections
    return min(group.width // group.sections, max(1, math.ceil(config.keep_layer * size - 1e-9)))


def _kept(cut: Cut) -> dict[str, Tensor]:
    """Return the indices of the remaining outputs of every layer with weights, by name."""
    return {
        name: cut.outputs[name].indices if name in cut.outputs else torch.arange(len(layer.weight))
        for name, layer in cut.model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear | _BatchNorm) and layer.weight is not None
    }


def check_importance(model: nn.Module, config: PruneConfig) -> None:
    """Raise ConfigError if the importance needs BatchNorm scales and the network has none."""
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
    """Return a copy without the least important channels that meets the goal.

    If the check after pruning fails for a group, the group is excluded and others are chosen.
    """
    inputs = teacher.input_spec.encode(teacher.input_spec.noise(3).to(teacher.device))
    while True:
        trial = Cut(copy_network(model), teacher.input_spec.encode(images[:1].to(teacher.device)))
        groups = list(trial.groups(plan.skipped))
        failed: Exception | None = None
        try:
            _remove_least(trial, plan, teacher, images, config, goal)
        except DreamstillError:
            raise
        except Exception as error:  # the library may remove the wrong channels
            failed = error
        gone = {
            group.name: trial.outputs[group.name].removed().tolist()
            for group in groups
            if group.name in trial.outputs
        }
        cut, wrong = followed(model, inputs, gone)
        plan.skip(groups, wrong, model)
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
        ranked = list[tuple[Group, Tensor, Tensor]]()  # group, scores, removable positions
        for group in trial.groups(plan.skipped):
            with torch.no_grad():
                scores = importance(group.parts)
            if scores is not None:
                scores = scores.view(group.sections, -1).mean(0).cpu()
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
    """Compute gradients of the cross-entropy with the classes that the teacher predicts.

    The divergence from the teacher has no gradient while the network still equals the teacher.
    """
    model.zero_grad()
    images = some_of(images, 256)
    for part in images.split(probed_at_once(teacher.input_spec.shape)):
        shown = teacher.input_spec.encode(part.to(teacher.device))
        with torch.no_grad():
            wanted = teacher(shown)
        loss = _surprise(model(shown), wanted, teacher.output_kind)
        (loss / len(images)).backward()


def _surprise(outputs: Tensor, wanted: Tensor, kind: OutputKind) -> Tensor:
    """Return the summed cross-entropy of decisions with the teacher's.

    Of values it is half the sum of squares, whose gradient shows what they depend on.
    """
    if kind is OutputKind.VALUES:
        return 0.5 * outputs.square().sum()
    classes = decisions(wanted, kind).argmax(1)
    return nn.functional.cross_entropy(decisions(outputs, kind), classes, reduction="sum")
