"""int8 files that run in their runtimes and agree with the network."""

from importlib.resources import as_file, files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import toys
from dreamstill.data.images import load_images
from dreamstill.errors import ExportError
from dreamstill.evaluation import accuracy
from dreamstill.exporters.config import Backend, Calibration, Int8Config
from dreamstill.exporters.formats import export, load_exported
from dreamstill.exporters.int8 import export_int8, range_of
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.config import StageConfig
from dreamstill.pipelines.stages import check_stages
from dreamstill.synthesis.config import StructuredNoiseConfig
from dreamstill.synthesis.registry import open_synthesizer
from dreamstill.teacher import Teacher


@pytest.fixture(scope="module")
def lenet() -> tuple[Teacher, torch.Tensor]:
    with as_file(files("dreamstill") / "assets" / "lenet5_mnist.safetensors") as path:
        teacher = open_from(TeacherFile(weights=str(path)))
    noise = open_synthesizer(
        "structured_noise", teacher, StructuredNoiseConfig(), rng=torch.Generator().manual_seed(0)
    )
    return teacher, teacher.input_spec.decode(noise.next_batch().images)


@pytest.mark.parametrize("calibration", [None, Calibration.PERCENTILE])
def test_an_int8_onnx_keeps_the_accuracy_in_onnxruntime(
    calibration: Calibration | None, lenet: tuple[Teacher, torch.Tensor], tmp_path: Path
) -> None:
    teacher, images = lenet
    path = tmp_path / "net.onnx"
    record = export_int8(teacher.module, teacher.input_spec, images, path, calibration=calibration)
    assert record.bytes == path.stat().st_size < 1.15 * 61_706
    assert record.agreement > 0.9
    with as_file(files("dreamstill") / "assets" / "digits.npz") as digits:
        x, y = load_images(digits, teacher.input_spec, 10)
    assert accuracy(load_exported(path)(teacher.input_spec.encode(x)), y) > 0.98


@pytest.mark.parametrize("calibration", Calibration)
def test_any_number_of_images_calibrates(calibration: Calibration, tmp_path: Path) -> None:
    teacher = toys.cnn_teacher()
    rng = torch.Generator().manual_seed(0)
    shape = (140, *teacher.input_spec.shape)
    images = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    record = export_int8(
        teacher.module, teacher.input_spec, images, tmp_path / "net.onnx", calibration=calibration
    )
    assert record.agreement > 0.5


@pytest.mark.parametrize("kind", ["onnx", "pt2", "pte"])
def test_two_images_are_enough(kind: str, tmp_path: Path) -> None:
    teacher = toys.cnn_teacher()
    image = torch.arange(0, 256, 4, dtype=torch.uint8).view(1, *teacher.input_spec.shape)
    images = torch.cat([image, image])
    record = export_int8(teacher.module, teacher.input_spec, images, tmp_path / f"net.{kind}")
    assert record.agreement == 1


def first_step(path: Path) -> float:
    """Of the grid that the network's first layer puts out its values on."""
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        held = {held.name: held for held in graph.initializer}
        steps = [n.input[1] for n in graph.node if n.op_type == "QuantizeLinear"]
        return float(numpy_helper.to_array(held[steps[1]]))  # after that of the input
    nodes = torch.export.load(path).module().graph.nodes
    steps = [n.args[1] for n in nodes if "decomposed.quantize_per_tensor" in str(n.target)]
    return float(steps[1])  # after that of the input


def test_a_method_of_calibration_is_the_same_in_every_format(tmp_path: Path) -> None:
    with seeded(torch.Generator().manual_seed(0)):
        layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
    model = nn.Sequential(*layers).eval()
    spec = toys.SPEC
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (128, *spec.shape), generator=rng, dtype=torch.uint8)
    steps: dict[Calibration | None, list[float]] = {}
    for calibration in (*Calibration, None):
        for name in ("net.onnx", "net.pt2"):
            path = tmp_path / name
            export_int8(model, spec, images, path, calibration=calibration, backend=Backend.XNNPACK)
            steps.setdefault(calibration, []).append(first_step(path))
    for calibration in Calibration:
        assert steps[calibration][0] == pytest.approx(steps[calibration][1], rel=0.01), calibration
    assert max(steps[Calibration.ENTROPY]) < 0.9 * min(steps[Calibration.MIN_MAX])
    assert steps[None][0] == steps[Calibration.MIN_MAX][0]
    assert steps[None][1] < steps[Calibration.MIN_MAX][1]


