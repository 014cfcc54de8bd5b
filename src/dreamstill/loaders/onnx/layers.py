"""Operators of ONNX that have weights, or that look at windows: layers and functions of torch."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from dreamstill.errors import TeacherError
from dreamstill.loaders.onnx.graph import Graph, Node, Operator, plain_tensor
from dreamstill.nn.padding import pad_around

__all__ = ["LAYERS"]

CONVS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS: tuple[Any, ...] = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS: tuple[Any, ...] = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def _filled(
    layer: Any, weight: np.ndarray, bias: np.ndarray | None, **buffers: np.ndarray
) -> nn.Module:
    """Return a layer with the weights of the file."""
    layer.weight = nn.Parameter(plain_tensor(weight))
    layer.bias = None if bias is None else nn.Parameter(plain_tensor(bias))
    for name, value in buffers.items():
        layer.register_buffer(name, plain_tensor(value))
    filled: nn.Module = layer
    return filled


def _is_constant(graph: Graph, node: Node, *indices: int) -> bool:
    return all(graph.known(node.inputs[index]) for index in indices if node.has(index))


def _bias(graph: Graph, node: Node, index: int) -> np.ndarray | None:
    """Return a layer's bias; zeros are what torch's exporter writes for a layer without one."""
    bias = graph.constant(node.inputs[index]) if node.has(index) else None
    return bias if bias is not None and bias.any() else None


def _pads(
    node: Node, sizes: tuple[int, ...], kernel: list[int], stride: list[int], dilation: list[int]
) -> list[tuple[int, int]]:
    """Return the padding before and behind each axis."""
    auto, dims = node.get("auto_pad", "NOTSET"), len(kernel)
    if auto in ("NOTSET", "VALID", ""):
        pads = node.get("pads", [0] * 2 * dims) if auto != "VALID" else [0] * 2 * dims
        return [(pads[n], pads[n + dims]) for n in range(dims)]
    found = []
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        total = max((math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return found


def _reversed(pads: list[tuple[int, int]]) -> list[int]:
    """Return pads in the order of F.pad: the last axis first."""
    return [n for pair in reversed(pads) for n in pair]


def conv(graph: Graph, node: Node) -> Any:
    """Lower Conv to nn.Conv1d, nn.Conv2d or nn.Conv3d; uneven padding is part of the layer."""
    x = graph.operand(node.input)
    if not _is_constant(graph, node, 1, 2):
        return _conv_of_values(graph, node, x)
    weight, bias = graph.constant(node.inputs[1]), _bias(graph, node, 2)
    kernel, dims = list(weight.shape[2:]), weight.ndim - 2
    stride, dilation = node.get("strides", [1] * dims), node.get("dilations", [1] * dims)
    pads = _pads(node, graph.shape(x)[2:], kernel, stride, dilation)

    def make() -> nn.Module:
        groups = node.get("group", 1)
        kind, inputs = CONVS[dims - 1], weight.shape[1] * groups
        layer = kind(inputs, len(weight), kernel, stride, 0, dilation, groups, device="meta")
        pad_around(layer, _reversed(pads))
        return _filled(layer, weight, bias)

    return graph.layer(node, make, x, *node.inputs[1:3])


def _conv_of_values(graph: Graph, node: Node, x: Any) -> Any:
    weight = graph.operand(node.inputs[1])
    bias = graph.operand(node.inputs[2]) if node.has(2) else None
    kernel = list(graph.shape(weight)[2:])
    stride = node.get("strides", [1] * len(kernel))
    dilation = node.get("dilations", [1] * len(kernel))
    pads = _pads(node, graph.shape(x)[2:], kernel, stride, dilation)
    x = graph.call("pad", x, pad=_reversed(pads)) if any(map(sum, pads)) else x
    settings = {"stride": stride, "dilation": dilation, "groups": node.get("group", 1)}
    return graph.call(f"conv{len(kernel)}d", x, weight, bias, **settings)


def conv_transpose(graph: Graph, node: Node) -> Any:
    """Lower ConvTranspose; padding that torch does not have cuts or fills the edges behind it."""
    x, weight = graph.operand(node.input), graph.constant(node.inputs[1])
    kernel, dims = list(weight.shape[2:]), weight.ndim - 2
    stride, dilation = node.get("strides", [1] * dims), node.get("dilations", [1] * dims)
    more = node.get("output_padding", [0] * dims)
    sizes = graph.shape(x)[2:]
    whole = [
        s * (n - 1) + d * (k - 1) + 1
        for n, s, d, k in zip(sizes, stride, dilation, kernel, strict=True)
    ]
    auto, wanted = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    if auto.startswith("SAME") and wanted is None:
        wanted = [n * s for n, s in zip(sizes, stride, strict=True)]
    if wanted is not None:
        totals = [n + p - out for n, p, out in zip(whole, more, wanted[-dims:], strict=True)]
        upper = auto == "SAME_UPPER"
        pads = [(t // 2, t - t // 2) if upper else (t - t // 2, t // 2) for t in totals]
    else:
        given = node.get("pads", [0] * 2 * dims) if auto != "VALID" else [0] * 2 * dims
        pads = [(given[n], given[n + dims]) for n in range(dims)]
    even = all(a == b >= 0 for a, b in pads) and all(
        p < s for p, s in zip(more, stride, strict=True)
    )
    groups, bias = node.get("group", 1), _bias(graph, node, 2)

    def make() -> nn.Module:
        layer = TRANSPOSED[dims - 1](
            len(weight),
            weight.shape[1] * groups,
            kernel,
            stride,
            tuple(a for a, _ in pads) if even else 0,
            tuple(more) if even else 0,
            groups,
            dilation=tuple(dilation),
            device="meta",
        )
        return _filled(layer, weight, bias)

    y = graph.layer(node, make, x, *node.inputs[1:3])
    if even:
        return y
    edges = [(-a, p - b) for (a, b), p in zip(pads, more, strict=True)]
    return graph.call("pad", y, pad=_reversed(edges))


def linear(
    graph: Graph, node: Node, x: Any, weight: np.ndarray, bias: np.ndarray | None, *names: str
) -> str:
    """Add a linear layer of a weight (outputs, inputs)."""

    def make() -> nn.Module:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        return _filled(layer, weight, bias)

    return graph.layer(node, make, x, *names)


def gemm(graph: Graph, node: Node) -> Any:
    """Lower Gemm to nn.Linear, or to a product of matrices if both are computed."""
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    a = graph.operand(node.input)
    if _is_constant(graph, node, 1, 2) and graph.known(node.inputs[1]):
        weight, bias = graph.constant(node.inputs[1]), _bias(graph, node, 2)
        weight = alpha * (weight if node.get("transB", 0) else weight.T)
        vector = bias is None or bias.ndim < 2 or bias.shape[0] == 1
        if vector:
            if bias is not None:
                bias = np.broadcast_to(beta * bias.ravel(), len(weight))
            a = graph.call("permute", a, dims=(1, 0)) if node.get("transA", 0) else a
            return linear(graph, node, a, weight, bias, *node.inputs[1:3])
    b = graph.operand(node.inputs[1])
    a = graph.call("permute", a, dims=(1, 0)) if node.get("transA", 0) else a
    b = graph.call("permute", b, dims=(1, 0)) if node.get("transB", 0) else b
    y = graph.call("matmul", a, b)
    y = graph.call("mul", y, alpha) if alpha != 1 else y
    if not node.has(2):
        return y
    c = graph.operand(node.inputs[2])
    return graph.call("add", y, graph.call("mul", c, beta) if beta != 1 else c)


def matmul(graph: Graph, node: Node) -> Any:
    """Lower MatMul with a constant matrix, and an Add of a constant vector behind it, to Linear."""
    if (matrix := graph.known(node.inputs[1])) is None or matrix[0].ndim != 2:
        return graph.call("matmul", graph.operand(node.input), graph.operand(node.inputs[1]))
    x, weight = graph.operand(node.input), graph.constant(node.inputs[1]).T
    after = graph.only_reader(node.outputs[0])
    if after is not None and after.op_type == "Add" and graph.rank(x) > 1:
        other = next((name for name in after.input if name != node.outputs[0]), "")
        vector = graph.known(other) if other in graph.values else None
        if vector is not None and vector[0].shape == (len(weight),):
            y = linear(graph, node, x, weight, vector[0], node.inputs[1], other)
            graph.values[after.output[0]] = y
            graph.merged.add(after.output[0])
            return y
    return linear(graph, node, x, weight, None, node.inputs[1])


def batch_norm(graph: Graph, node: Node) -> Any:
    """Lower BatchNormalization of running statistics to nn.BatchNorm1d, 2d or 3d."""
    if node.get("training_mode", 0) or (node.opset < 14 and graph.readers[(*node.outputs, "")[1]]):
        raise TeacherError(
            "the file was exported in train mode, where an answer depends on the whole batch: "
            "export the network in eval mode"
        )
    x = graph.operand(node.input)
    scale, shift, mean, var = (graph.constant(name) for name in node.inputs[1:5])
    kind = BATCH_NORMS[max(graph.rank(x) - 2, 0)]

    def make() -> nn.Module:
        layer = kind(len(scale), eps=node.get("epsilon", 1e-5), device="meta")
        layer.num_batches_tracked = torch.tensor(0)
        return _filled(layer, scale, shift, running_mean=mean, running_var=var)

    return graph.layer(node, make, x, *node.inputs[1:5])


def instance_norm(graph: Graph, node: Node) -> Any:
    """Lower InstanceNormalization to nn.InstanceNorm1d, 2d or 3d, or to the GroupNorm it is of."""
    x = graph.operand(node.input)
    scale, shift = graph.constant(node.inputs[1]), graph.constant(node.inputs[2])
    if (scale == 1).all() and (shift == 0).all() and (grouped := _group_norm_of(graph, node, x)):
        return grouped
    kind = INSTANCE_NORMS[graph.rank(x) - 3]

    def make() -> nn.Module:
        layer = kind(len(scale), eps=node.get("epsilon", 1e-5), affine=True, device="meta")
        return _filled(layer, scale, shift)

    return graph.layer(node, make, x, *node.inputs[1:3])


def _group_norm_of(graph: Graph, node: Node, x: Any) -> Any:
    """Lower GroupNorm as torch's older exporter writes it; None if a node is of something else.

    It is a Reshape to groups, InstanceNormalization, a Reshape back, Mul and Add.
    """
    made = [inputs[0] for op, inputs, outputs, _ in graph.steps if op == "reshape" and x in outputs]
    names, weights = [node.outputs[0]], list[str]()
    for op in ("Reshape", "Mul", "Add"):
        after = graph.only_reader(names[-1])
        if not made or after is None or after.op_type != op:
            return None
        names.append(after.output[0])
        if op != "Reshape":
            weights += [n for n in after.input if n in graph.values and graph.known(n)]
    width = graph.shape(made[0])[1]
    if [graph.constant(name).size for name in weights] != [width, width]:
        return None
    scale, shift = (graph.constant(name).ravel() for name in weights)

    def make() -> nn.Module:
        num_groups = graph.shape(x)[1]
        layer = nn.GroupNorm(num_groups, width, eps=node.get("epsilon", 1e-5), device="meta")
        return _filled(layer, scale, shift)

    y = graph.layer(node, make, made[0], *weights)
    graph.merged.update(names[1:])
    graph.values[names[-1]] = y
    return y


def layer_norm(graph: Graph, node: Node) -> Any:
    """Lower LayerNormalization to nn.LayerNorm."""
    x = graph.operand(node.input)
    scale, shift = graph.constant(node.inputs[1]), _bias(graph, node, 2)
    normalized = graph.shape(x)[node.get("axis", -1) :]

    def make() -> nn.Module:
        layer = nn.LayerNorm(normalized, eps=node.get("epsilon", 1e-5), device="meta")
        bias = None if shift is None else np.broadcast_to(shift, normalized)
        return _filled(layer, np.broadcast_to(scale, normalized), bias)

    return graph.layer(node, make, x, *node.inputs[1:3])


def group_norm(graph: Graph, node: Node) -> Any:
    """Lower GroupNormalization to nn.GroupNorm; before opset 21 it has one scale for a group."""
    x, num_groups = graph.operand(node.input), node.attributes["num_groups"]
    width = graph.shape(x)[1]
    scale, shift = graph.constant(node.inputs[1]), graph.constant(node.inputs[2])
    if len(scale) == num_groups:
        scale, shift = (np.repeat(value, width // num_groups) for value in (scale, shift))

    def make() -> nn.Module:
        layer = nn.GroupNorm(num_groups, width, eps=node.get("epsilon", 1e-5), device="meta")
        return _filled(layer, scale, shift)

    return graph.layer(node, make, x, *node.inputs[1:3])


def prelu(graph: Graph, node: Node) -> Any:
    """Lower PRelu to nn.PReLU if it has a slope for each channel, or one for all."""
    x, slope = graph.operand(node.input), graph.known(node.inputs[1])
    shape = slope[0].shape if slope else ()
    channels = graph.shape(x)[1] if graph.rank(x) > 1 else 1
    of_channels = shape == (channels, *(1,) * (graph.rank(x) - 2))
    if slope and (slope[0].size == 1 or of_channels):

        def make() -> nn.Module:
            layer = nn.PReLU(slope[0].size)
            layer.weight = nn.Parameter(plain_tensor(slope[0].ravel()))
            return layer

        return graph.layer(node, make, x, node.inputs[1])
    negative = graph.call("mul", graph.operand(node.inputs[1]), graph.call("clamp", x, max=0))
    return graph.call("add", graph.call("relu", x), negative)


def pool(graph: Graph, node: Node) -> Any:
    """Lower MaxPool and AveragePool to functions of torch."""
    x, kernel = graph.operand(node.input), node.attributes["kernel_shape"]
    dims, largest = len(kernel), node.op == "MaxPool"
    if len(node.outputs) > 1 and graph.readers[node.outputs[1]]:
        raise TeacherError("the indices of MaxPool are used, which is not supported")
    stride, dilation = node.get("strides", [1] * dims), node.get("dilations", [1] * dims)
    pads = _pads(node, graph.shape(x)[2:], kernel, stride, dilation)
    settings: dict[str, Any] = {"kernel_size": tuple(kernel), "stride": tuple(stride)}
    settings["ceil_mode"] = (
        bool(node.get("ceil_mode", 0)) and node.get("auto_pad", "NOTSET") == "NOTSET"
    )
    if largest:
        settings["dilation"] = tuple(dilation)
    elif any(d != 1 for d in dilation):
        raise TeacherError("AveragePool with dilations is not supported")
    counted = bool(node.get("count_include_pad", 0))
    even = all(a == b and a <= k // 2 for (a, b), k in zip(pads, kernel, strict=True))
    if even:
        settings["padding"] = tuple(a for a, _ in pads)
        if not largest:
            settings["count_include_pad"] = counted
    elif largest or counted:
        x = graph.call("pad", x, pad=_reversed(pads), value=-math.inf if largest else 0.0)
    else:
        return graph.call("average", x, pads=_reversed(pads), **settings)
    return graph.call(f"{'max' if largest else 'avg'}_pool{dims}d", x, **settings)


def global_pool(graph: Graph, node: Node) -> Any:
    """Lower GlobalAveragePool and GlobalMaxPool to adaptive pooling."""
    x, kind = graph.operand(node.input), "max" if node.op == "GlobalMaxPool" else "avg"
    return graph.call(f"adaptive_{kind}_pool{graph.rank(x) - 2}d", x, output_size=1)


def lrn(graph: Graph, node: Node) -> Any:
    """Lower LRN to F.local_response_norm."""
    settings = {"alpha": node.get("alpha", 1e-4), "beta": node.get("beta", 0.75)}
    settings |= {"k": node.get("bias", 1.0), "size": node.attributes["size"]}
    return graph.call("local_response_norm", graph.operand(node.input), **settings)


LAYERS: dict[str, Operator] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "GroupNormalization": group_norm,
    "PRelu": prelu,
    "MaxPool": pool,
    "AveragePool": pool,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    "LRN": lrn,
}
"""Lowerings by operator."""
