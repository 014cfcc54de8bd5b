"""Remove channels from a network, and see that its layers still read what they read before.

Which channels hang together is torch-pruning's dependency graph. It takes every operation that it
does not know for one that leaves channels where they are, so that what flips, sorts or shuffles
them, or has their number written in, comes out wrong. Hence a cut is compared with the whole
network, layer by layer: every layer puts out chance values, with zeros in the whole network where
channels were cut, and each must be given the same in both. What lies between two layers is then
all that can differ, whatever it is called.
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
"""What reads all channels at once: after a cut they normalize over those that are left."""
LAYERS = (_ConvNd, nn.Linear, _BatchNorm, _InstanceNorm, nn.PReLU, *NORMS)
"""What can lose channels."""
ROOTS = (_ConvNd, nn.Linear)
"""What makes channels."""
EXACT, ROUGH = 1e-5, 1e-2
"""How far values may be apart, in shares of the largest: between layers, where the same numbers are
added up in another order, and in them, where a GPU's TF32 has 10 bits."""


def library() -> Any:
    """torch-pruning, which the extra `prune` installs; ConfigError where it is absent."""
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise ConfigError("pruning needs torch-pruning: pip install 'dreamstill[prune]'") from error


class _Counted(list[Any]):
    """A node's edges, looked at a limited number of times.

    Where a network shifts its channels, torch-pruning's walk goes round in circles.
    """

    left = 0

    def __iter__(self) -> Iterator[Any]:
        _Counted.left -= 1
        if _Counted.left < 0:
            raise RecursionError("its channels lead to one another without end")
        return super().__iter__()


