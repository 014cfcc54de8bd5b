"""Teachers from files of several kinds, and from libraries by name."""

import importlib
import os
import sys
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dreamstill as ds
from dreamstill.cli.main import main
from dreamstill.errors import ConfigError, TeacherError, first_line
from dreamstill.loaders.card import laid_upon
from dreamstill.loaders.hub import _offline
from toys import SPEC, SmallCnn


@pytest.fixture(params=["script", "trace"])
def scripted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[nn.Module, Path]:
    """A network, and its TorchScript file."""
    network, path = SmallCnn().eval(), tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated as a whole
        if request.param == "script":
            made = torch.jit.script(network)
        else:
            made = torch.jit.trace(network, torch.zeros(2, *SPEC.shape))
        made.save(path)
    return network, path


def test_torchscript_answers_like_its_network_and_has_gradients(
    scripted: tuple[nn.Module, Path],
) -> None:
    network, path = scripted
    teacher = ds.load_teacher(path, input_spec=SPEC)
    inputs = torch.randn(5, *SPEC.shape, requires_grad=True)
    logits = teacher(inputs)
    torch.testing.assert_close(logits, network(inputs))
    (slope,) = torch.autograd.grad(logits[:, 0].sum(), inputs)
    assert slope.abs().max() > 0
    assert sum(p.numel() for p in teacher.module.parameters()) == sum(
        p.numel() for p in network.parameters()
    )
    assert teacher.capabilities.batch_norm == ()
    assert "deepinversion" not in ds.list_methods(teacher)


