"""Files for LiteRT and TensorFlow Lite Micro, opened again where they run."""

import importlib.util
import re
import shutil
import subprocess
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import toys
from dreamstill.data.images import load_images
from dreamstill.errors import ExportError
from dreamstill.evaluation import accuracy
from dreamstill.exporters.c_array import (
    Buffer,
    activations,
    arena_bytes,
    planned_bytes,
    read_header,
    to_header,
)
from dreamstill.exporters.config import Calibration
from dreamstill.exporters.formats import export, load_exported
from dreamstill.exporters.int8 import export_int8
from dreamstill.exporters.litert import parse_tflite, quantized
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.nn.lenet import lenet5
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.deployment import compare_files
from dreamstill.teacher import Teacher

SPEC = InputSpec(shape=(3, 12, 7), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
litert = pytest.mark.skipif(
    importlib.util.find_spec("litert_torch") is None, reason="no litert-torch: dreamstill[litert]"
)
micro = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="no tflite-micro"
)


@pytest.fixture(scope="module")
def lenet() -> Teacher:
    with as_file(files("dreamstill") / "assets" / "lenet5_mnist.safetensors") as path:
        return open_from(TeacherFile(weights=str(path)))


@pytest.fixture(scope="module")
def digits(lenet: Teacher) -> tuple[Tensor, Tensor]:
    with as_file(files("dreamstill") / "assets" / "digits.npz") as path:
        return load_images(path, lenet.input_spec, 10)