@dataclass(frozen=True)
class Group:
    """Channels of one layer or more that can only go together."""

    parts: Any
    """torch-pruning's group, of all these channels."""
    name: str
    """The first layer that makes them."""
    makers: list[str]
    """All convolutions and linear layers that make them."""
    width: int
    """How many there are."""
    parcels: int
    """Equal parts that lose the same positions each: the groups of a GroupNorm or convolution."""

    def at(self, positions: Tensor) -> list[int]:
        """Channels at these positions of every parcel."""
        starts = torch.arange(self.parcels) * (self.width // self.parcels)
        return (starts[:, None] + positions.cpu()).flatten().tolist()


class Cut:
    """A network from which channels are removed, in place, and what its layers have left.

    Args:
        model: the network; in eval mode and with gradients from then on.
        example: (1, C, H, W), of its input space.

    Raises:
        TeacherError: torch-pruning cannot follow the network at all.

    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model.eval().requires_grad_(True)
        self.inputs: dict[str, Tensor] = {}
        """By layer that lost inputs: of the whole one's (width,), whether each is left."""
        self.outputs: dict[str, Tensor] = {}
        """By layer that lost outputs, the same."""
        try:
            with quiet(), torch.enable_grad():
                self._graph = library().DependencyGraph().build_dependency(model, example)
        except ConfigError:
            raise
        except Exception as error:  # the library's own, of whatever it meets
            raise TeacherError(
                f"the channels of {type(model).__name__} cannot be followed: {first_line(error)}"
            ) from error
        for node in self._graph.module2node.values():
            node.dependencies = _Counted(node.dependencies)
        self._names = {module: name for name, module in model.named_modules()}

    def groups(self, whole: Collection[str]) -> Iterator[Group]:
        """Every group of which no layer is to stay `whole`, and that torch-pruning can follow."""
        ignored = {self.model.get_submodule(name) for name in whole}
        seen = set[nn.Module]()
        for root in list(self._graph.module2node):
            if not isinstance(root, ROOTS) or root in seen or root in ignored:
                continue
            try:
                parts = self._group(root, list(range(self._graph.get_out_channels(root))))
            except Exception:  # the library's own: its layers are not among those that can go
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
        """torch-pruning's group of a layer's output channels."""
        _Counted.left = 300 + 10 * len(self._graph.module2node)  # in a whole ResNet 2 a node
        pruning = self._graph.get_pruner_of_module(root).prune_out_channels
        return self._graph.get_pruning_group(root, pruning, channels)

    def _parcels(self, parts: Any) -> int:
        """In how many equal parts the group's channels are divided by its layers."""
        found = {1}
        for part, _ in parts:
            module = part.target.module
            if isinstance(module, nn.GroupNorm):
                found.add(module.num_groups)
            elif isinstance(module, _ConvNd) and module.groups != module.out_channels:
                found.add(module.groups)
        return max(found)

    def remove(self, name: str, channels: list[int]) -> None:
        """Remove channels of the layer `name`, as they are numbered now, and all that hang on them.

        Raises TeacherError where a layer would be left without any.
        """
        graph = self._graph
        parts = self._group(self.model.get_submodule(name), channels)
        if not graph.check_pruning_group(parts):
            raise TeacherError(f"{name} would leave a layer without channels")
        for part, indices in parts:
            layer = part.target.module
            if layer in self._names:  # and not an operation, or a parameter of its own
                # of depthwise convolutions and norms it is the same function
                if graph.is_out_channel_pruning_fn(part.handler):
                    self._lose(self.outputs, layer, graph.get_out_channels(layer), indices)
                if graph.is_in_channel_pruning_fn(part.handler):
                    self._lose(self.inputs, layer, graph.get_in_channels(layer), indices)
        parts.prune()

    def _lose(
        self, left: dict[str, Tensor], layer: nn.Module, width: int | None, indices: list[int]
    ) -> None:
        if width is not None:  # a PReLU may have one slope for all
            mask = left.setdefault(self._names[layer], torch.ones(width, dtype=torch.bool))
            mask[mask.nonzero().flatten()[indices]] = False


class _DifferenceError(Exception):
    """A layer is not given what it was given in the whole network."""


def difference(whole: nn.Module, cut: Cut, inputs: Tensor) -> str | None:
    """Say what a cut network does that the whole one, without the channels cut, does not.

    Args:
        whole: the network before; left as it was.
        cut: its copy with channels removed.
        inputs: (N, C, H, W) in the input space.

    Returns:
        One line, or None where there is no difference.

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
    except Exception as error:  # the user's own code, with sizes that it may not expect
        return first_line(error)
    return None


@contextmanager
def _chance_outputs(
    whole: nn.Module, cut: Cut, calls: list[tuple[str, Tensor, Tensor]]
) -> Iterator[None]:
    """Let the whole network's layers put out chance values, 0 where the cut one has nothing."""
    rng = torch.Generator().manual_seed(0)

    def made(name: str, layer: Any, given: Tensor, output: Tensor) -> Tensor:
        chance = torch.randn(output.shape, generator=rng)
        # small and large ones: a softmax over channels shows in the former, a maximum in the latter
        scale = torch.logspace(-1, 1, len(chance)).view(-1, *[1] * (chance.ndim - 1))
        chance = (scale * chance).to(output)
        chance = _zeroed(chance, layer, cut.outputs.get(name))
        calls.append((name, given.clone(), chance))  # what comes next may change it in place
        return chance.clone()

    with _replaced_outputs(whole, made):
        yield


@contextmanager
def _repeated_outputs(cut: Cut, calls: list[tuple[str, Tensor, Tensor]]) -> Iterator[None]:
    """Compare what the cut network's layers are given, and let them put out the same values."""

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
    """Put what `made` returns of name, layer, input and output in the place of every output."""
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
    """Compare a layer of its own with its part of the whole one, on the same inputs."""
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
    """Where a layer's channels lie."""
    axis = 1
    if isinstance(layer, nn.Linear | nn.LayerNorm):
        axis = values.ndim - 1
    elif isinstance(layer, _ConvNd):
        axis = values.ndim - len(layer.kernel_size) - 1
    if values.shape[axis] == width:
        return axis
    fitting = [n for n, size in enumerate(values.shape) if size == width]  # of layers that permute
    if len(fitting) != 1:
        raise _DifferenceError(f"channels of {type(layer).__name__} cannot be told from positions")
    return fitting[0]


def _part(values: Tensor, layer: nn.Module, left: Tensor | None) -> Tensor:
    """Those channels that are left."""
    if left is None:
        return values
    left = left.to(values.device)
    return values.index_select(_axis(values, layer, len(left)), left.nonzero().flatten())


def _zeroed(values: Tensor, layer: nn.Module, left: Tensor | None) -> Tensor:
    """All channels, 0 where none is left."""
    if left is None:
        return values
    gone = (~left).to(values.device).nonzero().flatten()
    return values.index_fill(_axis(values, layer, len(left)), gone, 0)


def _compare(name: str, wanted: Tensor, got: Tensor, tolerance: float) -> None:
    if wanted.shape != got.shape:
        raise _DifferenceError(f"{name} is given {tuple(got.shape)}, not {tuple(wanted.shape)}")
    rows = wanted.abs().reshape(len(wanted), -1).nan_to_num(posinf=0)
    limit = tolerance * (1 + rows.amax(1)).view(-1, *[1] * (wanted.ndim - 1))
    same = wanted.eq(got) | (wanted.isnan() & got.isnan())  # infinite, too
    if not (same | ((wanted - got).abs() <= limit)).all():
        raise _DifferenceError(f"{name} is given other channels than before")


def followed(
    whole: nn.Module, inputs: Tensor, gone: Mapping[str, list[int]]
) -> tuple[Cut, dict[str, str]]:
    """Remove channels wherever every layer still reads what it read.

    Args:
        whole: the network; left as it was.
        inputs: (N, C, H, W) in the input space.
        gone: by layer, which of its outputs are to go, with all that hangs on them.

    Returns:
        The network with as many of these layers cut as can be, found by halving, and for the
        others what goes wrong.

    Raises:
        TeacherError: torch-pruning cannot follow the network at all.

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
        except Exception as error:  # the library's own, of indices that it took wrong
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
