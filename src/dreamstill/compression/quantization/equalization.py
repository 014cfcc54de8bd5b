"""Prepare a network for low-bit quantization without data (DFQ).

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019: BatchNorm folding, ReLU in place of ReLU6, cross-layer equalization (section 4.1), high-bias
absorption (4.1.3), and expected layer inputs from BatchNorm parameters, for ranges and bias
correction (4.2 and 5.1). Differences: without BatchNorm, moments are propagated through weights and
pooling (see `moments`); a ReLU6 that separates no two equalized layers is not replaced.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.compression.quantization.moments import PARTS, Moments, relu_moments, window_sizes
from dreamstill.errors import TeacherError
from dreamstill.evaluation import check_same_function
from dreamstill.graph.batch_norm_folding import batch_norms, fold_batch_norm
from dreamstill.graph.layer_pairs import Pair, pairs, relu_for_relu6
from dreamstill.graph.tracing import is_relu6, trace
from dreamstill.input_spec import InputSpec
from dreamstill.nn.copying import copy_network
from dreamstill.nn.op_sets import AVERAGE, KNOWN, LARGEST, MEAN, MOVES, RELU

__all__ = ["Equalized", "Moments", "equalize", "expected_inputs", "relu_moments"]

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and standard deviation (C,) of the outputs of each layer, by name."""


