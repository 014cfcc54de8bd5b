"""Find groups of coupled channels by following them through a network's graph."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dreamstill.graph.layer_pairs import flattens
from dreamstill.graph.tracing import is_one_of, is_size, layer_at
from dreamstill.nn.op_sets import ELEMENTWISE, JOIN

__all__ = ["ChannelGroup", "channel_groups"]


@dataclass(eq=False)
class ChannelGroup:
    """Coupled channels: layers that must all keep the same ones."""

    makers: list[str] = field(default_factory=list)
    """Convolutions and linear layers that output the channels; empty for the image channels."""
    readers: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    norm_groups: list[int] = field(default_factory=list)
    """Number of groups of each norm over several channels."""
    depthwise: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    """Operations through which the channels cannot be followed."""
    padded: "PaddedGroup | None" = None
    joined: "ChannelGroup | None" = None

    def root(self) -> "ChannelGroup":
        """Return the group that this one was merged into, or itself."""
        return self if self.joined is None else self.joined.root()

    def carriers(self) -> list[str]:
        """Return the layers whose outputs are these channels."""
        return self.makers + self.norms + self.depthwise

    def depth(self) -> int:
        """Return the number of padded groups nested in this one."""
        return self.padded.group.depth() + 1 if self.padded else 0

    def join(self, other: "ChannelGroup") -> None:
        """Merge another group into this one."""
        if self is not other:
            other.joined = self
            for name in ("makers", "readers", "norms", "norm_groups", "depthwise", "unclear"):
                getattr(self, name).extend(getattr(other, name))
            self.padded = self.padded or other.padded


@dataclass(frozen=True)
class PaddedGroup:
    """All channels of another group, with `front` and `back` channels of padding around them."""

    of: ChannelGroup
    front: int
    back: int

    @property
    def group(self) -> ChannelGroup:
        """Return the group that the padded channels belong to after merging."""
        return self.of.root()


def channel_groups(graph: fx.GraphModule) -> list[ChannelGroup]:
    """Return all channel groups of a graph, that of the images first.

    Channels are followed through normalization, depthwise convolutions, pooling, flattening, sums,
    products, padding and the functions of `ELEMENTWISE`. Groups that reach any other operation, or
    the output of the network, are marked as unclear.
    """
    modules = dict(graph.named_modules())
    found = [ChannelGroup()]
    at: dict[fx.Node, ChannelGroup] = {}
    for node in graph.graph.nodes:
        here = list(dict.fromkeys(at[arg].root() for arg in node.all_input_nodes if arg in at))
        if node.op == "placeholder":
            at[node] = found[0]
        elif here and not is_size(node):
            at[node] = _after(node, here, found, modules)
    return [group for group in found if group.joined is None]


def _after(
    node: fx.Node,
    here: Sequence[ChannelGroup],
    found: list[ChannelGroup],
    modules: dict[str, nn.Module],
) -> ChannelGroup:
    """Return the group of a node's output from those of its inputs; add new groups to `found`."""
    name, first = str(node.target), here[0]
    module = modules.get(name) if node.op == "call_module" else None
    again = next((group.root() for group in found if name in group.carriers()), None)
    if node.op == "output":
        mark(node, *here)
        return first
    if again is not None:
        mark(node, *here, again)
        return again
    if (norm_groups := _norm_groups(module, first, modules)) is not None:
        first.norms.append(name)
        first.norm_groups.extend(norm_groups)
        return first
    if isinstance(module, nn.Conv2d) and (
        1 < module.groups == module.in_channels == module.out_channels
    ):
        first.depthwise.append(name)
        return first
    if (layer := layer_at(node, modules)) is not None:
        by_linear = any(isinstance(modules[maker], nn.Linear) for maker in first.makers)
        if by_linear and layer.weight.shape[1] != width(first, modules):  # flattened (N, L, C)
            mark(node, first)
        first.readers.append(name)
        return _new(found, ChannelGroup(makers=[name]))
    if is_one_of(node, modules, JOIN):
        return _joined(node, here, found[0], modules)
    if (
        is_one_of(node, modules, ELEMENTWISE)
        or flattens(node, modules)
        or _takes_pixels(node)
        or _averages_pixels(node)
        or _pads_pixels(node)
    ):
        return first
    if (added := _pads_channels(node)) and width(first, modules):
        return _new(found, ChannelGroup(padded=PaddedGroup(first, *added)))
    makers = [name] if isinstance(module, nn.Conv2d | nn.Linear) else []
    group = _new(found, ChannelGroup(makers=makers))
    mark(node, *here, group)
    return group


