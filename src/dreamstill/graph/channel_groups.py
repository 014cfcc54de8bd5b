"""Follow the channels of a network through torch-pruning's dependency graph.

The graph assumes that an unknown operation leaves channels in place: `channel_check` verifies it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch_pruning.dependency.index_mapping import (
    _ConcatIndexMapping,
    update_reshape_index_mapping,
)
from torch_pruning.dependency.shape_infer import init_shape_information
from torch_pruning.ops import OPTYPE

from dreamstill.errors import TeacherError, first_line
from dreamstill.quiet import quiet

__all__ = ["ROOTS", "ChannelGraph", "ChannelGroup", "Side", "channel_groups", "num_sections"]

ROOTS = (_ConvNd, nn.Linear)
"""Layers that produce channels."""


def num_sections(layer: nn.Module | nn.Parameter) -> int:
    """Return the number of equal parts into which a layer divides its channels.

    These are the groups of a GroupNorm or convolution; a depthwise one divides none.
    """
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, _ConvNd) and layer.groups != layer.out_channels:
        return layer.groups
    return 1


class Side(NamedTuple):
    """The outputs or the inputs of a layer; a parameter of no such layer has outputs alone."""

    layer: str
    inputs: bool


ChannelGroup = dict[Side, Tensor]
"""Coupled channels of the same layers: by side, each channel's positions (channels, positions)."""


class _Counted(list[Any]):
    """List of a node's edges that can be iterated a limited number of times.

    torch-pruning's traversal never ends in a network that shifts its channels.
    """

    left = 0

    def __iter__(self) -> Iterator[Any]:
        _Counted.left -= 1
        if _Counted.left < 0:
            raise RecursionError("its channels lead to one another without end")
        return super().__iter__()


class _Graph(tp.DependencyGraph):  # type: ignore[misc]
    """Graph that follows no channels through a reshape that splits the axis of a map's channels.

    torch-pruning guesses the number of channels at a reshape from the layers around it: at a
    channel shuffle by hand more with each, and as 0, by which it divides. Where it guesses 0,
    channels stay in place.
    """

    def _build_dependency(self, module2node: Any) -> None:
        super()._build_dependency(module2node)
        init_shape_information(self)
        for node in module2node.values():
            if node.type is not OPTYPE.RESHAPE:
                continue
            before: Any = getattr(node.grad_fn, "_saved_self_sym_sizes", ())
            after = node.grad_fn._input_metadata[0].shape
            more = len(after) > len(before) == 4 and after[1] != before[1]
            if more and tuple(after[-2:]) == tuple(before[2:]):
                node.type = OPTYPE.ELEMENTWISE
                for edge in node.dependencies:
                    edge.index_mapping = [_split_up, _split_up]
                continue
            try:
                update_reshape_index_mapping(self, node)
            except ZeroDivisionError:
                node.type = OPTYPE.ELEMENTWISE


def _split_up(indices: Any) -> Any:
    raise TeacherError("channels are split up by a reshape")


class _PaddedGraph(_Graph):
    """Graph in which `F.pad` moves channels; torch-pruning's own leaves them in place."""

    def build_dependency(self, *args: Any, **kwargs: Any) -> Any:
        """Build the graph; shift the indices of channels that others are padded in front of."""
        super().build_dependency(*args, **kwargs)
        for node in self.module2node.values():
            front, width, back = _padding(node)
            for before in node.inputs if front + back else []:
                for edge in node.dependencies + before.dependencies:
                    if {edge.source, edge.target} == {before, node}:
                        edge.index_mapping[0] = _ConcatIndexMapping(
                            (front, width - back), reverse=edge.source is node
                        )
        return self

    def get_out_channels(self, module_or_node: Any) -> Any:
        """Return the number of channels that a module or node outputs, padding included."""
        node = self.module2node.get(module_or_node, module_or_node)
        front, width, back = _padding(node)
        return width if front + back else super().get_out_channels(module_or_node)


def _padding(node: Any) -> tuple[int, int, int]:
    """Return the number of channels padded in front, of all outputs, and padded at the back."""
    if not hasattr(node.grad_fn, "_saved_pad"):
        return 0, 0, 0
    shape = node.grad_fn._input_metadata[0].shape
    at = 2 * (len(shape) - 2)  # from the last axis to the first
    front, back = node.grad_fn._saved_pad[at : at + 2] or (0, 0)
    return front, shape[1], back


