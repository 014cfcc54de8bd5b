"""Remove channels from a network and verify that the remaining layers receive the same inputs.

torch-pruning's dependency graph finds the coupled channels. It assumes that an unknown operation
leaves channels in place, which is wrong for code that flips, sorts or shuffles them or hard-codes
their number. The pruned network is therefore compared with the original, layer by layer: every
layer outputs the same random values in both, zero in the original where channels were removed, and
every layer must then receive the same inputs.
"""

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from dreamstill.errors import ConfigError, TeacherError, first_line
from dreamstill.exporters.formats import quiet
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import eval_mode, first_input

__all__ = ["Cut", "Group", "difference", "followed", "library"]

NORMS = (nn.LayerNorm, nn.GroupNorm)
"""Norms over several channels: after pruning they normalize over the remaining ones."""
LAYERS = (_ConvNd, nn.Linear, _BatchNorm, _InstanceNorm, nn.PReLU, *NORMS)
"""Layers that can lose channels."""
ROOTS = (_ConvNd, nn.Linear)
"""Layers that produce channels."""
EXACT, ROUGH = 1e-5, 1e-2
"""Tolerances relative to the largest value: between layers, where only the order of summation
differs, and within layers, where TF32 on a GPU has 10 bits of mantissa."""


def library() -> Any:
    """Import torch-pruning; raise ConfigError if the extra `prune` is not installed."""
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise ConfigError("pruning needs torch-pruning: pip install 'dreamstill[prune]'") from error


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
    parcels: int
    """Number of equal parts that lose the same positions: groups of a GroupNorm or convolution."""

    def at(self, positions: Tensor) -> list[int]:
        """Return the channels at these positions of every part."""
        starts = torch.arange(self.parcels) * (self.width // self.parcels)
        return (starts[:, None] + positions.cpu()).flatten().tolist()


class Cut:
    """Network whose channels are removed in place, with masks of the channels that remain.

    Args:
        model: network; switched to eval mode with gradients enabled.
        example: (1, C, H, W) in the input space.

    Raises:
        TeacherError: torch-pruning cannot build a dependency graph of the network.

    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model.eval().requires_grad_(True)
        self.inputs: dict[str, Tensor] = {}
        """Masks (original width,) of the remaining inputs, by name of layers that lost inputs."""
        self.outputs: dict[str, Tensor] = {}
        """Masks of the remaining outputs, by name of layers that lost outputs."""
        try:
            with quiet(), torch.enable_grad():
                self._graph = library().DependencyGraph().build_dependency(model, example)
        except ConfigError:
            raise
        except Exception as error:  # the library raises many kinds
            raise TeacherError(
                f"the channels of {type(model).__name__} cannot be followed: {first_line(error)}"
            ) from error
        for node in self._graph.module2node.values():
            node.dependencies = _Counted(node.dependencies)
        self._names = {module: name for name, module in model.named_modules()}

    def groups(self, skipped: Collection[str]) -> Iterator[Group]:
        """Yield the groups that torch-pruning can follow and that include no layer of `skipped`."""
        ignored = {self.model.get_submodule(name) for name in skipped}
        seen = set[nn.Module]()
        for root in list(self._graph.module2node):
            if not isinstance(root, ROOTS) or root in seen or root in ignored:
                continue
            try:
                parts = self._group(root, list(range(self._graph.get_out_channels(root))))
            except Exception:  # the library cannot follow it, so the layer stays unpruned
                continue
            made = [
                part.target.module
                for part, _ in parts
                if self._graph.is_out_channel_pruning_fn(part.handler)
            ]
            seen.update(made)
            names = [
                self._names[layer] for layer in dict.fromkeys(made) if isinstance(layer, ROOTS)
            ]
            width, parcels = len(parts[0].idxs), self._parcels(parts)
            if not ignored.intersection(made) and width % parcels == 0:
                yield Group(parts, names[0], names, width, parcels)

    def _group(self, root: nn.Module, channels: list[int]) -> Any:
        """Return torch-pruning's group of a layer's output channels."""
        _Counted.left = 300 + 10 * len(self._graph.module2node)  # a ResNet needs 2 per node
        pruning = self._graph.get_pruner_of_module(root).prune_out_channels
        return self._graph.get_pruning_group(root, pruning, channels)

    def _parcels(self, parts: Any) -> int:
        """Return the number of equal parts into which its layers divide a group's channels."""
        found = {1}
        for part, _ in parts:
            module = part.target.module
            if isinstance(module, nn.GroupNorm):
                found.add(module.num_groups)
            elif isinstance(module, _ConvNd) and module.groups != module.out_channels:
                found.add(module.groups)
        return max(found)

    def remove(self, name: str, channels: list[int]) -> None:
        """Remove output channels of a layer, by current index, and all channels coupled to them.

        Raises TeacherError if a layer would have no channels left.
        """
        graph = self._graph
        parts = self._group(self.model.get_submodule(name), channels)
        if not graph.check_pruning_group(parts):
            raise TeacherError(f"{name} would leave a layer without channels")
        for part, indices in parts:
            layer = part.target.module
            if layer in self._names:  # otherwise an operation or a bare parameter
                # depthwise convolutions and norms have one function for inputs and outputs
                if graph.is_out_channel_pruning_fn(part.handler):
                    self._lose(self.outputs, layer, graph.get_out_channels(layer), indices)
                if graph.is_in_channel_pruning_fn(part.handler):
                    self._lose(self.inputs, layer, graph.get_in_channels(layer), indices)
        parts.prune()

    def _lose(
        self, left: dict[str, Tensor], layer: nn.Module, width: int | None, indices: list[int]
    ) -> None:
        if width is not None:  # a PReLU may share one slope among all channels
            mask = left.setdefault(self._names[layer], torch.ones(width, dtype=torch.bool))
            mask[mask.nonzero().flatten()[indices]] = False


class _DifferenceError(Exception):
    """Difference between the inputs of a layer in the pruned and in the original network."""


def difference(whole: nn.Module, cut: Cut, inputs: Tensor) -> str | None:
    """Compare a pruned network with the original in which the removed channels are zero.

    Args:
        whole: original network; not modified.
        cut: its copy with channels removed.
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
    whole: nn.Module, cut: Cut, calls: list[tuple[str, Tensor, Tensor]]
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
def _repeated_outputs(cut: Cut, calls: list[tuple[str, Tensor, Tensor]]) -> Iterator[None]:
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


def _compare_layers(name: str, before: Any, cut: Cut, given: Tensor | None) -> None:
    """Compare a pruned layer with the same channels of the original layer, on equal inputs."""
    after: Any = cut.model.get_submodule(name)
    if given is None or not isinstance(before, LAYERS):
        raise _DifferenceError(f"{name} is not a layer whose channels can be told apart")
    read, made = cut.inputs.get(name), cut.outputs.get(name)
    if isinstance(before, NORMS):
        if isinstance(before, nn.GroupNorm) and made is not None:
            sizes = made.view(before.num_groups, -1).sum(1)
            if (sizes != sizes[0]).any():
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


def _part(values: Tensor, layer: nn.Module, left: Tensor | None) -> Tensor:
    """Return the remaining channels of `values`."""
    if left is None:
        return values
    left = left.to(values.device)
    return values.index_select(_axis(values, layer, len(left)), left.nonzero().flatten())


def _zeroed(values: Tensor, layer: nn.Module, left: Tensor | None) -> Tensor:
    """Return `values` with the removed channels set to 0."""
    if left is None:
        return values
    gone = (~left).to(values.device).nonzero().flatten()
    return values.index_fill(_axis(values, layer, len(left)), gone, 0)


def _compare(name: str, wanted: Tensor, got: Tensor, tolerance: float) -> None:
    if wanted.shape != got.shape:
        raise _DifferenceError(f"{name} is given {tuple(got.shape)}, not {tuple(wanted.shape)}")
    rows = wanted.abs().reshape(len(wanted), -1).nan_to_num(posinf=0)
    limit = tolerance * (1 + rows.amax(1)).view(-1, *[1] * (wanted.ndim - 1))
    same = wanted.eq(got) | (wanted.isnan() & got.isnan())  # `eq` covers equal infinities
    if not (same | ((wanted - got).abs() <= limit)).all():
        raise _DifferenceError(f"{name} is given other channels than before")


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