def test_a_torchscript_teacher_is_the_same_each_time_and_another_with_other_weights(
    scripted: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    path = scripted[1]
    first, again = (ds.load_teacher(path, input_spec=SPEC).fingerprint for _ in range(2))
    other = SmallCnn().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(other).save(tmp_path / "other.pt")
    assert first == again
    assert ds.load_teacher(tmp_path / "other.pt", input_spec=SPEC).fingerprint != first


def test_a_student_learns_from_torchscript_and_no_task_changes_it(
    scripted: tuple[nn.Module, Path],
) -> None:
    teacher = ds.load_teacher(scripted[1], input_spec=SPEC)
    images = torch.randint(0, 256, (64, *SPEC.shape), dtype=torch.uint8)
    config = ds.DistillConfig(steps=2, num_validation=8)
    before = SmallCnn(width=3)
    learned = ds.distill(teacher, before, images, config).model
    assert not torch.equal(learned.get_parameter("head.weight"), before.head.weight)
    for stage in (ds.PruneConfig(), ds.QuantizeConfig(), ds.MergeConfig(), ds.FactorizeConfig()):
        with pytest.raises(TeacherError, match=r"changes layers.*TorchScript: open it as \.onnx"):
            ds.compress(teacher, images, [stage])


def test_torchscript_takes_no_factory_and_is_refused_where_damaged(
    scripted: tuple[nn.Module, Path],
) -> None:
    path = scripted[1]
    with pytest.raises(ConfigError, match="leave factory 'toys:SmallCnn' out"):
        ds.load_teacher(path, factory="toys:SmallCnn", input_spec=SPEC)
    with zipfile.ZipFile(path) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w") as damaged:
        for name, data in members.items():
            if not name.endswith("data.pkl"):
                damaged.writestr(name, data)
    with pytest.raises(TeacherError, match="is not a whole TorchScript file"):
        ds.load_teacher(path, input_spec=SPEC)


def test_the_command_line_opens_torchscript(
    scripted: tuple[nn.Module, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--teacher.shape", "1,8,8", "--teacher.mean", "0.5", "--teacher.std", "0.25"]
    assert main(["inspect", "--teacher.weights", str(scripted[1]), *flags]) == 0
    assert "batch norm layers" in capsys.readouterr().out.replace("_", " ")


def test_flags_win_over_cards_and_a_range_replaces_mean_and_std() -> None:
    card = {"shape": [1, 8, 8], "mean": [0.5], "std": [0.25]}
    assert laid_upon(card, {"range": [0.0, 1.0]}) == {"shape": [1, 8, 8], "range": [0.0, 1.0]}
    ranged = {"shape": [1, 8, 8], "range": [0.0, 1.0]}
    assert laid_upon(ranged, {"mean": [0.5]}) == {"shape": [1, 8, 8], "mean": [0.5]}
    assert laid_upon(card, {"std": [0.5]}) == card | {"std": [0.5]}


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "hf:nowhere"])
def test_a_library_that_is_absent_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("timm", "torchvision", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
    extra = "hf" if name.startswith("hf") else "hub"
    with pytest.raises(ConfigError, match=rf"^no \w+: pip install 'dreamstill\[{extra}\]'$"):
        ds.load_teacher(name, input_spec=SPEC)


def test_a_name_takes_no_factory() -> None:
    with pytest.raises(ConfigError, match="timm:resnet18 names its network"):
        ds.load_teacher("timm:resnet18", factory="toys:SmallCnn", input_spec=SPEC)


@pytest.fixture
def timm() -> Any:
    """The library, beside a torch whose build torchvision was made for."""
    return _library("timm")


def _library(name: str) -> Any:
    for needed in ("torchvision", name):
        try:
            library = importlib.import_module(needed)
        except (ImportError, RuntimeError) as error:  # torchvision beside a torch of another build
            pytest.skip(f"{needed} cannot be imported: {first_line(error)}")
    return library


def test_timm_opens_by_name_with_the_weights_of_a_file(timm: Any, tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=1000).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    teacher = ds.load_teacher(f"timm:resnet10t@{tmp_path / 'w.pt'}")
    assert teacher.input_spec.shape == (3, 176, 176)
    np.testing.assert_allclose(teacher.input_spec.mean, (0.485, 0.456, 0.406))
    inputs = torch.randn(2, *teacher.input_spec.shape)
    torch.testing.assert_close(teacher(inputs), network(inputs), rtol=1e-4, atol=1e-4)
    assert len(teacher.capabilities.batch_norm) == 14


def test_timm_says_what_is_missing(timm: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"timm has no network 'resnet19' .did you mean resnet"):
        ds.load_teacher("timm:resnet19")
    with pytest.raises(TeacherError, match=r"not on this machine.*timm:resnet10t@FILE"):
        ds.load_teacher("timm:resnet10t")
    assert "HF_HUB_OFFLINE" not in os.environ


def test_torchvision_opens_by_name_with_the_weights_of_a_file(tmp_path: Path) -> None:
    models = _library("torchvision").models
    network = models.get_model("squeezenet1_1").eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    teacher = ds.load_teacher(f"torchvision:squeezenet1_1@{tmp_path / 'w.pt'}")
    assert teacher.input_spec.shape == (3, 224, 224)
    inputs = torch.randn(2, *teacher.input_spec.shape)
    torch.testing.assert_close(teacher(inputs), network(inputs), rtol=1e-4, atol=1e-4)
    with pytest.raises(TeacherError, match="not on this machine"):
        ds.load_teacher("torchvision:squeezenet1_1")


def test_torchvision_opens_a_network_for_segmentation_without_its_backbones_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    models = _library("torchvision").models
    name = "lraspp_mobilenet_v3_large"
    network = models.get_model(name, weights=None, weights_backbone=None).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refused)
    spec = ds.InputSpec((3, 64, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    teacher = ds.load_teacher(f"torchvision:{name}@{tmp_path / 'w.pt'}", input_spec=spec)
    assert teacher.output_kind == "dense"
    with pytest.raises(TeacherError, match="shape"):
        ds.load_teacher(f"torchvision:{name}@{tmp_path / 'w.pt'}")


def test_the_hubs_client_is_offline_also_where_it_was_imported_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    constants = types.ModuleType("huggingface_hub.constants")
    constants.HF_HUB_OFFLINE = False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with _offline():
        assert constants.HF_HUB_OFFLINE
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in os.environ


def test_transformers_opens_a_folder(tmp_path: Path) -> None:
    transformers = _library("transformers")
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5
    )
    network = transformers.ResNetForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    spec = ds.InputSpec((3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    teacher = ds.load_teacher(f"hf:{tmp_path}", input_spec=spec)
    inputs = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher(inputs), network(inputs).logits)
    assert teacher.num_classes == 5
    assert len(teacher.capabilities.batch_norm) > 0
    with pytest.raises(TeacherError, match="no folder of transformers at"):
        ds.load_teacher(f"hf:{tmp_path / 'nowhere'}", input_spec=spec)
