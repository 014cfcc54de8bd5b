"""Weight inheritance: start a student with the most important channels of its teacher's layers.

Source: ours, after "Initializing Models with Larger Ones" (Xu et al., ICLR 2024), which selects
evenly; here the importance of a channel is the norm of the weights that make it times the norm of
those that read it. The student has the teacher's architecture with narrower layers. Channels that
an addition joins are chosen together, of the groups of a GroupNorm or convolution as many each or
whole ones, and channels of padding stay so (He et al. 2016, shortcuts of option A): residual
networks keep their shape.
"""

from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dreamstill.errors import ConfigError
from dreamstill.evaluation import device_of
from dreamstill.graph.channel_check import LAYERS, Kept, Narrowed, difference
from dreamstill.graph.channel_groups import (
    ROOTS,
    ChannelGraph,
    ChannelGroup,
    Side,
    channel_groups,
    num_sections,
)
from dreamstill.input_spec import InputSpec
from dreamstill.nn.copying import copy_network

__all__ = ["inherit"]


def inherit(teacher: nn.Module, student: nn.Module, spec: InputSpec) -> dict[str, Tensor]:
    """Fill `student`, in place, with the most important channels of `teacher`.

    All of its parameters and buffers are overwritten.

    Args:
        teacher: left as it was.
        student: the same layers by name, each as wide as the teacher's or narrower.
        spec: input of both networks.

    Returns:
        By layer, which of the teacher's output channels the student has; all where absent.

    Raises:
        ConfigError: the student is not a narrower copy; it is left as it was.
        TeacherError: torch-pruning cannot build a dependency graph of a network.

    """
    large, small = teacher.state_dict(), student.state_dict()
    if odd := sorted(large.keys() ^ small.keys()):
        raise ConfigError(
            f"{odd[0]} is in one of the two networks alone, and a student that inherits has the "
            "layers of its teacher, narrower"
        )
    inputs = spec.encode(spec.noise(3).to(device_of(teacher)))
    trial = copy_network(student).to(inputs.device).eval()
    graphs = [ChannelGraph(copy_network(n), inputs[:1], padded=True) for n in (teacher, trial)]
    kept = _kept(*graphs)
    state = {key: _part(key, value, small[key], teacher, kept) for key, value in large.items()}
    trial.load_state_dict(state)
    if reason := _difference(teacher, trial, kept, inputs):
        raise ConfigError(
            f"the student's channels are not the teacher's: {reason}; make the layers before it "
            "as wide in the student as in the teacher, or leave inherit out"
        )
    student.load_state_dict(state)
    layers = dict(teacher.named_modules())
    return {s.layer: left.indices for s, left in kept.items() if not s.inputs and s.layer in layers}


def _difference(
    teacher: nn.Module, student: nn.Module, kept: dict[Side, Kept], inputs: Tensor
) -> str | None:
    """Return which layer of the student receives other channels than the teacher's, or None."""
    sides: dict[bool, dict[str, Kept]] = {False: {}, True: {}}
    layers = dict(teacher.named_modules())
    for side, left in kept.items():
        if side.layer in layers and not torch.equal(left.indices, torch.arange(left.width)):
            sides[side.inputs][side.layer] = left
    if not sides[False] and not sides[True]:
        return None

    def compared(network: nn.Module) -> str | None:
        return difference(teacher, Narrowed(network, sides[True], sides[False]), inputs)

    # a student with other activations is right if its layers are right inside the teacher
    mixed = copy_network(teacher)
    for name, layer in student.named_modules():
        if isinstance(layer, LAYERS):
            mixed.set_submodule(name, layer)
    reason = compared(student)
    return reason if reason and compared(mixed) else None


def _kept(teacher: ChannelGraph, student: ChannelGraph) -> dict[Side, Kept]:
    """Choose the channels of every group, as many as the student has."""
    groups, targets = channel_groups(teacher), channel_groups(student)
    moves = defaultdict[Side, list[Tensor]](list)
    widths = Counter[Side]()
    for key in [key for key in groups if key in targets]:
        group, target = groups[key], targets[key]
        chosen = _choose(group, target, teacher, student)
        for side, positions in group.items():
            widths[side] += positions.numel()
            moves[side].append(torch.stack([target[side], positions[chosen]]).flatten(1))
    kept = dict[Side, Kept]()
    for side, pairs in moves.items():
        new, old = torch.cat(pairs, 1)
        layer = teacher.part(side.layer)
        if widths[side] == teacher.width(layer, inputs=side.inputs):  # else some are in no group
            kept[side] = Kept(widths[side], old[new.argsort()])
    return kept


