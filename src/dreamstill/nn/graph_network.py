"""A network given as data: layers, constants, and the steps that a file's graph lists.

An instance holds plain values alone, so that it can be copied, saved and loaded without running
code, and torch.fx unrolls its loop into the layers and functions that it calls.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FUNCTIONS", "GraphNetwork", "Step", "add_part", "named_like"]

Step = tuple[str, tuple[Any, ...], tuple[str, ...], dict[str, Any]]
"""An operation, its inputs, its outputs and its attributes.

The operation is a name of FUNCTIONS, or `layer` with the name of a submodule as its attribute. An
input that begins with % is an output of an earlier step; another string is the name of a parameter
or buffer, and all else stands for itself. An empty output is dropped."""


class GraphNetwork(nn.Module):
    """Network that runs a list of steps on its layers and constants.

    Args:
        steps: in an order in which they can run.
        parts: submodules, parameters and buffers by name; a dot stands for a submodule.
        input: name of the input value.
        output: name of the value to return.

    Examples:
        >>> steps = [("relu", ("%x",), ("%y",), {}), ("mul", ("%y", 2.0), ("%z",), {})]
        >>> GraphNetwork(steps, {}, "%x", "%z")(torch.tensor([-1.0, 3.0])).tolist()
        [0.0, 6.0]

    """

    def __init__(
        self,
        steps: Sequence[Step],
        parts: Mapping[str, nn.Module | Tensor],
        input: str,
        output: str,
    ) -> None:
        super().__init__()
        self.steps, self.graph_input, self.graph_output = _needed(steps, output), input, output
        self.last_read = _last_reads(self.steps, output)
        read = {name for step in self.steps for name in _parts_of(step)}
        for name, part in parts.items():
            if name in read:
                add_part(self, name, part)

    def forward(self, inputs: Tensor) -> Any:
        """Return the output for inputs (N, C, H, W)."""
        return self.run({self.graph_input: inputs})[self.graph_output]

    def run(self, values: dict[str, Any]) -> dict[str, Any]:
        """Run all steps on values by name; return those that nothing reads any more."""
        for (operation, inputs, outputs, attributes), dropped in zip(
            self.steps, self.last_read, strict=True
        ):
            given = [self._value(values, name) for name in inputs]
            if operation == "layer":
                result = self.get_submodule(attributes["name"])(*given)
            else:
                result = FUNCTIONS[operation](*given, **attributes)
            several = len(outputs) > 1  # indexed, because a traced value cannot be iterated
            results = [result[n] for n in range(len(outputs))] if several else [result]
            for name in dropped:
                values.pop(name, None)
            values.update((n, r) for n, r in zip(outputs, results, strict=True) if n)
        return values

    def until(self, output: str) -> "GraphNetwork":
        """Return the network that ends with an earlier value; it shares its parts."""
        parts: dict[str, nn.Module | Tensor] = {}
        for step in self.steps:
            parts |= {name: attrgetter(name)(self) for name in _parts_of(step)}
        return GraphNetwork(self.steps, parts, self.graph_input, output).eval()

    def renamed(self, names: Mapping[str, str]) -> "GraphNetwork":
        """Return the network with other names of layers; it shares its parts."""
        parts = {new: self.get_submodule(old) for old, new in names.items()}
        steps = [
            (op, inputs, outputs, {"name": names[given["name"]]} if op == "layer" else given)
            for op, inputs, outputs, given in self.steps
        ]
        return GraphNetwork(steps, parts, self.graph_input, self.graph_output).eval()

    def _value(self, values: dict[str, Any], name: Any) -> Any:
        if not isinstance(name, str):
            return name
        return values[name] if name.startswith("%") else attrgetter(name)(self)


def named_like(network: nn.Module, other: nn.Module) -> nn.Module:
    """Return a network with the names of another's layers if it has as many of the same kinds.

    An export that folds BatchNorm leaves gaps in the numbers of layers, which a network that was
    built without it does not have. A network that is no `GraphNetwork` is returned as it is.
    """
    if not isinstance(network, GraphNetwork) or network.state_dict().keys() == {
        *other.state_dict()
    }:
        return network
    layers = dict.fromkeys(step[3]["name"] for step in network.steps if step[0] == "layer")
    theirs = {name: _kind(part) for name, part in other.named_modules() if _kind(part)}
    ours = {name: _kind(network.get_submodule(name)) for name in layers}
    weighty = [name for name, kind in ours.items() if kind]
    parts = {name for step in network.steps for name in _parts_of(step)}
    if parts != {*layers} or [ours[name] for name in weighty] != [*theirs.values()]:
        return network
    rest = {name: f"_{name}" for name in layers if name not in weighty}  # such as ReLU6
    return network.renamed(rest | dict(zip(weighty, theirs, strict=True)))


def _kind(layer: nn.Module) -> list[tuple[str, int]]:
    """Return the names and numbers of axes of a layer's own parameters."""
    return [(name, value.ndim) for name, value in layer.named_parameters(recurse=False)]


