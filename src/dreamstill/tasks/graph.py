"""See a network as a graph: fold BatchNorm, and find layers that feed one another alone."""

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from dreamstill.errors import TeacherError, first_line
from dreamstill.evaluate import check_same_function
from dreamstill.plain import copy_network, is_hooked
from dreamstill.probe import eval_mode
from dreamstill.teacher import InputSpec

__all__ = [
    "POSITIVE",
    "Pair",
    "batch_norms",
    "flattens",
    "fold_batch_norm",
    "is_one_of",
    "is_relu6",
    "is_size",
    "layer_at",
    "map_modules",
    "pairs",
    "plain_layers",
    "relu_for_relu6",
    "replace_module",
    "shared_weights",
    "trace",
    "written_size",
]

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


def trace(model: nn.Module) -> fx.GraphModule:
    """A network's graph, as it is in eval mode; TeacherError where its code cannot be traced."""
    try:
        with eval_mode(model):
            return fx.symbolic_trace(model)
    except Exception as error:  # tracing runs the user's own code
        raise TeacherError(
            f"{type(model).__name__} cannot be traced to a graph: {first_line(error)}"
        ) from error


def fold_batch_norm(model: nn.Module, spec: InputSpec | None = None) -> nn.Module:
    """Return a copy whose BatchNorm layers are folded into the layers before them.

    A BatchNorm layer that does not follow one layer alone stays, as does one that has hooks or
    follows a layer with hooks; the others become identities.

    Args:
        model: left as it was.
        spec: its input; where it is given, the copy is compared with the model.

    Raises:
        TeacherError: the model has BatchNorm and cannot be traced, or the copy answers differently.

    """
    whole, model = model, copy_network(model).eval()
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return model
    for name, norm in batch_norms(trace(model)).items():
        layer, after = model.get_submodule(name), model.get_submodule(norm)
        assert isinstance(after, _BatchNorm)
        if after.weight is None and after.running_var is not None:  # affine=False; cannot be fused
            after.weight = nn.Parameter(torch.ones_like(after.running_var))
            after.bias = nn.Parameter(torch.zeros_like(after.running_var))
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        replace_module(model, name, fuse(layer, after))  # type: ignore[type-var]
        replace_module(model, norm, nn.Identity())
    if spec is not None:
        check_same_function(whole, model, spec, "folding BatchNorm")
    return model


def batch_norms(graph: fx.GraphModule) -> dict[str, str]:
    """By layer, the BatchNorm with running statistics that alone takes what it puts out."""
    modules, calls = dict(graph.named_modules()), _calls(graph)
    found = {}
    for node in graph.graph.nodes:
        name = str(node.target)
        norm = modules.get(name) if node.op == "call_module" else None
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and calls[name] == 1:
            if is_hooked(norm):
                continue
            before = node.args[0]
            layer = modules.get(str(before.target)) if before.op == "call_module" else None
            layer = None if layer is None or is_hooked(layer) else layer
            alone = len(before.users) == 1 and calls[str(before.target)] == 1
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) and alone:
                found[str(before.target)] = name
    return found


def _calls(graph: fx.GraphModule) -> Counter[str]:
    """How often each module's weight is used: one that is used twice belongs to no one place."""
    nodes = graph.graph.nodes
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    read = (str(node.target) for node in nodes if node.op == "get_attr")  # by the network's code
    return calls + Counter(shared_weights(graph)) + Counter(n.rpartition(".")[0] for n in read)


def shared_weights(model: nn.Module) -> list[str]:
    """Names of modules whose weight is another's too, or computed, or that have two names."""
    every = dict(model.named_modules(remove_duplicate=False))
    weights = {name: getattr(module, "weight", None) for name, module in every.items()}
    count = Counter(id(weight) for weight in weights.values() if weight is not None)
    return [
        name
        for name, weight in weights.items()
        if weight is not None and (count[id(weight)] > 1 or "weight" not in every[name]._parameters)
    ]


def plain_layers(
    model: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
) -> dict[str, Any]:
    """By name, layers of some kinds that another module may stand in for.

    Not those of torch's attention and transformer layers, which read their weights themselves, nor
    of subclasses, which may compute something else, nor those with hooks, which do.
    """
    modules = dict(model.named_modules())
    found = {}
    for name, module in modules.items():
        parent = modules[name.rpartition(".")[0]]
        inside = type(parent).__module__.startswith("torch.nn.modules") and parent is not module
        if (
            type(module) in kinds
            and not is_hooked(module)
            and (not inside or isinstance(parent, nn.Sequential | nn.ModuleList | nn.ModuleDict))
        ):
            found[name] = module
    return found