class _Propagate(fx.Interpreter):
    """Interpreter that runs a graph on moments and records every input of the layers."""

    def __init__(self, graph: fx.GraphModule, statistics: Statistics) -> None:
        super().__init__(graph)
        self.statistics, self.calls = statistics, dict[str, list[Moments]]()
        self.extra_traceback = False  # it would be added to error messages

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Propagate moments through a module."""
        module, x = self.fetch_attr(target), args[0]
        if isinstance(module, nn.Conv2d | nn.Linear):
            calls = self.calls.setdefault(target, [])
            if calls and calls[0].mean.shape != x.mean.shape:
                raise _unclear(f"{target}, called on maps of several sizes,")
            calls.append(x)
            known = self.statistics.get(target)
            return x.layer(module) if known is None else self._known(module(x.mean), known)
        if isinstance(module, _BatchNorm) and not [*module.children()]:  # no activation in it
            return self._known(x.mean, _after(module))
        if isinstance(module, RELU[0]):
            return x.relu()
        if is_relu6(module):
            return x.relu6()
        kind = next((k for k in KNOWN if isinstance(k, type) and isinstance(module, k)), None)
        if kind is None:
            raise _unclear(f"{target} ({type(module).__name__})")
        return _moved_or_pooled(kind, x, module)

    @staticmethod
    def _known(like: Tensor, statistics: tuple[Tensor, Tensor]) -> Moments:
        mean, std = (part.view([1, -1] + [1] * (like.ndim - 2)) for part in statistics)
        return Moments.normal(mean.expand_as(like), std.expand_as(like) ** 2)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Propagate moments through a function."""
        return self._call(target, super().call_function, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Propagate moments through a tensor method."""
        return self._call(target, super().call_method, args, kwargs)

    def _call(self, target: Any, run: Any, args: Any, kwargs: Any) -> Any:
        moments: list[Moments] = []  # including those in lists, as for torch.cat
        map_aggregate(
            (args, kwargs), lambda v: moments.append(v) if isinstance(v, Moments) else None
        )
        if not moments:
            return run(target, args, kwargs)
        if target in RELU:
            return moments[0].relu()
        if target is F.relu6:
            return moments[0].relu6()
        if target in (operator.add, operator.iadd, torch.add, "add", "add_") and len(moments) == 2:
            return moments[0] + moments[1]
        if target not in KNOWN:
            raise _unclear(getattr(target, "__name__", str(target)))

        def run_on(pick: Callable[[Moments], Tensor]) -> Any:
            def picked(value: Any) -> Any:
                return pick(value) if isinstance(value, Moments) else value

            return run(target, map_aggregate(args, picked), map_aggregate(kwargs, picked))

        if target in MOVES:  # all moments, as torch.cat takes several activations
            return Moments.of_parts([run_on(attrgetter(part)) for part in PARTS])
        return _moved_or_pooled(target, moments[0], lambda part: run_on(lambda _: part))


def _moved_or_pooled(kind: Any, x: Moments, change: Callable[[Tensor], Any]) -> Any:
    """Return the moments after an operation of a known kind."""
    if kind in LARGEST:
        if not isinstance(change(x.mean), Tensor):
            raise _unclear("a max pool that returns indices")
        return x.largest(change)
    if kind in AVERAGE:
        return x.average(change, window_sizes(change, x.mean))
    if kind in MEAN:
        return x.average(change, x.mean.numel() / change(x.mean).numel())
    return x.each(change)


def _unclear(what: str) -> TeacherError:
    return TeacherError(
        f"what {what} puts out cannot be known without inputs: calibrate on images instead"
    )


@dataclass
class Equalized:
    """Equalized network with BatchNorm folded, and the statistics of its layers' outputs."""

    model: nn.Module
    statistics: Statistics


@torch.no_grad()
def expected_inputs(equalized: Equalized, spec: InputSpec) -> dict[str, Moments]:
    """Return the moments of the inputs of every convolution and linear layer, by name.

    The network's input is assumed normal with mean 0 and variance 1 in its normalized space
    (`InputSpec.from_unit`), within the valid range. Raises TeacherError for operations other than
    layers, BatchNorm, ReLU, ReLU6, sums, pooling and moves of values.
    """
    zeros = torch.zeros(1, *spec.shape)
    mean = spec.from_unit(zeros)
    variance = (spec.from_unit(zeros + 1) - mean) ** 2
    inputs = Moments(mean, variance, spec.clip(zeros - 1e9), spec.clip(zeros + 1e9))
    run = _Propagate(trace(equalized.model), equalized.statistics)
    run.run(inputs)
    return {name: Moments.mixture(calls) for name, calls in run.calls.items()}


@torch.no_grad()
def equalize(
    model: nn.Module, spec: InputSpec, *, iterations: int = 40, absorb: bool = True
) -> Equalized:
    """Fold BatchNorm, equalize weight ranges across layers and absorb high biases, on a copy.

    The function is preserved except that ReLU replaces ReLU6 modules between equalized layers, and
    that absorption clips activations more than 3 standard deviations below their mean.

    Args:
        model: traceable network.
        spec: input of the network; random images verify the function before the absorption.
        iterations: largest number of passes over all pairs of layers; ends early on convergence.
        absorb: whether to absorb high biases.

    Raises:
        TeacherError: the model cannot be traced, or its function is not preserved.

    """
    graph = trace(model)
    modules = dict(graph.named_modules())
    statistics: Statistics = {}
    for layer, norm in batch_norms(graph).items():
        statistics[layer] = _after(modules[norm])
    folded = fold_batch_norm(model, spec)
    relu_for_relu6(folded)
    found, before = pairs(trace(folded), grouped=True), copy_network(folded)
    for _ in range(iterations):
        moved = max((_equalize_pair(folded, pair, statistics) for pair in found), default=0.0)
        if moved < 1e-3:
            break
    check_same_function(before, folded, spec, "equalizing its layers")
    if absorb:
        for pair in found:
            _absorb(folded, pair, statistics)
    return Equalized(folded, statistics)


def _after(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C,) of a BatchNorm's outputs: its bias and scale."""
    assert isinstance(norm, _BatchNorm)
    zeros = torch.zeros(norm.num_features)
    if not norm.affine:
        return zeros, zeros + 1
    return norm.bias.detach().clone(), norm.weight.detach().abs()


def _layers(model: nn.Module, pair: Pair) -> tuple[nn.Conv2d | nn.Linear, nn.Conv2d | nn.Linear]:
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    assert isinstance(first, nn.Conv2d | nn.Linear)
    assert isinstance(second, nn.Conv2d | nn.Linear)
    return first, second


def _by_channel(second: nn.Conv2d | nn.Linear, width: int) -> Tensor:
    """Return a view of the second layer's weight: (groups, outputs, first's channels, rest)."""
    groups = second.groups if isinstance(second, nn.Conv2d) else 1
    return second.weight.view(groups, len(second.weight) // groups, width // groups, -1)


def _equalize_pair(model: nn.Module, pair: Pair, statistics: Statistics) -> float:
    """Scale both weight ranges of channel i to sqrt(r1 r2), eq. 11; return the largest |log s|."""
    first, second = _layers(model, pair)
    outgoing = _by_channel(second, len(first.weight))
    r1 = first.weight.flatten(1).abs().amax(1)
    r2 = outgoing.abs().amax((1, 3)).flatten()
    usable = (r1 > 1e-8) & (r2 > 1e-8)
    scale = torch.where(usable, (r2 / r1.clamp_min(1e-12)).sqrt(), torch.ones_like(r1))
    first.weight.mul_(scale.view(-1, *[1] * (first.weight.ndim - 1)))
    if first.bias is not None:
        first.bias.mul_(scale)
    outgoing.div_(scale.view(len(outgoing), 1, -1, 1))
    if pair.first in statistics:
        mean, std = statistics[pair.first]
        statistics[pair.first] = (mean * scale, std * scale)
    return float((scale.log().abs()).max())


def _absorb(model: nn.Module, pair: Pair, statistics: Statistics) -> None:
    """Move max(0, mean - 3 std) of a layer's bias to the next layer's bias: equation 15."""
    first, second = _layers(model, pair)
    if pair.first not in statistics or first.bias is None or not pair.relu:
        return
    if pair.fades or (not isinstance(second, nn.Linear) and any(second.padding)):
        return  # zero padding does not carry the constant: the function would change at the border
    mean, std = statistics[pair.first]
    surplus = (mean - 3 * std).clamp_min(0)
    first.bias.sub_(surplus)
    outgoing = _by_channel(second, len(surplus))
    added = torch.einsum("goir,gi->go", outgoing, surplus.view(len(outgoing), -1)).flatten()
    if second.bias is None:
        second.bias = nn.Parameter(added)
    else:
        second.bias.add_(added)
    statistics[pair.first] = (mean - surplus, std)
