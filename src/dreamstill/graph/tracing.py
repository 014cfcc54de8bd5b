"""Trace networks with torch.fx and classify the nodes of the graph."""

import operator
from typing import Any

import torch
from torch import fx, nn

from dreamstill.errors import TeacherError, first_line
from dreamstill.nn.copying import is_hooked
from dreamstill.nn.hooks import eval_mode

__all__ = ["layer_at", "is_one_of", "is_relu6", "is_size", "trace", "written_size"]


class _Tracer(fx.Tracer):
    """Tracer that enters neither torch's modules nor the given ones."""

    def __init__(self, leaves: set[nn.Module]) -> None:
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is a node of the graph."""
        return m in self._leaves or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """Return a network's graph in eval mode; raise TeacherError if it cannot be traced.

    A BatchNorm that runs an activation too, as timm's does, is one node.
    """
    try:
        with eval_mode(model):
            tracer = _Tracer({module for module in model.modules() if _is_norm(module)})
            return fx.GraphModule(model, tracer.trace(model), type(model).__name__)
    except Exception as error:  # tracing runs user code
        raise TeacherError(
            f"{type(model).__name__} cannot be traced to a graph: {first_line(error)}"
        ) from error


@torch.no_grad()
def _is_norm(module: nn.Module) -> bool:
    """Return whether a subclass of nn.BatchNorm2d normalizes, then runs its parts in turn."""
    if not isinstance(module, nn.BatchNorm2d) or is_hooked(module):
        return False
    if module.running_mean is None or module.running_var is None:
        return False
    x = torch.randn(8, module.num_features, 2, 2, generator=torch.Generator().manual_seed(0))
    std = 3 * module.running_var.sqrt()  # so that an activation would change values
    x = x.to(std) * std[:, None, None] + module.running_mean[:, None, None]
    parts = nn.Sequential(*module.children())
    try:
        return torch.equal(module(x.clone()), parts(nn.BatchNorm2d.forward(module, x)))
    except Exception:  # user code may want more than a map
        return False


def is_one_of(node: fx.Node, modules: dict[str, nn.Module], kinds: tuple[Any, ...]) -> bool:
    """Return whether a node calls one of these modules, functions or methods."""
    if node.op == "call_module":
        types = tuple(kind for kind in kinds if isinstance(kind, type))
        module = modules[str(node.target)]
        return isinstance(module, types) and not is_hooked(module)
    return node.target in kinds


def is_relu6(module: nn.Module) -> bool:
    """Return whether a module is ReLU6 or the equal Hardtanh from 0 to 6."""
    return isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0, 6)


def layer_at(
    node: fx.Node, modules: dict[str, nn.Module], *, grouped: bool = False
) -> nn.Conv2d | nn.Linear | None:
    """Return the convolution or linear layer that a node calls, without hooks; otherwise None."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.Conv2d) and module.groups > 1 and not grouped:
        return None
    if module is not None and is_hooked(module):
        return None
    return module if isinstance(module, nn.Conv2d | nn.Linear) else None


def written_size(graph: fx.GraphModule, name: str, width: int) -> str | None:
    """Find a call that hard-codes the number of a layer's outputs.

    Args:
        graph: result of `trace`.
        name: name of the layer.
        width: number of its outputs; any multiple of it in a shape counts as hard-coded.

    Returns:
        A line that names the call and a replacement; None if there is no such call.

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
    """Return the sizes given to view, reshape, expand or unflatten; () for other nodes."""
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
    """Return whether a node reads a size, such as x.size(0) or x.shape[0]."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and is_size(node.args[0])
    return node.target == "size" or (node.target is getattr and node.args[1] == "shape")