def _choose(
    group: ChannelGroup, target: ChannelGroup, teacher: ChannelGraph, student: ChannelGraph
) -> Tensor:
    """Return the indices of the most important channels, as many as the student's group has."""
    name, width = next((side.layer, len(positions)) for side, positions in group.items())
    room = len(next(iter(target.values())))
    if room > width:
        raise ConfigError(
            f"{name} has {room} channels in the student and {width} in the teacher: a student "
            "that inherits is narrower"
        )
    importance = _importance(group, teacher)
    sections = [
        {num_sections(graph.part(side.layer)) for side in group} - {1}
        for graph in (teacher, student)
    ]
    if sections[0] and room < width:
        return _of_sections(name, importance, room, *sections)
    return importance.argsort(descending=True, stable=True)[:room].sort().values


def _importance(group: ChannelGroup, graph: ChannelGraph) -> Tensor:
    """Return each channel's importance; by one side alone where nothing is on the other."""
    made, read = torch.zeros(2, len(next(iter(group.values()))))
    for side, positions in group.items():
        layer: Any = graph.part(side.layer)
        groups = getattr(layer, "groups", 1)
        if not isinstance(layer, ROOTS) or groups > num_sections(layer):  # depthwise
            continue
        if groups > 1 and getattr(layer, "transposed", False):
            continue
        weight, norm = _outputs_first(layer, layer.weight.detach()), graph.only_reader(layer)
        if side.inputs:
            weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
            values = weight.flatten(1).square().sum(1)
        elif isinstance(norm, _BatchNorm) and norm.affine:
            values = norm.weight.detach().abs()
        else:
            values = weight.flatten(1).norm(dim=1)
        (read if side.inputs else made).add_(values.cpu()[positions].sum(1))
    ones = torch.ones_like(made)
    return (made if made.any() else ones) * (read.sqrt() if read.any() else ones)


def _outputs_first(layer: nn.Module, weight: Tensor) -> Tensor:
    """Swap the axes of a transposed convolution's weight, whose inputs are first; or swap back."""
    return weight.transpose(0, 1) if getattr(layer, "transposed", False) else weight


def _of_sections(
    name: str, importance: Tensor, room: int, before: set[int], after: set[int]
) -> Tensor:
    """Choose channels that layers divide into equal parts: as many of each, or whole parts."""
    num, fewer = max(before), max(after, default=1)
    size = len(importance) // num
    if size * num == len(importance):
        parts = importance.view(num, size)
        if before == after and not any(num % n for n in before) and room % num == 0:
            best = parts.argsort(dim=1, descending=True, stable=True)[:, : room // num]
            return (torch.arange(num)[:, None] * size + best.sort(1).values).flatten()
        if len(before) == 1 and len(after) <= 1 and size * fewer == room:
            best = parts.sum(1).argsort(descending=True, stable=True)[:fewer]
            return (best.sort().values[:, None] * size + torch.arange(size)).flatten()
    raise ConfigError(
        f"the channels of {name} are in {num} groups of {size} in the teacher and in {fewer} of "
        f"{room // fewer} in the student: give the student as many groups, or groups as large"
    )


def _part(
    key: str, value: Tensor, target: Tensor, teacher: nn.Module, kept: dict[Side, Kept]
) -> Tensor:
    """Return the student's part of one of the teacher's tensors."""
    name, _, kind = key.rpartition(".")
    layer, of_weight = teacher.get_submodule(name), kind == "weight"
    if left := kept.get(Side(key, False)):  # a parameter of no layer: of its last axis, as in
        axis = max(n for n, size in enumerate(value.shape) if size > 1)  # torch-pruning
        value = value.index_select(axis, left.indices.to(value.device))
    value = _outputs_first(layer, value) if of_weight else value
    sides = [kept.get(Side(name, inputs)) for inputs in (False, True)[: 1 + of_weight]]
    if of_weight and isinstance(layer, _ConvNd) and layer.groups > 1 and not layer.transposed:
        value = _part_of_groups(layer, value, *sides)
    else:
        for axis, left in enumerate(sides):
            if left and value.dim() > axis and value.shape[axis] == left.width:
                value = value.index_select(axis, left.indices.to(value.device))
    value = _outputs_first(layer, value) if of_weight else value
    if value.shape != target.shape:
        raise ConfigError(
            f"{key} of the student is not a part of the teacher's: it would be "
            f"{tuple(value.shape)} and is {tuple(target.shape)}; make it as large as the "
            "teacher's, or leave inherit out"
        )
    return value


def _part_of_groups(
    layer: _ConvNd, weight: Tensor, outputs: Kept | None, inputs: Kept | None
) -> Tensor:
    """Return the remaining part of weights (outputs, inputs of a group, ...).

    They are returned whole if groups would be left with different numbers of inputs.
    """
    made, read = (
        (left.indices if left else torch.arange(width)).to(weight.device)
        for left, width in ((outputs, layer.out_channels), (inputs, layer.in_channels))
    )
    size = layer.in_channels // layer.groups
    own = (made // (layer.out_channels // layer.groups))[:, None] == read // size
    if len(own.sum(1).unique()) > 1:
        return weight
    return weight[made[:, None], (read % size).expand_as(own)[own].view(len(made), -1)]