def is_one_of(node: fx.Node, modules: dict[str, nn.Module], kinds: tuple[Any, ...]) -> bool:
    """A node calls one of these modules, functions or methods."""
    if node.op == "call_module":
        types = tuple(kind for kind in kinds if isinstance(kind, type))
        module = modules[str(node.target)]
        return isinstance(module, types) and not is_hooked(module)
    return node.target in kinds


def is_relu6(module: nn.Module) -> bool:
    """ReLU6, or a Hardtanh from 0 to 6, which is the same."""
    return isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0, 6)


@dataclass(frozen=True)
class Pair:
    """A layer whose output goes, past ReLU, pooling and flattening, to one other layer alone."""

    first: str
    second: str
    relu: bool
    """There is a ReLU between."""
    positions: int
    """Inputs of a linear second layer that belong to each channel of the first; else 1."""
    fades: bool
    """An average between them counts zeros at the border: a constant does not come through."""


def layer_at(
    node: fx.Node, modules: dict[str, nn.Module], *, grouped: bool = False
) -> nn.Conv2d | nn.Linear | None:
    """The convolution or linear layer that a node calls; none of anything else."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.Conv2d) and module.groups > 1 and not grouped:
        return None
    if module is not None and is_hooked(module):
        return None
    return module if isinstance(module, nn.Conv2d | nn.Linear) else None


def pairs(graph: fx.GraphModule, *, grouped: bool = False) -> list[Pair]:
    """Every pair of layers (convolution or linear), in order.

    Args:
        graph: of `trace`.
        grouped: convolutions with groups, depthwise ones among them, are layers too.

    """
    return [pair for pair, ceilings in _pairs(graph, grouped=grouped) if not ceilings]


def relu_for_relu6(model: nn.Module) -> None:
    """Put ReLU, in place, for every ReLU6 module that keeps two layers from being a pair.

    6 is not 6 any more behind a factor, where 0 is still 0. A call of F.relu6 stays: it is
    written into the network's own code.
    """
    found = _pairs(trace(model), grouped=True)
    ceilings = {module for _, between in found for module in between}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in ceilings:
            replace_module(model, name, nn.ReLU())


def _pairs(graph: fx.GraphModule, *, grouped: bool) -> Iterator[tuple[Pair, list[nn.Module]]]:
    """Pairs, each with the ReLU6 between its layers."""
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
    """An average pool that counts its padding."""
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
    """(N, C, ...) -> (N, everything): x.flatten(1), x.view(x.size(0), -1), x.reshape(-1, 400)."""
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


def written_size(graph: fx.GraphModule, name: str, width: int) -> str | None:
    """Say where the number of a layer's outputs is written into the network's code.

    Args:
        graph: of `trace`.
        name: of a layer.
        width: how many outputs it has; what is written is a multiple of it.

    Returns:
        A line that names the call and what to write instead; None where nothing is written.

    """
    modules = dict(graph.named_modules())
    seen = {node for node in graph.graph.nodes if node.op == "call_module" and node.target == name}
    ahead = list(seen)
    while ahead:
        for user in ahead.pop().users:
            if user in seen or is_size(user) or layer_at(user, modules, grouped=True) is not None:
                continue
            seen.add(user)
            ahead.append(user)
            shape = _shape_asked(user, modules)
            sizes = [size for size in shape if type(size) is int]
            if found := [size for size in sizes if 1 < width <= size and size % width == 0]:
                by_module = user.op == "call_module"
                call = type(modules[str(user.target)]).__name__ if by_module else user.name
                text = ", ".join(str(size) if type(size) is int else "n" for size in shape)
                instead = f"-1 or a size of x.shape for {found[0]}"
                if len(shape) == 2 and not by_module:
                    instead = "x.flatten(1)"
                return f"{call}({text}) has {name}'s {width} channels written in: write {instead}"
    return None


def _shape_asked(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[Any, ...]:
    """The sizes that a view, reshape, expand or unflatten is given; none of anything else."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return tuple(module.unflattened_size) if isinstance(module, nn.Unflatten) else ()
    if node.target in ("unflatten", torch.unflatten):
        shape = node.args[2:] or (node.kwargs.get("sizes", ()),)
    elif node.target in ("view", "reshape", "expand", torch.reshape):
        shape = node.args[1:] or (node.kwargs.get("shape", ()),)
    else:
        return ()
    return tuple(shape[0]) if isinstance(shape[0], tuple | list) else shape


def is_size(node: fx.Node) -> bool:
    """x.size(0) and x.shape[0], which only serve a view."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and is_size(node.args[0])
    return node.target == "size" or (node.target is getattr and node.args[1] == "shape")


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
