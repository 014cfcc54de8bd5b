"""Exports are re-opened in their own runtimes; what differs or cannot be written is an error."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import toys
from dreamstill.errors import ExportError
from dreamstill.exporters import formats as module_under_test
from dreamstill.exporters.formats import export, load_exported
from dreamstill.input_spec import InputSpec

SPEC = InputSpec(shape=(3, 12, 7), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
formats = pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pte"])


@formats
def test_an_export_computes_what_the_network_does_at_any_batch_size(
    suffix: str, tmp_path: Path
) -> None:
    model = toys.SmallCnn(channels=3).train()
    path = tmp_path / "new" / f"m{suffix}"
    record = export(model, path, SPEC)
    assert model.training
    assert model.norm.training
    assert record.bytes == path.stat().st_size
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    inputs = torch.randn(5, 3, 12, 7)
    with torch.no_grad():
        torch.testing.assert_close(
            load_exported(path)(inputs), model.eval()(inputs), atol=1e-5, rtol=1e-5
        )
    assert b"toys.py" not in path.read_bytes()  # nor any other path of the machine


def test_onnx_carries_the_input_spec(tmp_path: Path) -> None:
    export(toys.SmallCnn(channels=3), tmp_path / "m.onnx", SPEC)
    properties = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(properties["shape"]) == [3, 12, 7]
    assert json.loads(properties["mean"]) == [0.4, 0.5, 0.6]


@formats
def test_a_file_that_computes_something_else_is_an_error_and_goes(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dishonest(path: Path) -> Callable[[Tensor], Tensor]:
        run = opened(path)
        return lambda inputs: run(inputs) + 1e-2

    opened = module_under_test.open_written
    monkeypatch.setattr(module_under_test, "open_written", dishonest)
    with pytest.raises(ExportError, match=r"differs from the network by 0.01"):
        export(toys.small_cnn(), tmp_path / f"m{suffix}", toys.SPEC)
    assert not list(tmp_path.iterdir())


class Unexportable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] if x.sum().item() > 0 else x.flatten(1)[:, 4:8]


@formats
def test_a_network_that_cannot_be_exported_is_an_error(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot export to"):
        export(Unexportable(), tmp_path / f"m{suffix}", toys.SPEC)
    assert not list(tmp_path.iterdir())


class OneBatch(toys.SmallCnn):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(len(x), 4)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_code_that_fixes_the_batch_size_is_named(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"fixes the batch size: .* x.shape\[0\], not len"):
        export(OneBatch(), tmp_path / f"m{suffix}", toys.SPEC)


def test_a_prelu_of_vectors_goes_to_a_phone_too(tmp_path: Path) -> None:
    layers = (nn.Conv2d(1, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(144, 8), nn.PReLU(8))
    model = nn.Sequential(*layers, nn.Linear(8, 4))
    assert export(model, tmp_path / "m.pte", toys.SPEC).max_abs_difference < 1e-5


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"unknown format 'pb'; known: onnx, pt2, pte"):
        export(toys.small_cnn(), tmp_path / "m.pb", toys.SPEC)


def test_an_absent_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="no executorch: pip install"):
        export(toys.small_cnn(), tmp_path / "m.pte", toys.SPEC)


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write"):
        export(toys.small_cnn(), tmp_path / "file" / "m.onnx", toys.SPEC)