def _norm_groups(
    module: nn.Module | None, group: ChannelGroup, modules: Mapping[str, nn.Module]
) -> list[int] | None:
    """Return the number of groups of a norm over several channels, as a list.

    The list is empty for norms of single channels; the result is None for other modules.
    """
    if isinstance(module, _BatchNorm | _InstanceNorm):
        return []
    if isinstance(module, nn.GroupNorm):
        return [module.num_groups]
    if isinstance(module, nn.LayerNorm) and all(
        isinstance(modules[maker], nn.Linear) for maker in group.makers
    ):
        return [1] if module.normalized_shape == (width(group, modules),) else None
    return None


def _new(found: list[ChannelGroup], group: ChannelGroup) -> ChannelGroup:
    found.append(group)
    return group


def _joined(
    node: fx.Node,
    here: Sequence[ChannelGroup],
    images: ChannelGroup,
    modules: Mapping[str, nn.Module],
) -> ChannelGroup:
    """Return the merged group of a sum or product; mark groups that cannot be merged."""
    sizes = [width(group, modules) for group in here]
    widest = here[sizes.index(max(sizes))]
    padded_ones = {(group.padded.group, group.padded.front) for group in here if group.padded}
    alike = len({*sizes} - {0}) == 1 and images not in here and len(padded_ones) < 2
    if len(here) == 1 or alike:
        for group in here:
            widest.join(group)
    else:
        mark(node, *here)
    return widest


def width(group: ChannelGroup, modules: Mapping[str, nn.Module]) -> int:
    """Return the number of channels of a group; 0 if no layer outputs them."""
    if group.padded and not group.makers:
        return group.padded.front + width(group.padded.group, modules) + group.padded.back
    weights: Any = [modules[name].weight for name in group.makers[:1]]
    return sum(map(len, weights))


def mark(node: fx.Node, *groups: ChannelGroup) -> None:
    """Record in each group that its channels cannot be followed through a node."""
    for group in groups:
        group.unclear.append(str(node.target if node.op == "call_module" else node))


def _takes_pixels(node: fx.Node) -> bool:
    """Return whether a node is x[:, :, rows, columns], which keeps all channels."""
    index = node.args[1] if node.target is operator.getitem else None
    return isinstance(index, tuple) and index[:2] == (slice(None), slice(None))


def _padding(node: fx.Node) -> list[int]:
    """Return the widths given to F.pad, from the last axis to the first; [] for other nodes."""
    widths = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    if node.target is not F.pad or not isinstance(widths, tuple | list):
        return []
    numbers = list(widths)
    while len(numbers) > 6 and numbers[-2:] == [0, 0]:  # batch axis
        del numbers[-2:]
    return numbers


def _pads_pixels(node: fx.Node) -> bool:
    """Return whether a node pads height and width only."""
    widths = _padding(node)
    return bool(widths) and not any(widths[4:])


def _pads_channels(node: fx.Node) -> tuple[int, int] | None:
    """Return the numbers of channels padded in front and at the back; None for other nodes."""
    match _padding(node):
        case [_, _, _, _, int(front), int(back)] if front >= 0 and back >= 0:
            return front, back
    return None


def _averages_pixels(node: fx.Node) -> bool:
    """Return whether a node is a mean over height and width, such as x.mean((2, 3))."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    dims = dims if isinstance(dims, tuple | list) else (dims,)
    return node.target in (torch.mean, "mean") and all(d in (2, 3, -1, -2) for d in dims)