def test_ranges_of_a_histogram_by_hand() -> None:
    counts = np.zeros(2048)
    counts[:1024] = 1000  # evenly in [0, 0.5), and one value of 1
    counts[-1] = 1
    assert range_of(Calibration.PERCENTILE, counts, 0.0, 1.0) == pytest.approx((0, 0.5), abs=1e-3)
    counts[-1] = 100  # more than 0.001 % of the values
    assert range_of(Calibration.PERCENTILE, counts, 0.0, 1.0) == pytest.approx((0, 1), abs=1e-3)
    # few values in the upper half cost less where they are than the steps that they take
    falling = 1e6 * np.exp(-np.linspace(0, 20, 2048))
    low, high = range_of(Calibration.ENTROPY, falling, 0.0, 1.0)
    assert low == 0
    assert 0.3 < high < 0.9
    assert range_of(Calibration.ENTROPY, np.array([5.0]), 0.0, 0.0) == (0, 0)


@pytest.mark.parametrize("backend", Backend)
def test_an_int8_pt2_agrees_and_is_smaller(
    backend: Backend, lenet: tuple[Teacher, torch.Tensor], tmp_path: Path
) -> None:
    teacher, images = lenet
    path = tmp_path / "net.pt2"
    record = export_int8(teacher.module, teacher.input_spec, images, path, backend=backend)
    assert record.agreement > 0.95
    assert load_exported(path)(teacher.input_spec.encode(images[:3])).shape == (3, 10)
    whole = export(teacher.module, tmp_path / "whole.pt2", teacher.input_spec)
    assert record.bytes < 0.6 * whole.bytes


def test_an_int8_pte_keeps_the_accuracy_in_executorch(
    lenet: tuple[Teacher, torch.Tensor], tmp_path: Path
) -> None:
    teacher, images = lenet
    path = tmp_path / "net.pte"
    record = export_int8(teacher.module, teacher.input_spec, images, path)
    assert record.bytes == path.stat().st_size < 0.4 * 4 * 61_706
    assert record.agreement > 0.95
    with as_file(files("dreamstill") / "assets" / "digits.npz") as digits:
        x, y = load_images(digits, teacher.input_spec, 10)
    assert accuracy(load_exported(path)(teacher.input_spec.encode(x)), y) > 0.98


def test_what_a_relu6_clips_takes_no_step_of_int8(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    with seeded(torch.Generator().manual_seed(0)):
        clipped = nn.Conv2d(8, 8, 3)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU6(), clipped, nn.ReLU6(), nn.Flatten(1)
        ).eval()
    with torch.no_grad():
        clipped.weight *= 300  # most of what it puts out
    images, path = toys.SPEC.noise(64), tmp_path / "clipped.pt2"
    export_int8(model, toys.SPEC, images, path, backend=Backend.XNNPACK)
    inputs = toys.SPEC.encode(images[:8])
    error = (load_exported(path)(inputs) - model(inputs)).detach().abs()
    assert error.median() < 6 / 255  # a step between 0 and 6
    calls = [str(n.target) for n in torch.export.load(path).module().graph.nodes]
    assert all(
        "conv2d" in before for before, call in pairwise(calls) if "hardtanh" in call
    )  # nothing is quantized in between


def test_a_file_whose_layers_stayed_floats_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def floats(path: Path, model: nn.Module, spec: Any, *_: object) -> bytes:
        export(model, path.with_suffix(".whole.onnx"), spec)
        return path.with_suffix(".whole.onnx").read_bytes()

    monkeypatch.setattr("dreamstill.exporters.int8._to_file", floats)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 8000), nn.ReLU(), nn.Linear(8000, 64)).eval()
    export_int8(wide, toys.SPEC, toys.SPEC.noise(16), tmp_path / "net.onnx")
    assert "net.onnx has 4,1" in caplog.text
    assert "some of its layers have stayed floats" in caplog.text


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    teacher = toys.cnn_teacher()
    with pytest.raises(ExportError, match=r"unknown format 'pb'"):
        export_int8(teacher.module, teacher.input_spec, torch.zeros(2), tmp_path / "net.pb")


class Volume(nn.Module):
    """A convolution over rows, columns and one plane."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv3d(1, 2, (1, 3, 3)), nn.Linear(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.conv(x[:, :, None]).relu().mean((2, 3, 4)))
        return logits


def test_a_layer_without_int8_kernels_is_named_before_any_work(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
    with pytest.raises(ExportError, match="conv is a Conv3d, which ExecuTorch's int8 kernels lack"):
        export_int8(Volume(), toys.SPEC, images, tmp_path / "m.pte")
    teacher = Teacher(Volume(), toys.SPEC)
    stage = StageConfig(task="int8", config=Int8Config(formats=("onnx", "pte")))
    with pytest.raises(ExportError, match="conv is a Conv3d"):
        check_stages([stage], teacher.module, teacher)
    assert not list(tmp_path.iterdir())
