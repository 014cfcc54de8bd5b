"""The operators of ONNX that can be opened, and advice about those that cannot."""

from collections.abc import Mapping

import onnx

from dreamstill.errors import TeacherError
from dreamstill.loaders.onnx.elementwise import ELEMENTWISE
from dreamstill.loaders.onnx.graph import Operator
from dreamstill.loaders.onnx.layers import LAYERS
from dreamstill.loaders.onnx.shapes import SHAPES

__all__ = ["OPERATORS", "check_operators"]

OPERATORS: Mapping[str, Operator] = {**LAYERS, **ELEMENTWISE, **SHAPES}
"""Lowerings by operator; nodes of constants alone are computed, whatever their operator."""
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "Integer",
    "QLinear",
    "QGemm",
)


def check_operators(model: onnx.ModelProto) -> None:
    """Raise TeacherError if a file is quantized or has control flow."""
    for node in model.graph.node:
        if any(word in node.op_type for word in QUANTIZED):
            raise TeacherError(
                f"the file is quantized already ({node.op_type}), and a teacher is of floats: "
                "export the network before it was quantized"
            )
        if node.op_type in CONTROL_FLOW:
            raise TeacherError(
                f"the file has control flow ({node.op_type}), which is not followed: export the "
                "network again without it, or give its weights with a factory"
            )
