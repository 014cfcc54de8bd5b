"""Write .tflite files as C arrays for TensorFlow Lite Micro, with estimates of flash and memory."""

import importlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamstill.exporters.litert import parse_tflite
from dreamstill.input_spec import InputSpec

__all__ = ["Buffer", "activations", "arena_bytes", "planned_bytes", "read_header", "to_header"]

ALIGNMENT = 16
PER_MODEL, PER_TENSOR, PER_OPERATOR, PER_CHANNEL = 768, 24, 176, 8
"""Bytes that TensorFlow Lite Micro keeps besides activations, as measured on a 64-bit processor."""
PLANNING = 72
"""Bytes that it takes for a tensor while it plans, where activations will be."""
WITH_CHANNELS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
"""Operators that keep a multiplier for each of their output channels."""
RESOLVER_NAMES = {"BATCH_MATMUL": "BatchMatMul"}


class Buffer(NamedTuple):
    """Activation in memory: size in bytes, and the steps at which it is made and last read."""

    size: int
    first: int
    last: int


def planned_bytes(buffers: Sequence[Buffer]) -> int:
    """Return the memory that TensorFlow Lite Micro's GreedyMemoryPlanner needs for buffers.

    The largest comes first, of equal ones the last; each takes the lowest gap between those that
    are in memory at the same time.

    >>> planned_bytes([Buffer(32, 0, 1), Buffer(64, 1, 2), Buffer(32, 2, 3)])
    96
    """
    placed: list[tuple[int, Buffer]] = []
    for _, buffer in sorted(enumerate(buffers), key=lambda pair: (pair[1].size, pair[0]))[::-1]:
        offset = 0
        for start, other in sorted(placed):
            if other.last < buffer.first or buffer.last < other.first:
                continue
            if start - offset >= buffer.size:
                break
            offset = max(offset, start + other.size)
        placed.append((offset, buffer))
    return max((offset + buffer.size for offset, buffer in placed), default=0)


def arena_bytes(data: bytes) -> int:
    """Estimate the tensor arena of a .tflite file: activations, and a generous overhead.

    A processor of 32 bits keeps about half of the overhead. Kernels of vendors, such as CMSIS-NN's,
    may take buffers of their own in addition.
    """
    model = parse_tflite(data)
    graph = model.subgraphs[0]
    channels: int = sum(
        graph.tensors[op.outputs[0]].shape[-1]
        for op in graph.operators
        if _operator(model, op) in WITH_CHANNELS
    )
    overhead = PER_MODEL + PER_CHANNEL * channels
    overhead += PER_TENSOR * len(graph.tensors) + PER_OPERATOR * len(graph.operators)
    return max(planned_bytes(activations(data)), PLANNING * len(graph.tensors)) + overhead


def activations(data: bytes) -> list[Buffer]:
    """Return the input, activations and output of a .tflite file, in the order of its tensors."""
    graph = parse_tflite(data).subgraphs[0]
    first = dict.fromkeys(graph.inputs, 0)
    last = dict(first)
    for step, op in enumerate(graph.operators, 1):
        first |= dict.fromkeys(op.outputs, step)
        last |= dict.fromkeys((i for i in [*op.inputs, *op.outputs] if i in first), step)
    last |= dict.fromkeys(graph.outputs, len(graph.operators))
    sizes = {index: _bytes_of(graph.tensors[index]) for index in first}
    return [Buffer(sizes[index], first[index], last[index]) for index in sorted(first)]


def _bytes_of(tensor: Any) -> int:
    """Return the bytes of a tensor in memory, aligned."""
    size: int = math.prod(tensor.shape) * np.dtype(_type(tensor)).itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT


def to_header(data: bytes, name: str, spec: InputSpec) -> bytes:
    """Return a C and C++ header that holds a .tflite file, described in a comment.

    Args:
        data: bytes of the .tflite file.
        name: name of the network; as an identifier, the array is NAME_tflite and its length
            NAME_tflite_len.
        spec: input of the network.

    """
    model = parse_tflite(data)
    graph = model.subgraphs[0]
    array = re.sub(r"^(?=\d)", "_", re.sub(r"\W", "_", name, flags=re.ASCII)) + "_tflite"
    planned = planned_bytes(activations(data))
    operators = sorted({_operator(model, op) for op in graph.operators})
    adds = [f"    resolver.Add{_resolver_name(operator)}();" for operator in operators]
    comment = [
        f"{array}: a network for TensorFlow Lite Micro",
        "",
        _described(graph.tensors[graph.inputs[0]]),
        f"    of pixels in [0, 1] as (pixel - mean) / std: mean {spec.mean}, std {spec.std}",
        _described(graph.tensors[graph.outputs[0]]),
        f"flash: {len(data)} bytes, and the code of the operators",
        f"tensor arena: about {arena_bytes(data)} bytes, {planned} of them for activations",
        "operators:",
        f"    tflite::MicroMutableOpResolver<{len(operators)}> resolver;",
        *adds,
    ]
    digits = [f"0x{byte:02x}," for byte in data]
    rows = [" ".join(digits[start : start + 16]) for start in range(0, len(data), 16)]
    lines = [
        *(f"// {line}".rstrip() for line in comment),
        "#pragma once",
        "#ifndef __cplusplus",
        "#include <stdalign.h>",
        "#endif",
        f"alignas({ALIGNMENT}) static const unsigned char {array}[] = {{",
        *(f"    {row}" for row in rows),
        "};",
        f"static const unsigned int {array}_len = {len(data)};",
    ]
    return ("\n".join(lines) + "\n").encode()


def read_header(path: Path) -> bytes:
    """Return the bytes of the .tflite file that a header holds."""
    utils = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    data: bytes = utils.xxd_output_to_bytes(path)
    return data


def _described(tensor: Any) -> str:
    """Return a line on an input or output: name, type, shape, and what its integers mean."""
    line = f"{tensor.name.decode()}: {_type(tensor)} {tuple(tensor.shape)}"
    scales = getattr(tensor.quantization, "scale", None)
    if not scales:
        return line
    zero = tensor.quantization.zeroPoint[0]
    return f"{line}, value = {scales[0]:.9g} * (integer - ({zero}))"


def _type(tensor: Any) -> str:
    """Return the type of a tensor, such as int8."""
    utils = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    name: str = utils.type_to_name(tensor.type)
    return name.lower()


def _operator(model: Any, op: Any) -> str:
    """Return the name of an operator, such as CONV_2D."""
    utils = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    name: str = utils.opcode_to_name(model, op.opcodeIndex)
    return name


def _resolver_name(operator: str) -> str:
    """Return an operator's name in MicroMutableOpResolver.

    >>> _resolver_name("MAX_POOL_2D")
    'MaxPool2D'
    """
    words = [word if word[0].isdigit() else word.capitalize() for word in operator.split("_")]
    return RESOLVER_NAMES.get(operator, "".join(words))