def add_part(network: nn.Module, name: str, part: nn.Module | Tensor) -> None:
    """Register a module, parameter or buffer under a name with dots."""
    *path, last = name.split(".")
    for step in path:
        if step not in network._modules:
            network.add_module(step, nn.Module())
        network = network._modules[step]  # type: ignore[assignment]
    if isinstance(part, nn.Module):
        network.add_module(last, part)
    elif isinstance(part, nn.Parameter):
        network.register_parameter(last, part)
    else:
        network.register_buffer(last, part)


def _parts_of(step: Step) -> list[str]:
    """Return the names of submodules, parameters and buffers that a step reads."""
    operation, inputs, _, attributes = step
    named = [name for name in inputs if isinstance(name, str) and not name.startswith("%")]
    return [attributes["name"], *named] if operation == "layer" else named


def _needed(steps: Sequence[Step], output: str) -> list[Step]:
    """Return the steps on which an output depends."""
    wanted, found = {output}, []
    for step in reversed(steps):
        if wanted.intersection(step[2]):
            wanted.update(name for name in step[1] if isinstance(name, str))
            found.append(step)
    return found[::-1]


def _last_reads(steps: Sequence[Step], output: str) -> list[tuple[str, ...]]:
    """Return, for each step, the values that no later one reads: their memory is given back."""
    last: dict[str, int] = {}
    for index, (_, inputs, _, _) in enumerate(steps):
        last |= {name: index for name in inputs if isinstance(name, str) and name[:1] == "%"}
    last.pop(output, None)
    return [tuple(n for n, at in last.items() if at == index) for index in range(len(steps))]


def _slice(x: Tensor, dim: int, start: int, end: int | None, step: int) -> Tensor:
    if step < 0:  # torch has no negative steps
        x, step = torch.flip(x, (dim,)), -step
    return x[(*(slice(None),) * dim, slice(start, end, step))]


def _expand_like(value: Tensor, like: Tensor, dim: int, ndim: int) -> Tensor:
    """Repeat a constant for each image, as a class token."""
    return value.expand([like.shape[dim] if n == dim else -1 for n in range(ndim)])


def _average(x: Tensor, pads: Sequence[int], **pool: Any) -> Tensor:
    """Average over what is not padding where the padding is not symmetric."""
    kind = getattr(F, f"avg_pool{len(pads) // 2}d")
    counted = F.pad(torch.ones_like(x), pads)
    total: Tensor = kind(F.pad(x, pads), **pool) / kind(counted, **pool)
    return total


def _depth_to_space(x: Tensor, blocksize: int) -> Tensor:
    """Shuffle channels that lie as (block, block, C); F.pixel_shuffle takes (C, block, block)."""
    x = torch.unflatten(x, 1, (blocksize**2, -1)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(x, blocksize)


def _space_to_depth(x: Tensor, blocksize: int) -> Tensor:
    x = F.pixel_unshuffle(x, blocksize)
    return torch.unflatten(x, 1, (-1, blocksize**2)).transpose(1, 2).flatten(1, 2)


def _functions(module: Any, names: Collection[str]) -> dict[str, Callable[..., Any]]:
    return {name: getattr(module, name) for name in names}


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_functions(
        torch,
        [
            *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cos", "cosh"),
            *("erf", "exp", "floor", "log", "logical_not", "neg", "reciprocal"),
            *("round", "sigmoid", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh"),
            *("add", "sub", "mul", "div", "pow", "matmul", "maximum", "minimum", "fmod"),
            *("remainder", "eq", "gt", "ge", "lt", "le", "logical_and", "logical_or"),
            *("logical_xor", "where", "clamp", "mean", "sum", "amax", "amin", "logsumexp"),
            *("flatten", "unflatten", "reshape", "permute", "squeeze", "unsqueeze", "chunk"),
            *("split", "select", "index_select", "tile", "argmax", "argmin"),
            "prod",
        ],
    ),
    **_functions(
        F,
        [
            *("relu", "leaky_relu", "elu", "selu", "celu", "gelu", "hardsigmoid", "hardswish"),
            *("mish", "softplus", "softsign", "silu", "softmax", "log_softmax", "normalize"),
            *("local_response_norm", "pad"),
            *("interpolate", "pixel_shuffle", "pixel_unshuffle", "threshold"),
        ],
    ),
    **{
        name: getattr(F, name)
        for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "conv")
        for name in (f"{kind}{dims}d" for dims in (1, 2, 3))
    },
    "cat": lambda *values, dim: torch.cat(values, dim),
    "einsum": lambda *values, equation: torch.einsum(equation, *values),
    "vector_norm": torch.linalg.vector_norm,
    "to": lambda x, dtype: x.to(dtype),
    "slice": _slice,
    "expand": lambda x, sizes: x.expand(sizes),
    "expand_like": _expand_like,
    "average": _average,
    "depth_to_space": _depth_to_space,
    "space_to_depth": _space_to_depth,
}
"""Functions that a step may call, by name."""
