"""Remove channels from a network where the remaining layers then receive the same inputs."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.errors import TeacherError, first_line
from dreamstill.graph.channel_check import Kept, Narrowed, difference
from dreamstill.graph.channel_groups import ROOTS, ChannelGraph, num_sections
from dreamstill.nn.copying import copy_network

__all__ = ["Cut", "Group", "followed"]


@dataclass(frozen=True)
class Group:
    """Channel group: coupled channels, which can only be removed together."""

    parts: Any
    """torch-pruning's group of all these channels."""
    name: str
    """First layer that produces the channels."""
    makers: list[str]
    """All convolutions and linear layers that produce the channels."""
    width: int
    """Number of channels."""
    sections: int
    """Number of equal parts that lose the same positions, see `num_sections`."""

    def at(self, positions: Tensor) -> list[int]:
        """Return the channels at these positions of every part."""
        starts = torch.arange(self.sections) * (self.width // self.sections)
        return (starts[:, None] + positions.cpu()).flatten().tolist()


class Cut(Narrowed):
    """Network whose channels are removed in place, and the channels that are left.

    Args:
        model: network; switched to eval mode with gradients enabled.
        example: (1, C, H, W) in the input space.

    Raises:
        TeacherError: torch-pruning cannot build a dependency graph of the network.

    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__(model)
        self._graph = ChannelGraph(model, example)
        self.last = self._graph.last_layers()
        """Layers that make the network's outputs, which keep all channels."""

    def groups(self, skipped: Collection[str] = ()) -> Iterator[Group]:
        """Yield the groups that torch-pruning can follow, without those of `skipped` and `last`."""
        graph, ignored, seen = self._graph, {*skipped, *self.last}, set[str]()
        for root in graph.roots:
            if graph.names[root] in seen | ignored:
                continue
            try:
                parts = graph.coupled(root, range(graph.width(root) or 0))
            except Exception:  # the library cannot follow it, so the layer stays unpruned
                continue
            sides = [side for part, _ in parts for side in graph.sides(part)]
            made = list(dict.fromkeys(side.layer for side in sides if not side.inputs))
            seen.update(made)
            names = [name for name in made if isinstance(self.model.get_submodule(name), ROOTS)]
            width = len(parts[0].idxs)
            sections = max(num_sections(part.target.module) for part, _ in parts)
            if not ignored.intersection(made) and width % sections == 0:
                yield Group(parts, names[0], names, width, sections)

    def remove(self, name: str, channels: list[int]) -> None:
        """Remove output channels of a layer, by current index, and all channels coupled to them.

        Raises TeacherError if a layer would have no channels left.
        """
        graph = self._graph
        parts = graph.coupled(self.model.get_submodule(name), channels)
        if not graph.can_remove(parts):
            raise TeacherError(f"{name} would leave a layer without channels")
        for part, indices in parts:
            for side in graph.sides(part):
                width = graph.width(part.target.module, inputs=side.inputs)
                if width is not None:  # a PReLU may share one slope among all channels
                    kept = self.inputs if side.inputs else self.outputs
                    left = kept.get(side.layer, Kept(width, torch.arange(width)))
                    stays = torch.ones(width, dtype=torch.bool)
                    stays[indices] = False
                    kept[side.layer] = Kept(left.width, left.indices[stays])
        parts.prune()


def followed(
    whole: nn.Module, inputs: Tensor, gone: Mapping[str, list[int]]
) -> tuple[Cut, dict[str, str]]:
    """Remove channels from every layer where `difference` finds no error, found by bisection.

    Args:
        whole: network; not modified.
        inputs: (N, C, H, W) in the input space.
        gone: output channels to remove, by layer name; coupled channels are removed too.

    Returns:
        A pruned copy, and the reason of each layer that could not be pruned, by name.

    Raises:
        TeacherError: torch-pruning cannot build a dependency graph of the network.

    """
    best = Cut(copy_network(whole), inputs[:1])
    done: dict[str, list[int]] = {}
    wrong: dict[str, str] = {}

    def search(asked: dict[str, list[int]]) -> None:
        nonlocal best
        cut = Cut(copy_network(whole), inputs[:1])
        try:
            for name, channels in (done | asked).items():
                cut.remove(name, channels)
            reason = difference(whole, cut, inputs)
        except Exception as error:  # the library mixes up indices of operations it does not know
            reason = first_line(error)
        if reason is None:
            best = cut
            done.update(asked)
        elif len(asked) == 1:
            wrong.update(dict.fromkeys(asked, reason))
        else:
            names = list(asked)
            for half in (names[: len(names) // 2], names[len(names) // 2 :]):
                search({name: asked[name] for name in half})

    if gone:
        search(dict(gone))
    return best, wrong