@pytest.fixture(scope="module")
def int8(
    lenet: Teacher, digits: tuple[Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("int8") / "net.tflite"
    export_int8(lenet.module, lenet.input_spec, digits[0][:64], path)
    return path


def details(path: Path) -> list[dict[str, Any]]:
    """Return what LiteRT says of a file's input and of its output."""
    interpreter = import_module("ai_edge_litert.interpreter").Interpreter(str(path))
    return [interpreter.get_input_details()[0], interpreter.get_output_details()[0]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.h"
    record = export(toys.SmallCnn(channels=3), path, SPEC)
    assert record.bytes == len(read_header(path)) < path.stat().st_size
    assert record.max_abs_difference < 1e-5
    return path


@litert
def test_a_file_takes_normalized_images_one_by_one(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(read_header(small))
    given, made = details(path)
    assert [given["name"], made["name"]] == ["input", "logits"]
    assert [given["shape"].tolist(), made["shape"].tolist()] == [[1, 3, 12, 7], [1, 4]]
    assert given["dtype"] is made["dtype"] is np.float32
    assert b"toys" not in path.read_bytes()  # nor any other path of the machine
    inputs = torch.randn(5, *SPEC.shape)
    assert torch.equal(load_exported(path)(inputs), load_exported(small)(inputs))


@litert
def test_an_int8_file_keeps_the_accuracy_in_litert(
    int8: Path, lenet: Teacher, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    assert int8.stat().st_size < 1.2 * 61_706
    assert accuracy(load_exported(int8)(lenet.input_spec.encode(x)), y) > 0.98
    for tensor in details(int8):
        assert tensor["dtype"] is np.int8
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    black, white = lenet.input_spec.encode(ends).flatten().tolist()
    scale, zero = details(int8)[0]["quantization"]
    assert scale == pytest.approx((white - black) / 255, rel=0.02)
    assert zero == pytest.approx(-128 - black / scale, abs=1)


@litert
@pytest.mark.parametrize("calibration", [None, Calibration.PERCENTILE])
def test_padded_max_pooling_is_on_the_grid(calibration: Calibration | None, tmp_path: Path) -> None:
    """As in every ResNet: it is written with -inf, also where all values are below 0."""

    def pooled(shift: float) -> list[nn.Module]:
        conv = nn.Conv2d(3, 8, 3, padding=1)
        nn.init.constant_(conv.bias, shift)  # type: ignore[arg-type]
        return [conv, nn.MaxPool2d(3, 2, 1)]

    second = [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    network = nn.Sequential(*pooled(-30.0), *second, nn.Flatten(), nn.Linear(48, 4)).eval()
    images = SPEC.noise(64)
    record = export_int8(network, SPEC, images, tmp_path / "net.tflite", calibration=calibration)
    assert record.agreement > 0.9
    inputs = SPEC.encode(images[:16])
    wanted = network(inputs)
    error = (load_exported(tmp_path / "net.tflite")(inputs) - wanted).abs().max()
    assert error < 0.05 * wanted.abs().max()


@litert
def test_a_constant_is_joined_to_an_activation(tmp_path: Path) -> None:
    spec = InputSpec((3, 4, 4), (0.5,) * 3, (0.25,) * 3)
    with seeded(torch.Generator().manual_seed(0)):
        network = toys.Tokens(8).eval()
    made = export_int8(network, spec, spec.noise(64), tmp_path / "tokens.tflite")
    assert made.agreement > 0.8


@litert
def test_percentiles_are_those_of_the_other_formats(tmp_path: Path) -> None:
    with seeded(torch.Generator().manual_seed(0)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (128, *toys.SPEC.shape), generator=rng, dtype=torch.uint8)
    steps = []
    for name in ("net.tflite", "net.onnx"):
        path = tmp_path / name
        export_int8(model, toys.SPEC, images, path, calibration=Calibration.PERCENTILE)
        steps.append(hidden_step(path))
    assert steps[0] == pytest.approx(steps[1], rel=0.01)


def hidden_step(path: Path) -> float:
    """Return the step of the grid of the hidden layer's outputs."""
    if path.suffix == ".tflite":
        graph = parse_tflite(path.read_bytes()).subgraphs[0]
        layers = [op for op in graph.operators if len(op.inputs) == 3]
        return float(graph.tensors[layers[0].outputs[0]].quantization.scale[0])
    graph = onnx.load(path).graph
    held = {tensor.name: float(numpy_helper.to_array(tensor).max()) for tensor in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    return held[quantizers[1].input[1]]


@litert
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_compiled_array_is_the_file(
    language: str, int8: Path, lenet: Teacher, tmp_path: Path
) -> None:
    header = to_header(int8.read_bytes(), "2-net.int8", lenet.input_spec)
    (tmp_path / "net.h").write_bytes(header)
    main = (
        '#include <stdio.h>\n#include "net.h"\n'
        "int main(void) {\n"
        "fwrite(_2_net_int8_tflite, 1, _2_net_int8_tflite_len, stdout);\n"
        "return (unsigned long)_2_net_int8_tflite % 16;\n}\n"
    )
    command = ["gcc", "-x", language, "-Wall", "-Werror", "-", "-o", "net", "-I", "."]
    subprocess.run(command, input=main.encode(), cwd=tmp_path, check=True)
    made = subprocess.run([tmp_path / "net"], capture_output=True, check=True)
    assert made.stdout == int8.read_bytes() == read_header(tmp_path / "net.h")


@litert
def test_a_header_says_what_a_program_needs(small: Path) -> None:
    text = small.read_text().partition("#pragma once")[0]
    data = read_header(small)
    assert "input: float32 (1, 3, 12, 7)\n" in text
    assert "mean (0.4, 0.5, 0.6), std (0.2, 0.3, 0.2)" in text
    assert "logits: float32 (1, 4)\n" in text
    assert f"flash: {len(data)} bytes" in text
    assert f"tensor arena: about {arena_bytes(data)} bytes" in text
    assert "resolver.AddConv2D();" in text
    assert f"MicroMutableOpResolver<{text.count('resolver.Add')}> resolver;" in text


def test_a_plan_of_memory_by_hand() -> None:
    chain = [Buffer(48, 0, 1), Buffer(64, 1, 2), Buffer(16, 2, 3)]
    assert planned_bytes(chain) == 64 + 48
    # the residual is in memory as long as both layers are
    assert planned_bytes([Buffer(32, 0, 3), Buffer(32, 1, 2), Buffer(32, 2, 3)]) == 96
    assert planned_bytes([]) == 0


@litert
@micro
def test_tensorflow_lite_micro_agrees_and_needs_what_is_estimated(
    int8: Path, lenet: Teacher, digits: tuple[Tensor, Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    data = int8.read_bytes()
    runtime = import_module("tflite_micro.python.tflite_micro.runtime")
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena_bytes(data))
    given, made = details(int8)
    scale, zero = made["quantization"]
    inputs = lenet.input_spec.encode(digits[0][:20])
    for image, wanted in zip(inputs.split(1), load_exported(int8)(inputs), strict=True):
        interpreter.set_input(quantized(image.numpy(), given), 0)
        interpreter.invoke()
        got = scale * (interpreter.get_output(0)[0].astype(np.float32) - zero)
        assert np.abs(got - wanted.numpy()).max() <= 2 * scale
    capfd.readouterr()
    interpreter.print_allocations()
    said = dict(re.findall(r"Arena allocation (\w+) (\d+) bytes", capfd.readouterr().err))
    assert int(said["head"]) == planned_bytes(activations(data))
    assert int(said["total"]) <= arena_bytes(data)


@litert
@pytest.mark.parametrize("kind", ["tflite", "h"])
def test_a_damaged_file_is_an_error(kind: str, int8: Path, tmp_path: Path) -> None:
    whole = int8.read_bytes()
    data = whole if kind == "tflite" else to_header(whole, "net", toys.SPEC)
    path = tmp_path / f"net.{kind}"
    for damaged in (data[: len(data) // 2], b"not a network", b"", whole[::-1]):
        path.write_bytes(damaged)
        with pytest.raises(ExportError, match=rf"net.{kind} does not open in its runtime"):
            load_exported(path)


@pytest.mark.parametrize("kind", ["tflite", "h"])
def test_an_absent_library_is_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wanted = re.escape("no litert_torch: pip install 'dreamstill[litert]'")
    images = torch.zeros(2, *toys.SPEC.shape, dtype=torch.uint8)
    with pytest.raises(ExportError, match=wanted):
        export(toys.small_cnn(), tmp_path / f"m.{kind}", toys.SPEC)
    with pytest.raises(ExportError, match=wanted):
        export_int8(toys.small_cnn(), toys.SPEC, images, tmp_path / f"m.{kind}")
    (tmp_path / f"m.{kind}").touch()
    with pytest.raises(ExportError, match=wanted):
        load_exported(tmp_path / f"m.{kind}")


@litert
def test_a_pipeline_times_files_in_litert(int8: Path, tmp_path: Path) -> None:
    path = tmp_path / "1-int8.tflite"
    path.write_bytes(int8.read_bytes())
    written = [{"path": str(path), "bytes": path.stat().st_size}]
    teacher: dict[str, Any] = {"weight_bytes": 10}
    stage: dict[str, Any] = {"weight_bytes": 10, "task": "int8", "files": written}
    module, spec = lenet5().eval(), InputSpec((1, 28, 28), (0.13,), (0.31,))
    made = [("teacher", module, teacher), ("1-int8", module, stage)]
    assert compare_files(tmp_path, made, spec) == "LiteRT"
    assert teacher["file_bytes"] == (tmp_path / "teacher.tflite").stat().st_size
    assert stage["smaller"] == pytest.approx(teacher["file_bytes"] / stage["file_bytes"])
    for record in (teacher, stage):
        assert record["latency_ms"]["runtime"] == "LiteRT"
        assert record["latency_ms"]["median"] > 0
