"""Verify that the layers of a network with fewer channels receive the same inputs as before.

torch-pruning assumes that an unknown operation leaves channels in place, which is wrong for code
that flips, sorts or shuffles them or hard-codes their number. The narrower network is therefore
compared with the original, layer by layer: every layer outputs the same random values in both, zero
in the original where channels were removed, and every layer must then receive the same inputs.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from dreamstill.errors import first_line
from dreamstill.nn.hooks import eval_mode, first_input

__all__ = ["LAYERS", "Kept", "Narrowed", "difference"]

NORMS = (nn.LayerNorm, nn.GroupNorm)
"""Norms over several channels: after pruning they normalize over the remaining ones."""
LAYERS = (_ConvNd, nn.Linear, _BatchNorm, _InstanceNorm, nn.PReLU, *NORMS)
"""Layers that can lose channels."""
EXACT, ROUGH = 1e-5, 1e-2
"""Tolerances relative to the largest value: between layers, where only the order of summation
differs, and within layers, where TF32 on a GPU has 10 bits of mantissa."""


@dataclass(frozen=True)
class Kept:
    """The channels of a layer that are left."""

    width: int
    """Number of channels in the original."""
    indices: Tensor
    """Index in the original of each channel that is left."""

    def removed(self) -> Tensor:
        """Return the indices in the original of the other channels."""
        left = torch.zeros(self.width, dtype=torch.bool)
        left[self.indices] = True
        return (~left).nonzero().flatten()


@dataclass
class Narrowed:
    """Network with fewer channels than the original."""

    model: nn.Module
    inputs: dict[str, Kept] = field(default_factory=dict)
    """Inputs that are left, by name of layers that lost inputs."""
    outputs: dict[str, Kept] = field(default_factory=dict)
    """Outputs that are left, by name of layers that lost outputs."""


class _DifferenceError(Exception):
    """Difference between the inputs of a layer in the pruned and in the original network."""


def difference(whole: nn.Module, cut: Narrowed, inputs: Tensor) -> str | None:
    """Compare a pruned network with the original in which the removed channels are zero.

    Args:
        whole: original network; not modified.
        cut: the same layers by name, with channels removed.
        inputs: (N, C, H, W) in the input space.

    Returns:
        One line that describes the first difference, or None if there is none.

    """
    calls: list[tuple[str, Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            with eval_mode(whole), _chance_outputs(whole, cut, calls):
                wanted = whole(inputs)
            given = {name: values for name, values, _ in reversed(calls)}
            with _repeated_outputs(cut, calls):
                _compare("the end of the network", wanted, cut.model(inputs), EXACT)
            if calls:
                raise _DifferenceError(f"{calls[0][0]} does not run any more")
            with eval_mode(whole):
                for name in cut.inputs.keys() | cut.outputs.keys():
                    _compare_layers(name, whole.get_submodule(name), cut, given.get(name))
    except _DifferenceError as error:
        return str(error)
    except Exception as error:  # user code may fail on the new sizes
        return first_line(error)
    return None


@contextmanager
def _chance_outputs(
    whole: nn.Module, cut: Narrowed, calls: list[tuple[str, Tensor, Tensor]]
) -> Iterator[None]:
    """Replace the original network's layer outputs by random values, 0 at removed channels."""
    rng = torch.Generator().manual_seed(0)

    def made(name: str, layer: Any, given: Tensor, output: Tensor) -> Tensor:
        chance = torch.randn(output.shape, generator=rng)
        # small values reveal a softmax over channels, large ones a maximum
        scale = torch.logspace(-1, 1, len(chance)).view(-1, *[1] * (chance.ndim - 1))
        chance = (scale * chance).to(output)
        chance = _zeroed(chance, layer, cut.outputs.get(name))
        calls.append((name, given.clone(), chance))  # later operations may change it in place
        return chance.clone()

    with _replaced_outputs(whole, made):
        yield


