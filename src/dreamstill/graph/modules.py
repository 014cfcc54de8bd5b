"""Find and replace the modules of a network."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from dreamstill.nn.copying import is_hooked

__all__ = ["map_modules", "plain_layers", "replace_module", "shared_weights"]


def _calls(graph: fx.GraphModule) -> Counter[str]:
    """Count the uses of each module's weight; a weight used twice cannot be changed for one use."""
    nodes = graph.graph.nodes
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    read = (str(node.target) for node in nodes if node.op == "get_attr")  # read in `forward`
    return calls + Counter(shared_weights(graph)) + Counter(n.rpartition(".")[0] for n in read)


def shared_weights(model: nn.Module) -> list[str]:
    """Return names of modules whose weight is shared or computed, or that have two names."""
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
    """Return the layers of the given kinds that can be replaced, by name.

    Left out are layers inside torch's attention and transformer modules, which read weights
    directly, and subclasses and layers with hooks, which may compute something else.
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


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the submodule `name` by `new`, in place."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def map_modules(
    model: nn.Module, change: Callable[[str, nn.Module], nn.Module | None]
) -> nn.Module:
    """Replace, in place, every submodule for which `change` returns a module; return the model."""
    for name, module in list(model.named_modules()):
        new = change(name, module)
        if new is not None:
            replace_module(model, name, new)
    return model
