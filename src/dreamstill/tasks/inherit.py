"""Start a student from its teacher: the most important channels of every layer, cut out and copied.

Source: ours, after "Initializing Models with Larger Ones" (Xu et al., ICLR 2024), which selects
evenly; here a channel is worth the norm of what makes it times the norm of what reads it. The
student is the teacher's architecture with narrower layers. Channels that an addition joins are
chosen together, so residual networks keep their shape.
"""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.errors import SettingsError
from dreamstill.tasks.graph import FLATTEN, POSITIVE, is_one_of, is_size, trace

__all__ = ["inherit"]

ELEMENTWISE: tuple[Any, ...] = (
    *POSITIVE,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Tanh,
    nn.Sigmoid,
)
ADD: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass
class Space:
    """Channels that hang together: one choice serves all who make, pass or read them."""

    makers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    depthwise: list[str] = field(default_factory=list)
    joined: "Space | None" = None

    def root(self) -> "Space":
        """The space that this one became part of."""
        return self if self.joined is None else self.joined.root()

    def carriers(self) -> list[str]:
        """The layers whose outputs are these channels."""
        return self.makers + self.norms + self.depthwise

    def join(self, other: "Space") -> None:
        """Make one of two."""
        mine, its = self.root(), other.root()
        if mine is not its:
            its.joined = mine
            for name in ("makers", "readers", "norms", "depthwise"):
                getattr(mine, name).extend(getattr(its, name))


def inherit(teacher: nn.Module, student: nn.Module) -> nn.Module:
    """Fill `student`, in place, with the channels of `teacher` that are worth most.

    Args:
        teacher: traceable by torch.fx; left as it was, in eval mode.
        student: the same layers by name, each as wide as the teacher's or narrower.

    Returns:
        The student, its convolutions, linear and BatchNorm layers overwritten.

    Raises:
        SettingsError: the student is not a narrower copy, or channels cannot be followed through
            one of the teacher's operations.

    """
    large, small = _layers(teacher), _layers(student)
    if odd := sorted(large.keys() ^ small.keys()):
        raise SettingsError(
            "a student that inherits has the teacher's layers, narrower: "
            f"{odd[0]} is in one of the two alone"
        )
    spaces = _spaces(trace(teacher))
    chosen = [(space, _choose(space, large, small)) for space in spaces]
    inputs = {name: choice for space, choice in chosen for name in space.readers}
    outputs = {name: choice for space, choice in chosen for name in space.carriers()}
    for name, layer in large.items():
        if name not in outputs:
            raise SettingsError(f"{name} is not between input and output: leave inherit out")
        _copy(name, layer, small[name], outputs[name], inputs.get(name))
    return student


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Conv2d, nn.Linear, _BatchNorm)
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}


def _spaces(graph: fx.GraphModule) -> list[Space]:
    """Every space of channels in a graph, the images' own first."""
    modules = dict(graph.named_modules())
    found: list[Space] = []
    at: dict[fx.Node, Space] = {}
    for node in graph.graph.nodes:
        name = str(node.target)
        module = modules.get(name) if node.op == "call_module" else None
        here = [at[arg].root() for arg in node.all_input_nodes if arg in at]
        if node.op == "output" or is_size(node):
            continue
        if node.op == "placeholder":
            at[node] = Space()
            found.append(at[node])
        elif not here or any(name in space.carriers() for space in found):
            raise _unclear(node)
        elif isinstance(module, _BatchNorm):
            here[0].norms.append(name)
            at[node] = here[0]
        elif isinstance(module, nn.Conv2d) and 1 < module.groups == len(module.weight):
            here[0].depthwise.append(name)
            at[node] = here[0]
        elif isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.groups == 1
        ):
            here[0].readers.append(name)
            at[node] = Space(makers=[name])
            found.append(at[node])
        elif is_one_of(node, modules, ADD) and len(here) == 2:
            here[0].join(here[1])
            at[node] = here[0]
        elif is_one_of(node, modules, ELEMENTWISE + FLATTEN):
            at[node] = here[0]
        else:
            raise _unclear(node)
    return [space for space in found if space.joined is None]


def _unclear(node: fx.Node) -> SettingsError:
    return SettingsError(f"channels cannot be followed through {node}: leave inherit out")


@dataclass(frozen=True)
class Choice:
    """Which channels of a space the student has."""

    width: int
    """How many the teacher has."""
    keep: Tensor
    """Indices, ascending."""

    def of_input(self, weight: Tensor) -> Tensor:
        """A reader's weight (N, ...) -> (N, kept, taps, or positions of a flattened map)."""
        return weight.reshape(len(weight), self.width, -1)[:, self.keep]


def _choose(space: Space, large: dict[str, Any], small: dict[str, Any]) -> Choice:
    """The channels worth most, as many as the student has room for."""
    if not space.makers:  # the images' own channels
        width = large[space.readers[0]].weight.shape[1]
        return Choice(width, torch.arange(width))
    widths, rooms = ({len(of[name].weight) for name in space.makers} for of in (large, small))
    if len(rooms) > 1 or max(rooms) > min(widths):
        raise SettingsError(
            f"{space.makers[0]} has {max(rooms)} channels in the student and {min(widths)} in the "
            "teacher: a student that inherits is narrower, and alike on both sides of a sum"
        )
    (width,), (room,) = widths, rooms
    whole = Choice(width, torch.arange(width))
    # after BatchNorm the norm of a filter means nothing, its scale does
    made = [large[name].weight.detach() for name in space.norms or space.makers]
    worth = torch.stack([weight.reshape(width, -1).norm(dim=1) for weight in made]).sum(0)
    if space.readers:
        read = [whole.of_input(large[name].weight.detach()) for name in space.readers]
        worth = worth * torch.cat([r.transpose(0, 1).flatten(1) for r in read], 1).norm(dim=1)
    return Choice(width, worth.argsort(descending=True, stable=True)[:room].sort().values.cpu())


@torch.no_grad()
def _copy(
    name: str, layer: nn.Module, into: nn.Module, output: Choice, read: Choice | None
) -> None:
    """A layer's chosen channels, of its chosen inputs, into the student's."""
    target = into.state_dict()
    for key, value in layer.state_dict().items():
        new = value[output.keep] if value.dim() else value
        if key == "weight" and read is not None:
            new = read.of_input(new)
        if key not in target or target[key].numel() != new.numel():
            raise SettingsError(f"{name}.{key} of the student is not a part of the teacher's")
        target[key].copy_(new.reshape(target[key].shape))
