"""The input of an ONNX file: its shape, its batch size, and what has to be done with images."""

import contextlib
import json
from dataclasses import dataclass
from typing import Any

import onnx
from torch import Tensor

from dreamstill.config import OutputKind
from dreamstill.errors import TeacherError
from dreamstill.loaders.onnx.graph import Graph

__all__ = ["FileInput", "inputs_of"]

Kind = onnx.TensorProto
FLOATS = (Kind.FLOAT, Kind.DOUBLE, Kind.FLOAT16)
"""Types of an input that are read."""


@dataclass(frozen=True)
class FileInput:
    """The one input of a file, which takes images (N, C, H, W) or in another order of axes."""

    name: str
    shape: tuple[int, int, int]
    """(C, H, W) of an image, whatever the order in the file."""
    order: str
    """"NCHW", "NHWC", or "NCL" of signals."""
    batch: int | None
    """Batch size that is written in the file."""
    notes: tuple[str, ...]
    """Sentences for the user."""

    @classmethod
    def of(cls, model: onnx.ModelProto, name: str, card: dict[str, Any]) -> "FileInput":
        """Read the input of a model; raise TeacherError if it is not one batch of images."""
        inputs = inputs_of(model)
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs)
            raise TeacherError(
                f"{name} has {len(inputs)} inputs ({names}), and a teacher takes a batch of images"
            )
        kind = inputs[0].type.tensor_type
        if kind.elem_type not in FLOATS:
            got = Kind.DataType.Name(kind.elem_type).lower()
            raise TeacherError(
                f"{name} takes {got} values, and a teacher takes images as floats: export the "
                "network without the steps that convert them"
            )
        sizes = [
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
            for d in kind.shape.dim
        ]
        order, shape = _order(sizes, card.get("shape", _said(model).get("shape")), name)
        notes: tuple[str, ...] = ()
        if order == "NHWC":
            notes = (
                f"{name} takes images as (N, H, W, C): they are (N, C, H, W) here, as always.",
            )
        return cls(inputs[0].name, shape, order, sizes[0], notes)

    def shape_of(self, num: int) -> tuple[int, ...]:
        """Return the shape of a batch in this library."""
        return (num, *self.shape)

    def in_file(self, inputs: Tensor) -> Tensor:
        """Return images (N, C, H, W) in the order of the file's axes."""
        orders = {"NHWC": lambda x: x.permute(0, 2, 3, 1), "NCL": lambda x: x.squeeze(2)}
        return orders[self.order](inputs) if self.order in orders else inputs

    def begin(self, graph: Graph) -> None:
        """Let the file's input be computed from images (N, C, H, W)."""
        if self.order == "NHWC":
            graph.values[self.name] = graph.call("permute", "%0", dims=(0, 2, 3, 1))
        elif self.order == "NCL":
            graph.values[self.name] = graph.call("squeeze", "%0", dim=2)

    def card(self, model: onnx.ModelProto) -> dict[str, Any]:
        """Return what the file says of its input, in the keys of a card."""
        return _said(model) | {"shape": [*self.shape]}


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs of a model; old files list their weights among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _said(model: onnx.ModelProto) -> dict[str, Any]:
    """Return shape, mean, std and outputs that `dreamstill export` has written into a file."""
    said: dict[str, Any] = {}
    for entry in model.metadata_props:
        if entry.key in ("shape", "mean", "std"):
            with contextlib.suppress(ValueError):  # another program's entry of the same name
                value = json.loads(entry.value)
                if isinstance(value, list) and all(isinstance(n, int | float) for n in value):
                    said[entry.key] = value
        if entry.key == "outputs":
            with contextlib.suppress(ValueError):
                said[entry.key] = OutputKind(json.loads(entry.value)).value
    return said


def _order(sizes: list[int | None], asked: Any, name: str) -> tuple[str, tuple[int, int, int]]:
    """Return the order of a file's axes, and the shape (C, H, W) of an image."""
    text = "x".join("?" if size is None else str(size) for size in sizes)
    if len(sizes) not in (3, 4):
        raise TeacherError(
            f"{name} takes {text}, and a teacher takes images (N, C, H, W) or signals (N, C, L)"
        )
    order, own = "NCHW", sizes[1:]
    if len(sizes) == 3:
        order, own = "NCL", [sizes[1], 1, sizes[2]]
    elif sizes[3] in (1, 3) and sizes[1] not in (1, 3):
        order, own = "NHWC", [sizes[3], *sizes[1:3]]
    if asked is None and None in own:
        raise TeacherError(f"{name} leaves sizes of its input open ({text}): give shape as C,H,W")
    shape: Any = own if asked is None else asked
    fits = isinstance(shape, list | tuple) and len(shape) == 3
    if not fits or not all(
        type(n) is int and m in (None, n) for m, n in zip(own, shape, strict=True)
    ):
        hint = " (a signal is C,1,L)" if order == "NCL" else ""
        raise TeacherError(f"{name} takes {text} in the order {order}; got shape {shape}{hint}")
    channels, height, width = shape
    return order, (channels, height, width)