@contextmanager
def _repeated_outputs(cut: Narrowed, calls: list[tuple[str, Tensor, Tensor]]) -> Iterator[None]:
    """Compare the inputs of the pruned network's layers and repeat the recorded outputs."""

    def made(name: str, layer: Any, given: Tensor, output: Tensor) -> Tensor:
        before, wanted, chance = calls.pop(0) if calls else ("nothing", given, output)
        if before != name:
            raise _DifferenceError(f"{name} runs where {before} did")
        _compare(name, _part(wanted, layer, cut.inputs.get(name)), given, EXACT)
        chance = _part(chance, layer, cut.outputs.get(name))
        if chance.shape != output.shape:
            raise _DifferenceError(f"{name} puts out {tuple(output.shape)}")
        return chance.clone()

    with _replaced_outputs(cut.model, made):
        yield


@contextmanager
def _replaced_outputs(
    model: nn.Module, made: Callable[[str, Any, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Replace every layer's output by made(name, layer, input, output) inside the context."""
    with ExitStack() as stack:
        for name, layer in model.named_modules():
            if isinstance(layer, LAYERS):
                hook = layer.register_forward_hook(
                    lambda layer, args, kwargs, output, name=name: made(
                        name, layer, first_input(args, kwargs), output
                    ),
                    with_kwargs=True,
                )
                stack.callback(hook.remove)
        yield


def _compare_layers(name: str, before: Any, cut: Narrowed, given: Tensor | None) -> None:
    """Compare a pruned layer with the same channels of the original layer, on equal inputs."""
    after: Any = cut.model.get_submodule(name)
    if given is None or not isinstance(before, LAYERS):
        raise _DifferenceError(f"{name} is not a layer whose channels can be told apart")
    read, made = cut.inputs.get(name), cut.outputs.get(name)
    if isinstance(before, NORMS):
        if isinstance(before, nn.GroupNorm) and made is not None:
            groups = made.indices // (made.width // before.num_groups)
            sizes = groups.unique(return_counts=True)[1]
            if len(sizes) != after.num_groups or (sizes != sizes[0]).any():
                raise _DifferenceError(f"{name} has groups of other channels than before")
        return
    wanted = _part(before(_zeroed(given, before, read)), before, made)
    _compare(name, wanted, after(_part(given, before, read)), ROUGH)


def _axis(values: Tensor, layer: nn.Module, width: int) -> int:
    """Return the channel axis of a layer's input or output."""
    axis = 1
    if isinstance(layer, nn.Linear | nn.LayerNorm):
        axis = values.ndim - 1
    elif isinstance(layer, _ConvNd):
        axis = values.ndim - len(layer.kernel_size) - 1
    if values.shape[axis] == width:
        return axis
    # the network may permute axes
    fitting = [n for n, size in enumerate(values.shape) if size == width]
    if len(fitting) != 1:
        raise _DifferenceError(f"channels of {type(layer).__name__} cannot be told from positions")
    return fitting[0]


def _part(values: Tensor, layer: nn.Module, left: Kept | None) -> Tensor:
    """Return the remaining channels of `values`."""
    if left is None:
        return values
    return values.index_select(_axis(values, layer, left.width), left.indices.to(values.device))


def _zeroed(values: Tensor, layer: nn.Module, left: Kept | None) -> Tensor:
    """Return `values` with the removed channels set to 0."""
    if left is None:
        return values
    return values.index_fill(_axis(values, layer, left.width), left.removed().to(values.device), 0)


def _compare(name: str, wanted: Tensor, got: Tensor, tolerance: float) -> None:
    if wanted.shape != got.shape:
        raise _DifferenceError(f"{name} is given {tuple(got.shape)}, not {tuple(wanted.shape)}")
    rows = wanted.abs().reshape(len(wanted), -1).nan_to_num(posinf=0)
    limit = tolerance * (1 + rows.amax(1)).view(-1, *[1] * (wanted.ndim - 1))
    same = wanted.eq(got) | (wanted.isnan() & got.isnan())  # `eq` covers equal infinities
    if not (same | ((wanted - got).abs() <= limit)).all():
        raise _DifferenceError(f"{name} is given other channels than before")
