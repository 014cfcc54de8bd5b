"""ONNX files keep their answers, their input and output, and nothing that no runtime reads."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import toys
from dreamstill.exporters.formats import export, onnxruntime
from dreamstill.exporters.int8 import export_int8
from dreamstill.exporters.onnx_file import to_bytes


def branching() -> onnx.ModelProto:
    """Return a network with equal weights, an unused one, notes, and a branch that reads both."""
    held = {
        name: numpy_helper.from_array(np.array(values, np.float32), name)
        for name, values in {"first": [1, 2], "second": [1, 2], "unused": [3] * 1000}.items()
    }
    scaled = [helper.make_node("Mul", ["moved", "second"], ["scaled"])]
    plain = [helper.make_node("Neg", ["moved"], ["negated"])]
    shape = [None, 2]
    branches = {
        "then_branch": helper.make_graph(
            scaled, "then", [], [helper.make_tensor_value_info("scaled", TensorProto.FLOAT, shape)]
        ),
        "else_branch": helper.make_graph(
            plain, "else", [], [helper.make_tensor_value_info("negated", TensorProto.FLOAT, shape)]
        ),
    }
    nodes = [
        helper.make_node("Add", ["input", "first"], ["moved"], name="long name", doc_string="why"),
        helper.make_node("ReduceMax", ["moved"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "0"], ["positive"]),
        helper.make_node("If", ["positive"], ["logits"], **branches),
    ]
    held["0"] = numpy_helper.from_array(np.array(0, np.float32), "0")
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        initializer=list(held.values()),
        value_info=[helper.make_tensor_value_info("moved", TensorProto.FLOAT, shape)],
        doc_string="made by hand",
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("unused.domain", 1)]
    )
    model.ir_version = 9
    helper.set_model_props(model, {"shape": "[1, 1, 2]", "author": "someone"})
    return model


@pytest.mark.parametrize("short_names", [False, True])
def test_a_file_keeps_its_answers_without_what_is_not_read(short_names: bool) -> None:
    model = branching()
    whole = model.SerializeToString()
    data = to_bytes(ir.from_proto(model), short_names=short_names)
    small = onnx.load_from_string(data)
    onnx.checker.check_model(small, full_check=True)
    inputs = {"input": np.array([[1, -2], [-5, -4]], np.float32)}
    for given in (inputs, {"input": -10 + inputs["input"]}):
        answers = [
            onnxruntime().InferenceSession(file).run(["logits"], given)[0] for file in (whole, data)
        ]
        assert np.array_equal(*answers)
    names = {tensor.name for tensor in small.graph.initializer}
    assert names == {"0", "1"} if short_names else names == {"first", "second", "0"}
    assert {p.key: p.value for p in small.metadata_props} == {"shape": "[1, 1, 2]"}
    assert not small.graph.value_info
    assert [opset.domain for opset in small.opset_import] == [""]
    assert b"long name" not in data
    assert b"why" not in data


def test_exported_files_are_little_more_than_their_weights(tmp_path: Path) -> None:
    model = toys.SmallCnn(width=32, num_classes=100).eval()
    images = toys.SPEC.noise(16)
    export(model, tmp_path / "whole.onnx", toys.SPEC)
    export_int8(model, toys.SPEC, images, tmp_path / "int8.onnx")
    parameters = sum(p.numel() for p in model.parameters())
    assert (tmp_path / "whole.onnx").stat().st_size < 4 * parameters + 2500
    assert (tmp_path / "int8.onnx").stat().st_size < parameters + 4000
    whole, int8 = (onnx.load(tmp_path / name) for name in ("whole.onnx", "int8.onnx"))
    assert "head.weight" in {tensor.name for tensor in whole.graph.initializer}
    for file in (whole, int8):
        onnx.checker.check_model(file, full_check=True)
        properties = {p.key: json.loads(p.value) for p in file.metadata_props}
        assert properties == {"shape": [1, 8, 8], "mean": [0.5], "std": [0.25]}
    session = onnxruntime().InferenceSession(str(tmp_path / "int8.onnx"))
    inputs = toys.SPEC.encode(images)
    (logits,) = session.run(["logits"], {"input": inputs.numpy()})
    with torch.no_grad():
        assert (torch.from_numpy(logits) - model(inputs)).abs().max() < 0.05
