"""Weight inheritance: start a student with the most important channels of its teacher's layers.

Source: ours, after "Initializing Models with Larger Ones" (Xu et al., ICLR 2024), which selects
evenly; here the importance of a channel is the norm of the weights that make it times the norm of
those that read it. The student has the teacher's architecture with narrower layers. Channels that
an addition joins are chosen together, of the groups of a GroupNorm as many each or whole ones, and
channels of padding stay so (He et al. 2016, shortcuts of option A): residual networks keep their
shape.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamstill.errors import ConfigError
from dreamstill.graph.batch_norm_folding import batch_norms
from dreamstill.graph.channel_groups import ChannelGroup, channel_groups
from dreamstill.graph.tracing import trace
from dreamstill.nn.copying import copy_network

__all__ = ["inherit"]


def inherit(teacher: nn.Module, student: nn.Module) -> dict[str, Tensor]:
    """Fill `student`, in place, with the most important channels of `teacher`.

    All of its parameters and buffers are overwritten.

    Args:
        teacher: traceable by torch.fx; left as it was.
        student: the same layers by name, each as wide as the teacher's or narrower.

    Returns:
        By layer, which of the teacher's output channels the student has: for `reconstruct`.

    Raises:
        ConfigError: the student is not a narrower copy; it is left as it was.
        TeacherError: the teacher cannot be traced.

    """
    large, small = teacher.state_dict(), student.state_dict()
    if odd := sorted(large.keys() ^ small.keys()):
        raise ConfigError(
            f"a student that inherits has the teacher's layers, narrower: {odd[0]} is in one of "
            "the two alone"
        )
    graph = trace(teacher)
    groups, places = channel_groups(graph), channel_groups(trace(copy_network(student)))
    shapes = [[(s.makers, s.norms, s.depth()) for s in of] for of in (groups, places)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            "a student that inherits joins, normalizes and pads its layers as the teacher does"
        )
    source = Source(large, batch_norms(graph), groups)
    choices = dict[ChannelGroup, Choice]()
    for group, target in sorted(zip(groups, places, strict=True), key=lambda pair: pair[0].depth()):
        choices[group] = _choose(group, target, source, small, choices)
    inputs = {name: choices[group] for group in groups for name in group.readers}
    outputs = {name: choices[group] for group in groups for name in group.carriers()}
    student.load_state_dict(
        {key: _part(key, value, small[key], inputs, outputs) for key, value in large.items()}
    )
    return {name: choice.keep for name, choice in outputs.items()}


@dataclass(frozen=True)
class Choice:
    """The channels of a group that the student has."""

    width: int
    """Number of the teacher's channels."""
    keep: Tensor
    """Index in the teacher of each of the student's channels."""

    def of(self, size: int) -> Tensor:
        """Return indices into `size` values, several for each channel where maps are flattened."""
        positions = size // max(self.width, 1)
        return (self.keep[:, None] * positions + torch.arange(positions)).flatten()


Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """The teacher's weights and channel groups."""

    weights: Weights
    norms: dict[str, str]
    """By layer, its BatchNorm."""
    groups: list[ChannelGroup]

    def width(self, group: ChannelGroup) -> int:
        """Return the number of channels of a group that a layer or a padding makes."""
        if group.makers:
            return len(self.weights[f"{group.makers[0]}.weight"])
        assert group.padded is not None
        return group.padded.front + self.width(group.padded.group) + group.padded.back

    def importance(self, group: ChannelGroup) -> Tensor:
        """Return each channel's importance; by one side alone where nothing is on the other."""
        made, read = self._made_and_read(group)
        ones = torch.ones_like(made)
        return (made if made.any() else ones) * (read.sqrt() if read.any() else ones)

    def _made_and_read(self, group: ChannelGroup) -> Tensor:
        """Sum scales and squared norms, (2, width), also of the groups that pad this one."""
        made, read = values = torch.zeros(2, self.width(group))
        for name in group.makers:
            weight = self.weights[f"{name}.weight"].flatten(1)
            scale = self.weights.get(f"{self.norms.get(name)}.weight")
            made += (weight.norm(dim=1) if scale is None else scale.abs()).cpu()
        for name in group.readers:
            weight = self.weights[f"{name}.weight"].transpose(0, 1)
            read += weight.reshape(len(read), -1).square().sum(1).cpu()
        for outer in self.groups:
            if outer.padded and outer.padded.group is group:
                values += self._made_and_read(outer)[:, outer.padded.front :][:, : len(made)]
        return values


