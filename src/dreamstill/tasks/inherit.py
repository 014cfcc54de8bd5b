"""Start a student from its teacher: the most important channels of every layer, cut out and copied.

Source: ours, after "Initializing Models with Larger Ones" (Xu et al., ICLR 2024), which selects
evenly; here a channel is worth the norm of what makes it times the norm of what reads it. The
student is the teacher's architecture with narrower layers. Channels that an addition joins are
chosen together, so residual networks keep their shape.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.errors import SettingsError
from dreamstill.tasks.graph import Space, channel_spaces, trace

__all__ = ["inherit"]


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
    spaces = channel_spaces(trace(teacher))
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
    if not space.makers:  # the images' own channels, or what an unclear operation makes
        width = large[space.readers[0]].weight.shape[1] if space.readers else 0
        return Choice(width, torch.arange(width))
    widths, rooms = ({len(of[name].weight) for name in space.makers} for of in (large, small))
    if space.unclear and rooms != widths:
        raise SettingsError(
            f"channels cannot be followed through {space.unclear[0]}: {space.makers[0]} must be as "
            "wide in the student as in the teacher, or leave inherit out"
        )
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