class ChannelGraph:
    """Dependency graph of a network.

    Args:
        model: network; switched to eval mode with gradients enabled.
        example: (N, C, H, W) in the input space.
        padded: follow channels through `F.pad`; then no channels may be removed, because the
            graph holds the widths of the paddings.

    Raises:
        TeacherError: torch-pruning cannot build a dependency graph of the network.

    """

    def __init__(self, model: nn.Module, example: Tensor, *, padded: bool = False) -> None:
        self.model = model.eval().requires_grad_(True)
        try:
            with quiet(), torch.enable_grad():
                graph = _PaddedGraph() if padded else _Graph()
                self._graph = graph.build_dependency(
                    model, example, forward_fn=lambda model, example: model(example)
                )
        except Exception as error:  # the library raises many kinds
            raise TeacherError(
                f"the channels of {type(model).__name__} cannot be followed: {first_line(error)}"
            ) from error
        for node in self._graph.module2node.values():
            node.dependencies = _Counted(node.dependencies)
        self.names = {module: name for name, module in model.named_modules()}
        self.bare = {name: parameter for parameter, name in self._graph._param_to_name.items()}
        """Parameters of no layer that torch-pruning knows, such as a class token, by name."""
        self.roots = [layer for layer in self._graph.module2node if isinstance(layer, ROOTS)]

    def width(self, layer: nn.Module | nn.Parameter, *, inputs: bool = False) -> int | None:
        """Return the number of a layer's outputs, or inputs; None if it has one for all."""
        graph = self._graph
        width: int | None = (graph.get_in_channels if inputs else graph.get_out_channels)(layer)
        return width

    def coupled(self, layer: nn.Module, channels: Sequence[int], *, inputs: bool = False) -> Any:
        """Return torch-pruning's group of all that is coupled to channels of a layer."""
        _Counted.left = 300 + 10 * len(self._graph.module2node)  # a ResNet needs 2 per node
        pruner = self._graph.get_pruner_of_module(layer)
        removal = pruner.prune_in_channels if inputs else pruner.prune_out_channels
        return self._graph.get_pruning_group(layer, removal, channels)

    def sides(self, part: Any) -> list[Side]:
        """Return the sides of a layer that a part of torch-pruning's group is about."""
        graph, layer = self._graph, part.target.module
        if layer not in self.names:  # an operation, or a parameter in `bare`
            return []
        # depthwise convolutions and norms have one function for inputs and outputs
        of = graph.is_out_channel_pruning_fn, graph.is_in_channel_pruning_fn
        return [
            Side(self.names[layer], inputs) for inputs in (False, True) if of[inputs](part.handler)
        ]

    def part(self, name: str) -> nn.Module | nn.Parameter:
        """Return the layer, or the parameter of none, of this name."""
        return self.bare[name] if name in self.bare else self.model.get_submodule(name)

    def can_remove(self, parts: Any) -> bool:
        """Return whether every layer would have channels left."""
        return bool(self._graph.check_pruning_group(parts))

    def last_layers(self) -> list[str]:
        """Return the layers whose outputs reach the end of the network through no other one."""
        nodes = [node for node in self._graph.module2node.values() if not node.outputs]
        seen, found = set(nodes), list[str]()
        for node in nodes:
            if isinstance(node.module, ROOTS):
                found.append(self.names[node.module])
            else:
                new = dict.fromkeys(before for before in node.inputs if before not in seen)
                seen.update(new)
                nodes.extend(new)
        return found

    def only_reader(self, layer: nn.Module) -> nn.Module | None:
        """Return the module that reads a layer's outputs, if it is only one."""
        after = self._graph.module2node[layer].outputs
        return after[0].module if len(after) == 1 else None


def channel_groups(graph: ChannelGraph) -> dict[frozenset[tuple[Side, int]], ChannelGroup]:
    """Return all groups of channels that can be followed.

    The key of a group is its sides, each with its number of positions for a channel.
    """
    seen = defaultdict[Side, set[int]](set)
    members = defaultdict[frozenset[tuple[Side, int]], list[dict[Side, list[int]]]](list)
    for inputs in (False, True):
        for layer in graph.roots:
            done = seen[Side(graph.names[layer], inputs)]
            rest = [n for n in range(graph.width(layer, inputs=inputs) or 0) if n not in done]
            if not rest:
                continue
            try:
                channels = _places(graph, graph.coupled(layer, rest, inputs=inputs).items)
            except Exception:  # the library cannot follow them, so they are in no group
                continue
            for places in channels:
                members[frozenset((side, len(at)) for side, at in places.items())].append(places)
                for side, at in places.items():
                    seen[side].update(at)
    return {
        key: {side: torch.tensor([sorted(places[side]) for places in group]) for side in group[0]}
        for key, group in members.items()
    }


def _places(graph: ChannelGraph, parts: Iterable[Any]) -> list[dict[Side, list[int]]]:
    """Return the positions of each of a group's channels; raise IndexError outside a layer."""
    channels = defaultdict[int, dict[Side, list[int]]](dict)
    for part in parts:
        names = [name for name, bare in graph.bare.items() if bare is part.dep.target.module]
        for side in graph.sides(part.dep) + [Side(name, False) for name in names]:
            width = graph.width(part.dep.target.module, inputs=side.inputs)
            if width is not None and max(part.idxs) >= width:
                raise IndexError(f"{side.layer} has {width} channels")
            for root, at in zip(part.root_idxs, part.idxs, strict=True):
                channels[root].setdefault(side, []).append(at)
    return [places for _, places in sorted(channels.items())]
