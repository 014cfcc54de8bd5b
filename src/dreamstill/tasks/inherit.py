"""Start a student from its teacher: the most important channels of every layer, cut out and copied.

Source: ours, after "Initializing Models with Larger Ones" (Xu et al., ICLR 2024), which selects
evenly; here a channel is worth the norm of what makes it times the norm of what reads it. The
student is the teacher's architecture with narrower layers. Channels that an addition joins are
chosen together, so residual networks keep their shape.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamstill.errors import SettingsError
from dreamstill.tasks.graph import Space, batch_norms, channel_spaces, trace

__all__ = ["inherit"]


def inherit(teacher: nn.Module, student: nn.Module) -> nn.Module:
    """Fill `student`, in place, with the channels of `teacher` that are worth most.

    Args:
        teacher: traceable by torch.fx; left as it was, in eval mode.
        student: the same layers by name, each as wide as the teacher's or narrower.

    Returns:
        The student, all of its parameters and buffers overwritten.

    Raises:
        SettingsError: the student is not a narrower copy; it is left as it was.
        TeacherError: the teacher cannot be traced.

    """
    large, small = teacher.state_dict(), student.state_dict()
    if odd := sorted(large.keys() ^ small.keys()):
        raise SettingsError(
            f"a student that inherits has the teacher's layers, narrower: {odd[0]} is in one of "
            "the two alone"
        )
    graph = trace(teacher)
    norms = batch_norms(graph)
    inputs, outputs = dict[str, Choice](), dict[str, Choice]()
    for space in channel_spaces(graph):
        choice = _choose(space, large, small, norms)
        inputs |= dict.fromkeys(space.readers, choice)
        outputs |= dict.fromkeys(space.carriers(), choice)
    student.load_state_dict(
        {key: _part(key, value, small[key], inputs, outputs) for key, value in large.items()}
    )
    return student


@dataclass(frozen=True)
class Choice:
    """Which channels of a space the student has."""

    width: int
    """How many the teacher has."""
    keep: Tensor
    """Indices, ascending."""

    def of(self, size: int) -> Tensor:
        """Indices into `size` values, a run of them for each channel: flattened maps have more."""
        positions = size // max(self.width, 1)
        return (self.keep[:, None] * positions + torch.arange(positions)).flatten()


Weights = dict[str, Tensor]


def _choose(space: Space, large: Weights, small: Weights, norms: dict[str, str]) -> Choice:
    """The channels worth most, as many as the student has room for."""

    def made_by(name: str) -> Tensor:
        """How much each channel of a layer varies: by its BatchNorm's scale, if it has one."""
        scale = large.get(f"{norms.get(name)}.weight")
        return large[f"{name}.weight"].flatten(1).norm(dim=1) if scale is None else scale.abs()

    if not space.makers:  # the images' own, or what something unclear makes: all stay
        sizes = [large[f"{name}.weight"].shape[1] for name in space.readers]
        sizes += [len(large[key]) for key in _vectors(space, large)]
        width = min(sizes, default=0)
        return Choice(width, torch.arange(width))
    widths, rooms = ({len(of[f"{n}.weight"]) for n in space.makers} for of in (large, small))
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
    worth = torch.stack([made_by(name) for name in space.makers]).sum(0)
    if space.readers:
        read = [large[f"{n}.weight"].transpose(0, 1).reshape(width, -1) for n in space.readers]
        worth = worth * torch.cat(read, 1).norm(dim=1)
    return Choice(width, worth.argsort(descending=True, stable=True)[:room].sort().values.cpu())


def _vectors(space: Space, large: Weights) -> list[str]:
    """Keys of what has one value, or filter, for each channel that is passed on."""
    passed = [f"{name}.{key}" for name in space.norms for key in ("weight", "running_mean")]
    return [key for key in passed + [f"{n}.weight" for n in space.depthwise] if key in large]


def _part(
    key: str, value: Tensor, target: Tensor, inputs: dict[str, Choice], outputs: dict[str, Choice]
) -> Tensor:
    """The student's share of one of the teacher's tensors."""
    name, _, kind = key.rpartition(".")
    if value.dim() and name in outputs:
        value = value[outputs[name].of(len(value))]
    if kind == "weight" and name in inputs:
        value = value[:, inputs[name].of(value.shape[1])]
    if value.shape != target.shape:
        raise SettingsError(
            f"{key} of the student is not a part of the teacher's: it would be "
            f"{tuple(value.shape)} and is {tuple(target.shape)}"
        )
    return value
