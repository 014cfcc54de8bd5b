"""Operators of ONNX that work on each value, or that reduce axes: functions of torch."""

import functools
from typing import Any

import numpy as np
import torch
from onnx import helper
from torch import nn

from dreamstill.errors import TeacherError
from dreamstill.loaders.onnx.graph import Graph, Node, Operator

__all__ = ["ELEMENTWISE"]

SAME_NAME = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf"),
    *("Exp", "Floor", "HardSwish", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round"),
    *("Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh"),
)
"""Operators of one value whose functions have their names in small letters."""
UNARY = {**{name: name.lower() for name in SAME_NAME}, "Not": "logical_not"}
BINARY = {
    **{"Add": "add", "Sub": "sub", "Mul": "mul", "Pow": "pow", "Equal": "eq", "Greater": "gt"},
    **{"GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le", "And": "logical_and"},
    **{"Or": "logical_or", "Xor": "logical_xor"},
}
REDUCTIONS = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin"}
NORMS = {"ReduceL1": 1, "ReduceL2": 2}


def unary(function: str) -> Operator:
    """Return the lowering of an operator of one value without attributes."""

    def lower(graph: Graph, node: Node) -> Any:
        return graph.call(function, graph.operand(node.input))

    return lower


def binary(function: str) -> Operator:
    """Return the lowering of an operator of two values without attributes."""

    def lower(graph: Graph, node: Node) -> Any:
        return graph.call(function, *map(graph.operand, node.inputs))

    return lower


def div(graph: Graph, node: Node) -> Any:
    """Lower Div; of integers it rounds toward zero."""
    a, b = map(graph.operand, node.inputs)
    if graph.is_float(a) or graph.is_float(b):
        return graph.call("div", a, b)
    return graph.call("div", a, b, rounding_mode="trunc")


def mod(graph: Graph, node: Node) -> Any:
    """Lower Mod."""
    function = "fmod" if node.get("fmod", 0) else "remainder"
    return graph.call(function, *map(graph.operand, node.inputs))


def extremum(graph: Graph, node: Node) -> Any:
    """Lower Max and Min of any number of values; of a number to torch.clamp."""
    function, bound = ("maximum", "min") if node.op == "Max" else ("minimum", "max")

    def pair(a: Any, b: Any) -> Any:
        a, b = (a, b) if isinstance(a, str) else (b, a)
        return (
            graph.call(function, a, b)
            if isinstance(b, str)
            else graph.call("clamp", a, **{bound: b})
        )

    return functools.reduce(pair, map(graph.operand, node.inputs))


def total(graph: Graph, node: Node) -> Any:
    """Lower Sum of any number of values."""
    values = [graph.operand(name) for name in node.inputs]
    return functools.reduce(lambda a, b: graph.call("add", a, b), values)


def mean(graph: Graph, node: Node) -> Any:
    """Lower Mean of any number of values."""
    return graph.call("div", total(graph, node), float(len(node.inputs)))


def with_alpha(function: str, default: float, name: str = "alpha") -> Operator:
    """Return the lowering of an activation with one number."""

    def lower(graph: Graph, node: Node) -> Any:
        return graph.call(function, graph.operand(node.input), **{name: node.get("alpha", default)})

    return lower


def selu(graph: Graph, node: Node) -> Any:
    """Lower Selu, whose numbers are those of torch, or others."""
    x = graph.operand(node.input)
    alpha, gamma = node.get("alpha", 1.6732632), node.get("gamma", 1.050701)
    if abs(alpha - 1.6732632) < 1e-5 and abs(gamma - 1.050701) < 1e-5:
        return graph.call("selu", x)
    return graph.call("mul", graph.call("elu", x, alpha=alpha), gamma)


def hard_sigmoid(graph: Graph, node: Node) -> Any:
    """Lower HardSigmoid."""
    x, alpha, beta = graph.operand(node.input), node.get("alpha", 0.2), node.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return graph.call("hardsigmoid", x)
    sloped = graph.call("add", graph.call("mul", x, alpha), beta)
    return graph.call("clamp", sloped, min=0.0, max=1.0)


def gelu(graph: Graph, node: Node) -> Any:
    """Lower Gelu."""
    return graph.call(
        "gelu", graph.operand(node.input), approximate=node.get("approximate", "none")
    )


def swish(graph: Graph, node: Node) -> Any:
    """Lower Swish, x * sigmoid(alpha * x)."""
    x, alpha = graph.operand(node.input), node.get("alpha", 1.0)
    if alpha == 1:
        return graph.call("silu", x)
    return graph.call("mul", x, graph.call("sigmoid", graph.call("mul", x, alpha)))


def thresholded_relu(graph: Graph, node: Node) -> Any:
    """Lower ThresholdedRelu."""
    settings = {"threshold": node.get("alpha", 1.0), "value": 0.0}
    return graph.call("threshold", graph.operand(node.input), **settings)


def clip(graph: Graph, node: Node) -> Any:
    """Lower Clip; from 0 to 6 it is nn.ReLU6, whose bound tasks may lift."""
    x = graph.operand(node.input)
    low, high = node.get("min"), node.get("max")
    if graph.opset >= 11:
        low, high = (float(graph.constant(node.inputs[n])) if node.has(n) else None for n in (1, 2))
    if not graph.is_float(x):
        low, high = (None if bound is None else int(bound) for bound in (low, high))
    if (low, high) == (0, 6):
        return graph.layer(node, nn.ReLU6, x)
    if low == 0 and high is None:
        return graph.call("relu", x)
    if low is None and high is None:
        return x
    if None not in (low, high) and low > high:
        low = high
    return graph.call(
        "clamp", x, **{k: v for k, v in (("min", low), ("max", high)) if v is not None}
    )


