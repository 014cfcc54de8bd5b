"""int8 files that run in their runtimes and agree with the network."""

from importlib.resources import as_file, files
from pathlib import Path

import pytest
import torch

import toys
from dreamstill.errors import ExportError
from dreamstill.evaluate import accuracy
from dreamstill.export import export, load_exported
from dreamstill.images import load_images
from dreamstill.run import TeacherFile, open_from
from dreamstill.synthesis import open_synthesizer
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.tasks.int8 import Backend, Method, export_int8
from dreamstill.teacher import Teacher


@pytest.fixture(scope="module")
def lenet() -> tuple[Teacher, torch.Tensor]:
    with as_file(files("dreamstill") / "assets" / "lenet5_mnist.safetensors") as path:
        teacher = open_from(TeacherFile(weights=str(path)))
    noise = open_synthesizer(
        "structured_noise", teacher, StructuredNoiseSettings(), rng=torch.Generator().manual_seed(0)
    )
    return teacher, teacher.spec.decode(noise.next_batch().images)


@pytest.mark.parametrize("method", Method)
def test_an_int8_onnx_keeps_the_accuracy_in_onnxruntime(
    method: Method, lenet: tuple[Teacher, torch.Tensor], tmp_path: Path
) -> None:
    teacher, images = lenet
    path = tmp_path / "net.onnx"
    record = export_int8(teacher.module, teacher.spec, images, path, method=method)
    assert record.bytes == path.stat().st_size < 0.6 * 4 * 61_706
    assert record.agreement > 0.9
    with as_file(files("dreamstill") / "assets" / "digits.npz") as digits:
        x, y = load_images(digits, teacher.spec, 10)
    assert accuracy(load_exported(path)(teacher.spec.encode(x)), y) > 0.98


@pytest.mark.parametrize("method", Method)
def test_any_number_of_images_calibrates(method: Method, tmp_path: Path) -> None:
    teacher = toys.cnn_teacher()
    rng = torch.Generator().manual_seed(0)
    shape = (140, *teacher.spec.shape)
    images = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    record = export_int8(teacher.module, teacher.spec, images, tmp_path / "net.onnx", method=method)
    assert record.agreement > 0.5


@pytest.mark.parametrize("backend", Backend)
def test_an_int8_pt2_agrees_and_is_smaller(
    backend: Backend, lenet: tuple[Teacher, torch.Tensor], tmp_path: Path
) -> None:
    teacher, images = lenet
    path = tmp_path / "net.pt2"
    record = export_int8(teacher.module, teacher.spec, images, path, backend=backend)
    assert record.agreement > 0.95
    assert load_exported(path)(teacher.spec.encode(images[:3])).shape == (3, 10)
    whole = export(teacher.module, teacher.spec, tmp_path / "whole.pt2")
    assert record.bytes < 0.6 * whole.bytes


def test_an_int8_pte_keeps_the_accuracy_in_executorch(
    lenet: tuple[Teacher, torch.Tensor], tmp_path: Path
) -> None:
    teacher, images = lenet
    path = tmp_path / "net.pte"
    record = export_int8(teacher.module, teacher.spec, images, path)
    assert record.bytes == path.stat().st_size < 0.4 * 4 * 61_706
    assert record.agreement > 0.95
    with as_file(files("dreamstill") / "assets" / "digits.npz") as digits:
        x, y = load_images(digits, teacher.spec, 10)
    assert accuracy(load_exported(path)(teacher.spec.encode(x)), y) > 0.98


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    teacher = toys.cnn_teacher()
    with pytest.raises(ExportError, match=r"unknown format 'tflite'"):
        export_int8(teacher.module, teacher.spec, torch.zeros(2), tmp_path / "net.tflite")
