"""Lower the graph of an ONNX file to the steps of a `GraphNetwork`.

ONNX computes shapes with nodes of its own. They are not run later: a graph is followed on examples
of two batch sizes, so that each value is either computed from the input or known. A known value
that is the same for both examples is a constant, and a size that grows with the batch becomes -1.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.func import functional_call

from dreamstill.errors import TeacherError, first_line
from dreamstill.nn.graph_network import FUNCTIONS, GraphNetwork, Step

__all__ = ["Graph", "Node", "Operator", "Shapes", "batch_axis", "plain_tensor"]

Known = list[np.ndarray]
"""A value that does not depend on the pixels, for each example."""
Shapes = list[tuple[int, ...]]
"""The shape of a value, for each example."""
RENAMED = str.maketrans({"/": ".", ":": "_"})
OF_LAYER = re.compile(r"[._/](weight|bias|kernel|gamma|beta|w_0|b_0)(:0)?$")
"""Endings of the names of weights, after the name of the layer."""
MADE_UP = re.compile(r"onnx::|_?val_|const|\d+$")
"""Beginnings of the names that exporters give to their own constants."""


@dataclass(frozen=True)
class Node:
    """A node of the file."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    @property
    def input(self) -> str:
        """Name of the first input."""
        return self.inputs[0]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Return whether an optional input is given."""
        return len(self.inputs) > index and self.inputs[index] != ""


Operator = Callable[["Graph", Node], Any]
"""Lowers a node: returns its output, a name among the steps or a known value, or a tuple of all."""


class Graph:
    """The steps, layers and constants of a network while its file is read.

    Args:
        model: ONNX model without functions.
        examples: inputs by name, of one or more batch sizes; all else is a constant.
        batch: batch size that is written in the file, None if it is left open.

    Raises:
        TeacherError: a node cannot be lowered.

    """

    def __init__(
        self,
        model: onnx.ModelProto,
        examples: Sequence[Mapping[str, Tensor]],
        batch: int | None = None,
    ) -> None:
        self.model, self.batch, self.num = model, batch, len(examples)
        self.opset = max(
            [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")] + [1]
        )
        self.input = "%0"
        self.steps: list[Step] = []
        self.parts: dict[str, nn.Module | Tensor] = {}
        self.values: dict[str, Known | str] = {}
        self.origins: dict[str, str] = {}
        self.readers = Counter(name for node in model.graph.node for name in node.input if name)
        self.readers.update(output.name for output in model.graph.output)
        self.merged: set[str] = set()
        self._layers: dict[str, str] = {}
        self._examples: dict[str, list[Any]] = {}
        for tensor in model.graph.initializer:
            self.values[tensor.name] = [numpy_helper.to_array(tensor)] * self.num
            self.origins[tensor.name] = tensor.name
        for index, name in enumerate(examples[0]):
            self.values[name] = f"%{index}"
            self._examples[f"%{index}"] = [example[name].to("meta") for example in examples]

    def lower(self, operators: Mapping[str, Operator]) -> None:
        """Lower all nodes with a table of operators: those of constants first."""
        nodes = [(self._node(proto), proto) for proto in self.model.graph.node]
        for node, proto in nodes:
            if all(isinstance(self.values.get(name), list) for name in node.inputs if name):
                self._lower(node, proto, operators)
        for node, proto in nodes:
            if not any(name in self.values or name in self.merged for name in node.outputs):
                self._lower(node, proto, operators)

    def _node(self, proto: Any) -> Node:
        attributes = {a.name: _plain(helper.get_attribute_value(a)) for a in proto.attribute}
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        op = f"{domain}.{proto.op_type}".lstrip(".")
        names = tuple(proto.input), tuple(proto.output)
        return Node(op, proto.name, *names, attributes, self.opset)

    def _lower(self, node: Node, proto: Any, operators: Mapping[str, Operator]) -> None:
        """Lower a node; raise TeacherError, whatever is wrong with it."""
        try:
            self._lower_or_fail(node, proto, operators)
        except TeacherError:
            raise
        except Exception as error:  # of torch or numpy, about shapes that do not fit
            fixed = self.batch is not None
            hint = f"; it is written for {self.batch} images at once: export it with a dynamic "
            raise TeacherError(
                f"node {node.name or node.outputs[0]!r} ({node.op}) cannot be read: "
                f"{first_line(error)}{(hint + 'batch size') * fixed}"
            ) from error

    def _lower_or_fail(self, node: Node, proto: Any, operators: Mapping[str, Operator]) -> None:
        if all(isinstance(self.values[name], list) for name in node.inputs if name):
            self._compute(node, proto)
            return
        if node.op not in operators:
            raise TeacherError(
                f"the operator {node.op} (node {node.name or node.outputs[0]!r}) is not supported: "
                "export the network again without it, or give its weights with a factory"
            )
        given = operators[node.op](self, node)
        results = given if isinstance(given, tuple) else (given,)
        self.values |= dict(zip(node.outputs, results, strict=False))
        for name in node.outputs[len(results) :]:
            if self.readers[name]:
                raise TeacherError(f"the second output of {node.op} is used, which is not read")

    def _compute(self, node: Node, proto: Any) -> None:
        """Compute the outputs of a node from known values, as ONNX's reference does."""
        infos = [
            [onnx.ValueInfoProto(name=n) for n in names if n]
            for names in (node.inputs, node.outputs)
        ]
        graph = helper.make_graph([proto], "node", infos[0], infos[1])
        version = {"opset_imports": self.model.opset_import, "ir_version": self.model.ir_version}
        run = ReferenceEvaluator(helper.make_model(graph, **version)).run
        inputs: dict[str, Any] = {name: self.values[name] for name in node.inputs if name}
        changing = any(value[0] is not value[-1] for value in inputs.values())
        results = [
            run(None, {name: value[index] for name, value in inputs.items()})
            for index in range(self.num if changing else 1)
        ]
        for name, values in zip(
            filter(None, node.outputs), zip(*results, strict=True), strict=True
        ):
            self.values[name] = [np.asarray(value) for value in values] * (self.num // len(values))
        if node.op in ("Identity", "Transpose", "Cast", "Reshape", "Unsqueeze", "Squeeze"):
            self.origins[node.outputs[0]] = self.origins.get(node.inputs[0], node.outputs[0])

    def call(self, function: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add a step that calls one of FUNCTIONS; return the name of its output, or all names."""
        names = tuple(f"%{len(self._examples) + index}" for index in range(outputs))
        self._add((function, inputs, names, attributes), FUNCTIONS[function])
        return names if outputs > 1 else names[0]

    def layer(self, node: Node, make: Callable[[], nn.Module], x: Any, *weights: str) -> str:
        """Add a step that calls a layer; nodes alike share one.

        Args:
            node: node that becomes the layer.
            make: function that returns it.
            x: input of the layer.
            weights: names of its weights in the file, by which it is called.

        """
        key = f"{node.op}{node.inputs[1:]}{sorted(node.attributes.items())}{weights}"
        if key not in self._layers:
            self._layers[key] = self._unused(self._name_of(node, weights))
            self.parts[self._layers[key]] = make().eval()
        name, output = self._layers[key], f"%{len(self._examples)}"
        module: Any = self.parts[name]
        state = {key: value.to("meta") for key, value in module.state_dict().items()}
        self._add(
            ("layer", (x,), (output,), {"name": name}),
            lambda *inputs, **_: functional_call(module, state, inputs),
        )
        return output

    def _add(self, step: Step, function: Callable[..., Any]) -> None:
        _, inputs, outputs, attributes = step
        for index in range(self.num):
            with torch.no_grad():
                result = function(*(self._shown(name, index) for name in inputs), **attributes)
            results = (result,) if len(outputs) == 1 else result
            for name, value in zip(outputs, results, strict=True):
                self._examples.setdefault(name, []).append(value)
        self.steps.append(step)

    def _shown(self, name: Any, index: int) -> Any:
        if not isinstance(name, str):
            return name
        if name in self._examples:
            return self._examples[name][index]
        part = self.parts[name]
        assert isinstance(part, Tensor)
        return part.to("meta")

    def known(self, name: str) -> Known | None:
        """Return a value for each example, or None if it is computed from the input."""
        value = self.values[name]
        return value if isinstance(value, list) else None

    def constant(self, name: str) -> np.ndarray:
        """Return a value that is the same for every input and batch size; otherwise raise."""
        value = self.values[name]
        if isinstance(value, str) or not all(np.array_equal(v, value[0]) for v in value[1:]):
            raise TeacherError(
                f"{name!r} is computed from the input, and only a constant is supported there"
            )
        return value[0]

    def ints(self, name: str) -> list[int]:
        """Return a constant's values as integers."""
        return [int(n) for n in self.constant(name).ravel()]

    def operand(self, name: str, *, like: str | None = None) -> Any:
        """Return what a step reads a value by: a name, or a number for a constant of one value.

        Args:
            name: value of the file.
            like: with this, a constant that has a row for each image is repeated for as many as
                this value has, and never a number; without, that is left to broadcasting.

        """
        value = self.values[name]
        if isinstance(value, str):
            return value
        axis = None if like is None else batch_axis(self.shapes(like))
        if axis is not None and value[0].shape[axis] in (1, self.batch, self.shape(like)[axis]):
            row = self.part(name, self._row(name, axis))
            return self.call("expand_like", row, like, dim=axis, ndim=value[0].ndim)
        changing = batch_axis([array.shape for array in value])
        rows = self.constant(name) if changing is None else self._row(name, changing)
        if rows.size == 1 and rows.ndim < 2 and like is None:
            return rows.item()
        return self.part(name, rows)

    def _row(self, name: str, axis: int) -> np.ndarray:
        """Return the one row that a constant repeats for each image; otherwise raise."""
        values = self.known(name) or []
        row = values[0].take([0], axis)
        if not all(np.array_equal(v, np.broadcast_to(row, v.shape)) for v in values):
            raise TeacherError(
                f"{name!r} differs between the images of a batch, which is not supported"
            )
        return row

    def part(self, name: str, array: np.ndarray) -> str:
        """Register a constant, as a parameter if it is of floats; return its name."""
        key = f"{name}{array.shape}"
        if key not in self._layers:
            tensor = plain_tensor(array)
            origin = self.origins.get(name, name)
            made_up = MADE_UP.match(origin)
            self._layers[key] = self._unused(f"constants.{name}" if made_up else origin)
            self.parts[self._layers[key]] = (
                nn.Parameter(tensor) if tensor.is_floating_point() else tensor
            )
        return self._layers[key]

    def shapes(self, x: Any) -> Shapes:
        """Return the shape of an operand, for each example."""
        return [tuple(self._shown(x, index).shape) for index in range(self.num)]

    def shape(self, x: Any) -> tuple[int, ...]:
        """Return the shape of an operand for the first example."""
        return self.shapes(x)[0]

    def rank(self, x: Any) -> int:
        """Return the number of axes of an operand."""
        return len(self.shape(x))

    def is_float(self, x: Any) -> bool:
        """Return whether an operand holds floats."""
        value = self._shown(x, 0)
        return value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float)

    def only_reader(self, output: str) -> Any:
        """Return the only node that reads a value, None if there are several or none."""
        if self.readers[output] != 1:
            return None
        return next((node for node in self.model.graph.node if output in node.input), None)

    def _name_of(self, node: Node, weights: Sequence[str]) -> str:
        for weight in weights:
            origin = self.origins.get(weight, weight)
            if not MADE_UP.match(origin) and (found := OF_LAYER.search(origin)):
                return origin[: found.start()]
        return _scope(node.name) or node.outputs[0]

    def _unused(self, name: str) -> str:
        """Return a name for a part that none has, nor any attribute of a module."""
        name = re.sub(r"[^\w.]", "_", name.removeprefix("onnx::").translate(RENAMED))
        name = ".".join(filter(None, name.split("."))) or "part"
        if hasattr(nn.Module, name.partition(".")[0]) or name.partition(".")[0] in RESERVED:
            name = f"_{name}"
        while any(
            f"{a}.".startswith(f"{b}.") for one in self.parts for a, b in ((one, name), (name, one))
        ):
            name = f"{name.replace('.', '_')}_"
        return name

    def network(self, output: str) -> GraphNetwork:
        """Return the network from the first input to an output of the file."""
        value = self.values.get(output)
        if not isinstance(value, str):
            raise TeacherError(f"the output {output!r} does not depend on the input")
        return GraphNetwork(self.steps, self.parts, self.input, value).eval()


RESERVED = {*vars(nn.Module()), "steps", "graph_input", "graph_output", "last_read"}


def batch_axis(shapes: Shapes) -> int | None:
    """Return the axis whose size grows with the batch, if any."""
    sizes = enumerate(zip(*shapes, strict=True))
    return next((axis for axis, size in sizes if len({*size}) > 1), None)


def plain_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor of an array, with floats of any size as float32."""
    if array.dtype.kind == "f" or "float" in array.dtype.name:
        array = array.astype(np.float32)
    return torch.tensor(array)


def _plain(value: Any) -> Any:
    """Return an attribute with text as str, and a float32 as the shortest number nearest to it."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    return value.decode() if isinstance(value, bytes) else value


def _scope(name: str) -> str:
    """Return the module of a node named by torch's exporter, such as /layer1/layer1.0/conv/Conv.

    >>> _scope("/layer1/layer1.0/conv/Conv")
    'layer1.0.conv'
    """
    path: list[str] = []
    for part in name.split("/")[1:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)
