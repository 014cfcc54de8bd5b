"""See a network as a graph: fold BatchNorm, and find layers that feed one another alone."""

import copy
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from dreamstill.errors import TeacherError

__all__ = ["Pair", "fold_batch_norm", "is_one_of", "is_size", "pairs", "trace"]

RELU: tuple[Any, ...] = (nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
POSITIVE: tuple[Any, ...] = (
    *RELU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Dropout,
    nn.Identity,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.dropout,
)
"""What commutes with a positive factor on each channel."""
FLATTEN: tuple[Any, ...] = (nn.Flatten, torch.flatten, "flatten", "view", "reshape")


def trace(model: nn.Module) -> fx.GraphModule:
    """A network's graph, in eval mode; TeacherError where its code cannot be traced."""
    try:
        return fx.symbolic_trace(model.eval())
    except Exception as error:  # tracing runs the user's own code
        raise TeacherError(
            f"{type(model).__name__} cannot be traced to a graph: {str(error).splitlines()[0]}"
        ) from error


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy whose BatchNorm layers are folded into the layers before them; the same function.

    A BatchNorm layer that does not follow one layer alone stays; the others become identities.
    """
    model = copy.deepcopy(model).eval()
    for name, norm in batch_norms(trace(model)).items():
        layer, after = model.get_submodule(name), model.get_submodule(norm)
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        replace_module(model, name, fuse(layer, after))  # type: ignore[type-var, arg-type]
        replace_module(model, norm, nn.Identity())
    return model


def batch_norms(graph: fx.GraphModule) -> dict[str, str]:
    """By layer, the BatchNorm that alone takes what it puts out."""
    modules = dict(graph.named_modules())
    found = {}
    for node in graph.graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], _BatchNorm):
            before = node.args[0]
            layer = modules.get(str(before.target)) if before.op == "call_module" else None
            if isinstance(layer, nn.Conv2d | nn.Linear) and len(before.users) == 1:
                found[str(before.target)] = str(node.target)
    return found


def is_one_of(node: fx.Node, modules: dict[str, nn.Module], kinds: tuple[Any, ...]) -> bool:
    """A node calls one of these modules, functions or methods."""
    if node.op == "call_module":
        types = tuple(kind for kind in kinds if isinstance(kind, type))
        return isinstance(modules[str(node.target)], types)
    return node.target in kinds


@dataclass(frozen=True)
class Pair:
    """A layer whose output goes, past ReLU, pooling and flattening, to one other layer alone."""

    first: str
    second: str
    relu: bool
    """There is a ReLU between."""
    positions: int
    """Inputs of a linear second layer that belong to each channel of the first; else 1."""


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Conv2d | nn.Linear | None:
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.Linear):
        return module
    return module if isinstance(module, nn.Conv2d) and module.groups == 1 else None


def pairs(graph: fx.GraphModule) -> list[Pair]:
    """Every pair of layers (convolution without groups, or linear), in order."""
    return list(_pairs(graph))


def _pairs(graph: fx.GraphModule) -> Iterator[Pair]:
    modules = dict(graph.named_modules())
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    for node in graph.graph.nodes:
        first = _layer(node, modules)
        if first is None or calls.count(str(node.target)) > 1:
            continue
        here, relu = node, False
        while len(here.users) == 1:
            (here,) = here.users
            relu = relu or is_one_of(here, modules, RELU)
            if not is_one_of(here, modules, POSITIVE + FLATTEN) and not is_size(here):
                break
        second = _layer(here, modules)
        if second is None or here is node or calls.count(str(here.target)) > 1:
            continue
        width, inputs = first.weight.shape[0], second.weight.shape[1]
        if inputs % width == 0:
            yield Pair(str(node.target), str(here.target), relu, inputs // width)


def is_size(node: fx.Node) -> bool:
    """x.size(0) and x.shape[0], which only serve a view."""
    return node.target in ("size", getattr, operator.getitem) and node.op != "call_module"


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in the place of the submodule `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def map_modules(
    model: nn.Module, change: Callable[[str, nn.Module], nn.Module | None]
) -> nn.Module:
    """Replace, in place, every submodule for which `change` returns one."""
    for name, module in list(model.named_modules()):
        new = change(name, module)
        if new is not None:
            replace_module(model, name, new)
    return model