def _choose(
    group: ChannelGroup,
    target: ChannelGroup,
    source: Source,
    small: Weights,
    choices: dict[ChannelGroup, Choice],
) -> Choice:
    """Choose the most important channels, as many as the student's group has."""
    large, padded, cut = source.weights, group.padded, target.padded
    if not group.makers and not padded:  # the images', or what something unclear makes: all stay
        sizes = [large[f"{name}.weight"].shape[1] for name in group.readers]
        sizes += [len(large[key]) for key in _vectors(group, large)]
        width = min(sizes, default=0)
        return Choice(width, torch.arange(width))
    widths, rooms = ({len(of[f"{n}.weight"]) for n in group.makers} for of in (large, small))
    within = Choice(0, torch.arange(0))
    if padded and cut:
        within = choices[padded.group]
        widths.add(padded.front + within.width + padded.back)
        rooms.add(cut.front + len(within.keep) + cut.back)
    name = group.carriers()[0] if group.carriers() else "what is padded"
    if group.unclear and rooms != widths:
        raise ConfigError(
            f"channels cannot be followed through {group.unclear[0]}: {name} must be as "
            "wide in the student as in the teacher, or leave inherit out"
        )
    room, width = max(rooms), min(widths)
    if len(rooms) > 1 or room - len(within.keep) > width - within.width:
        raise ConfigError(
            f"{name} has {room} channels in the student and {width} in the "
            "teacher: a student that inherits is narrower, and alike on both sides of a sum"
        )
    importance, front = source.importance(group), padded.front if padded else 0
    if group.norm_groups and room < width:
        return Choice(width, _of_groups(name, importance, room, group, target))
    importance[front : front + within.width] = -1  # these are chosen already
    best = importance.argsort(descending=True, stable=True)[: room - len(within.keep)].sort().values
    before, behind = best.tensor_split([cut.front if cut else 0])
    return Choice(width, torch.cat([before, front + within.keep, behind]))


def _of_groups(
    name: str, importance: Tensor, room: int, group: ChannelGroup, target: ChannelGroup
) -> Tensor:
    """Choose channels that a norm divides into groups: as many of each, or whole groups."""
    num_groups, fewer = group.norm_groups[0], target.norm_groups[0]
    size = len(importance) // num_groups
    alike = {*group.norm_groups} == {num_groups} and {*target.norm_groups} == {fewer}
    if alike and size * num_groups == len(importance) and not group.padded:
        parts = importance.view(num_groups, size)
        if num_groups == fewer:
            best = parts.argsort(dim=1, descending=True, stable=True)[:, : room // num_groups]
            return (torch.arange(num_groups)[:, None] * size + best.sort(1).values).flatten()
        if size * fewer == room:
            best = parts.sum(1).argsort(descending=True, stable=True)[:fewer]
            return (best.sort().values[:, None] * size + torch.arange(size)).flatten()
    raise ConfigError(
        f"{name} is normalized in {num_groups} groups of {size} channels in the teacher and in "
        f"{fewer} of {room // fewer} in the student: give the student as many groups, or groups "
        "as large"
    )


def _vectors(group: ChannelGroup, large: Weights) -> list[str]:
    """Return the keys of tensors with one value, or filter, for each channel passed on."""
    passed = [f"{name}.{key}" for name in group.norms for key in ("weight", "running_mean")]
    return [key for key in passed + [f"{n}.weight" for n in group.depthwise] if key in large]


def _part(
    key: str, value: Tensor, target: Tensor, inputs: dict[str, Choice], outputs: dict[str, Choice]
) -> Tensor:
    """Return the student's part of one of the teacher's tensors."""
    name, _, kind = key.rpartition(".")
    if value.dim() and name in outputs:
        value = value[outputs[name].of(len(value))]
    if kind == "weight" and name in inputs:
        value = value[:, inputs[name].of(value.shape[1])]
    if value.shape != target.shape:
        raise ConfigError(
            f"{key} of the student is not a part of the teacher's: it would be "
            f"{tuple(value.shape)} and is {tuple(target.shape)}"
        )
    return value