def cast(graph: Graph, node: Node) -> Any:
    """Lower Cast; floats of every size are float32 here."""
    return _cast(graph, node, np.dtype(helper.tensor_dtype_to_np_dtype(node.attributes["to"])))


def cast_like(graph: Graph, node: Node) -> Any:
    """Lower CastLike."""
    like = graph.known(node.inputs[1])
    if like is not None:
        return _cast(graph, node, like[0].dtype)
    kind = np.float32 if graph.is_float(graph.operand(node.inputs[1])) else np.int64
    value = graph.known(node.input)
    return [v.astype(kind) for v in value] if value else _cast(graph, node, np.dtype(kind))


def _cast(graph: Graph, node: Node, dtype: np.dtype[Any]) -> Any:
    x = graph.operand(node.input)
    if dtype.kind == "f" or "float" in dtype.name:
        return x if graph.is_float(x) else graph.call("to", x, dtype=torch.float32)
    return graph.call("to", x, dtype=getattr(torch, dtype.name))


def where(graph: Graph, node: Node) -> Any:
    """Lower Where."""
    return graph.call("where", *map(graph.operand, node.inputs))


def _axes(graph: Graph, node: Node) -> tuple[int, ...] | None:
    """Return the axes that an operator reduces, from 0; None if it reduces none."""
    rank = graph.rank(graph.operand(node.input))
    axes = node.get("axes")
    if axes is None and node.has(1):
        axes = graph.ints(node.inputs[1])
    if not axes:
        return None if node.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(axis % rank for axis in axes))


def reduce(graph: Graph, node: Node) -> Any:
    """Lower the operators that reduce axes; the mean of each map is adaptive pooling."""
    x, axes, keep = graph.operand(node.input), _axes(graph, node), bool(node.get("keepdims", 1))
    square = node.op == "ReduceSumSquare"
    if axes is None:
        return graph.call("square", x) if square else x
    if node.op == "ReduceMean" and graph.rank(x) == 4 and axes == (2, 3):
        pooled = graph.call("adaptive_avg_pool2d", x, output_size=1)
        return pooled if keep else graph.call("flatten", pooled, start_dim=1)
    if node.op in NORMS:
        return graph.call("vector_norm", x, ord=NORMS[node.op], dim=axes, keepdim=keep)
    if node.op == "ReduceLogSumExp":
        return graph.call("logsumexp", x, dim=axes, keepdim=keep)
    if node.op == "ReduceProd":
        for axis in reversed(axes):
            x = graph.call("prod", x, dim=axis, keepdim=keep)
        return x
    if 0 in graph.shape(x):
        raise TeacherError(f"{node.op} of an axis without values is not supported")
    x = graph.call("square", x) if square else x
    result = graph.call(REDUCTIONS.get(node.op, "sum"), x, dim=axes, keepdim=keep)
    return graph.call("log", result) if node.op == "ReduceLogSum" else result


def softmax(graph: Graph, node: Node) -> Any:
    """Lower Softmax and LogSoftmax; before opset 13 they are over an axis and all behind it."""
    x, function = graph.operand(node.input), "softmax" if node.op == "Softmax" else "log_softmax"
    shape = graph.shape(x)
    if graph.opset >= 13:
        return graph.call(function, x, dim=node.get("axis", -1))
    axis = node.get("axis", 1) % len(shape)
    if all(size == 1 for size in shape[axis + 1 :]):
        return graph.call(function, x, dim=axis)
    flat = graph.call(function, graph.call("flatten", x, start_dim=axis), dim=axis)
    return graph.call("unflatten", flat, dim=axis, sizes=shape[axis:])


def lp_normalization(graph: Graph, node: Node) -> Any:
    """Lower LpNormalization."""
    settings = {"p": float(node.get("p", 2)), "dim": node.get("axis", -1)}
    return graph.call("normalize", graph.operand(node.input), **settings)


def arg(graph: Graph, node: Node) -> Any:
    """Lower ArgMax and ArgMin."""
    if node.get("select_last_index", 0):
        raise TeacherError(f"{node.op} with select_last_index is not supported")
    settings = {"dim": node.get("axis", 0), "keepdim": bool(node.get("keepdims", 1))}
    return graph.call(node.op.lower(), graph.operand(node.input), **settings)


def einsum(graph: Graph, node: Node) -> Any:
    """Lower Einsum."""
    equation = node.get("equation").replace(" ", "")
    return graph.call("einsum", *map(graph.operand, node.inputs), equation=equation)


ELEMENTWISE: dict[str, Operator] = {
    **{op: unary(function) for op, function in UNARY.items()},
    **{op: binary(function) for op, function in BINARY.items()},
    **dict.fromkeys((*REDUCTIONS, *NORMS, "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"), reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax"), softmax),
    **dict.fromkeys(("Max", "Min"), extremum),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg),
    "Cast": cast,
    "CastLike": cast_like,
    "ReduceSumSquare": reduce,
    "Div": div,
    "Mod": mod,
    "Sum": total,
    "Mean": mean,
    "LeakyRelu": with_alpha("leaky_relu", 0.01, "negative_slope"),
    "Elu": with_alpha("elu", 1.0),
    "Celu": with_alpha("celu", 1.0),
    "Selu": selu,
    "HardSigmoid": hard_sigmoid,
    "Gelu": gelu,
    "Swish": swish,
    "ThresholdedRelu": thresholded_relu,
    "Clip": clip,
    "Where": where,
    "LpNormalization": lp_normalization,
    "Einsum": einsum,
}
"""Lowerings by operator."""
