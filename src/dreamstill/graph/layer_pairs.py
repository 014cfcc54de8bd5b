"""Find pairs of layers where the first feeds only the second."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from dreamstill.graph.modules import _calls, replace_module
from dreamstill.graph.tracing import is_one_of, is_relu6, is_size, layer_at, trace
from dreamstill.nn.copying import is_hooked
from dreamstill.nn.op_sets import POSITIVE, RELU

__all__ = ["Pair", "pairs", "relu_for_relu6"]


@dataclass(frozen=True)
class Pair:
    """Two layers: the first feeds only the second, through ReLU, pooling and flattening."""

    first: str
    second: str
    relu: bool
    """True if a ReLU lies between the layers."""
    positions: int
    """Number of inputs of a linear second layer per channel of the first; otherwise 1."""
    fades: bool
    """True if average pooling between the layers counts padding, which changes constants."""


def pairs(graph: fx.GraphModule, *, grouped: bool = False) -> list[Pair]:
    """Return all pairs of convolutions and linear layers, in order.

    Args:
        graph: result of `trace`.
        grouped: include convolutions with groups, such as depthwise ones.

    """
    return [pair for pair, ceilings in _pairs(graph, grouped=grouped) if not ceilings]


def relu_for_relu6(model: nn.Module) -> None:
    """Replace, in place, every ReLU6 module between two layers that would otherwise be a pair.

    Scaling channels moves the bound 6 but not the bound 0. Calls of F.relu6 cannot be replaced.
    """
    found = _pairs(trace(model), grouped=True)
    ceilings = {module for _, between in found for module in between}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in ceilings:
            replace_module(model, name, nn.ReLU())


def _pairs(graph: fx.GraphModule, *, grouped: bool) -> Iterator[tuple[Pair, list[nn.Module]]]:
    """Yield pairs, each with the ReLU6 modules between its layers."""
    modules, calls = dict(graph.named_modules()), _calls(graph)
    for node in graph.graph.nodes:
        first = layer_at(node, modules, grouped=grouped)
        if first is None or calls[str(node.target)] > 1:
            continue
        here, relu, flat, fades = node, False, isinstance(first, nn.Linear), False
        ceilings: list[nn.Module] = []
        while len(users := [user for user in here.users if not is_size(user)]) == 1:
            (here,) = users
            relu = relu or is_one_of(here, modules, RELU)
            fades = fades or _averages_zeros(here, modules)
            flattened = flattens(here, modules)
            flat = flat or flattened
            if here.op == "call_module" and is_relu6(module := modules[str(here.target)]):
                if is_hooked(module):
                    break
                ceilings.append(module)
            elif not flattened and not is_one_of(here, modules, POSITIVE):
                break
        second = layer_at(here, modules, grouped=grouped)
        if second is None or here is node or calls[str(here.target)] > 1:
            continue
        width, inputs = first.weight.shape[0], second.weight.shape[1]
        if isinstance(second, nn.Conv2d):
            inputs *= second.groups
        spread = isinstance(first, nn.Conv2d) and isinstance(second, nn.Linear)
        fits = inputs % width == 0 if spread else inputs == width
        if fits and flat == isinstance(second, nn.Linear):
            pair = Pair(str(node.target), str(here.target), relu, inputs // width, fades)
            yield pair, ceilings


def _averages_zeros(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node is an average pool that counts its padding."""
    if node.op == "call_module":
        pool = modules[str(node.target)]
        if not isinstance(pool, nn.AvgPool2d):
            return False
        return pool.count_include_pad and pool.padding not in (0, (0, 0))
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    return (
        node.target is F.avg_pool2d
        and given.get("padding", 0) not in (0, (0, 0), [0, 0])
        and given.get("count_include_pad", True) is not False
    )


def flattens(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node flattens (N, C, ...) to (N, D), as x.flatten(1) or x.view(n, -1)."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1
    if node.target in (torch.flatten, "flatten"):
        dims = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
        return bool(dims.get("start_dim") == 1 and dims.get("end_dim", -1) == -1)
    if node.target in ("view", "reshape", torch.reshape):
        shape = node.args[1:]
        if len(shape) == 1 and isinstance(shape[0], tuple | list):
            shape = tuple(shape[0])
        return len(shape) == 2
    return False
