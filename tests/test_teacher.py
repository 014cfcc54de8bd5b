"""Opening a teacher: what it offers, and every mistake by name."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import toys
from dreamstill.errors import TeacherError
from dreamstill.kept import check_keepable
from dreamstill.nets.lenet import lenet5, lenet5_bn
from dreamstill.probe import Probe
from dreamstill.teacher import (
    InputSpec,
    load_module,
    load_weights,
    open_teacher,
    read_card,
    spec_from_card,
)

MNIST = InputSpec(shape=(1, 28, 28), mean=(0.13,), std=(0.31,))


def test_a_teacher_is_frozen_and_says_what_it_offers() -> None:
    teacher = open_teacher(lenet5_bn(), MNIST)
    assert teacher.num_classes == 10
    assert teacher.offers.gradient
    assert teacher.offers.batch_norm == ("features.1", "features.5", "features.9")
    assert teacher.offers.last_linear == "classifier.2"
    assert teacher.offers.num_features == 84
    assert not teacher.module.training
    assert not any(p.requires_grad for p in teacher.module.parameters())


def test_a_linear_layer_that_is_not_the_last_is_not_taken_for_it() -> None:
    teacher = open_teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.LeakyReLU()), toys.SPEC)
    assert teacher.offers.last_linear is None
    with pytest.raises(TeacherError, match="last linear"):
        teacher.with_features(torch.zeros(1, 1, 8, 8))


def test_features_are_the_input_of_the_last_layer() -> None:
    teacher = toys.quadrant_teacher()
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, :4, 4:] = 1  # the second quadrant
    logits, features = teacher.with_features(image)
    assert features.tolist() == [[0, 1, 0, 0]]
    assert logits.tolist() == [[0, 5, 0, 0]]
    assert teacher.queries == 1


def test_encode_and_decode_are_inverse_for_every_byte() -> None:
    spec = InputSpec(shape=(2, 16, 16), mean=(0.1, 0.7), std=(0.3, 0.2))
    images = torch.arange(256).view(1, 1, 16, 16).repeat(1, 2, 1, 1).to(torch.uint8)
    assert torch.equal(spec.decode(spec.encode(images)), images)


def test_a_range_is_a_mean_and_std() -> None:
    spec = InputSpec.from_range((1, 1, 2), -1.0, 3.0)
    ends = spec.encode(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    torch.testing.assert_close(ends.flatten(), torch.tensor([-1.0, 3.0]))
    clipped = spec.clip(torch.tensor([[[[-9.0, 9.0]]]]))
    torch.testing.assert_close(clipped.flatten(), torch.tensor([-1.0, 3.0]))


def test_the_fingerprint_is_of_the_weights() -> None:
    one, two = toys.cnn_teacher(), toys.cnn_teacher()
    assert one.fingerprint == two.fingerprint
    two.module.head.bias.data[0] += 1e-3  # type: ignore[union-attr, index, operator]
    assert one.fingerprint != two.fingerprint


def test_a_probe_unhooks_after_an_exception() -> None:
    layer = nn.Linear(2, 2)

    def fail() -> None:
        with Probe({"layer": layer}):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not layer._forward_hooks


class Returns(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> object:
        return self.value


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(3, 4, 3), "does not run on inputs of shape"),
        (nn.Conv2d(1, 4, 3), r"\(N, K\) logits; got \(4, 4, 6, 6\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "at least 2 classes; got 1"),
        (Returns(torch.zeros(4, 0)), "at least 2 classes; got 0"),
        (Returns("text"), "got str"),
        (Returns(torch.full((4, 3), torch.nan)), "not finite"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1)), "before softmax"),
    ],
)
def test_a_wrong_network_is_named(module: nn.Module, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        open_teacher(module, toys.SPEC)


def test_a_wrong_number_of_classes_is_named() -> None:
    with pytest.raises(TeacherError, match="has 4 classes, not 7"):
        open_teacher(toys.small_cnn(), toys.SPEC, num_classes=7)
    with pytest.raises(TeacherError, match="at least 2; got 0"):
        open_teacher(toys.small_cnn(), toys.SPEC, num_classes=0)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({}, "shape is missing"),
        ({"shape": [1, 8], "range": [0, 1]}, "three positive"),
        ({"shape": [1, 0, 8], "mean": [0], "std": [1]}, "three positive"),
        ({"shape": [1, 8, 8]}, "normalization is missing"),
        ({"shape": [1, 8, 8], "mean": [0.5, 0.5], "std": [1]}, "one value for each of 1 channels"),
        ({"shape": [1, 8, 8], "mean": [0.5], "std": [0]}, "above 0"),
        ({"shape": [1, 8, 8], "mean": ["x"], "std": [1]}, "lists of numbers"),
        ({"shape": [1, 8, 8], "mean": [float("nan")], "std": [1]}, "finite"),
        ({"shape": [1, 8, 8], "range": [1, 1]}, "low < high"),
        ({"shape": [1, 8, 8], "range": [0, float("inf")]}, "both finite; got 0.0, inf"),
        ({"shape": [1, 8, 8], "range": [0, 1], "mean": [0]}, "not both"),
        ({"shape": 5, "range": [0, 1]}, "lists of numbers"),
    ],
)
def test_a_wrong_card_is_named(card: dict[str, object], message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        spec_from_card(card)


def test_weights_must_fit_the_factory(tmp_path: Path) -> None:
    def attempt(change: dict[str, torch.Tensor | None]) -> None:
        state = lenet5().state_dict() | change
        path = tmp_path / "w.safetensors"
        save_file({k: v for k, v in state.items() if v is not None}, path)
        load_module("dreamstill.nets.lenet:lenet5", path)

    attempt({})
    with pytest.raises(TeacherError, match=r"lacks 'classifier.2.bias'"):
        attempt({"classifier.2.bias": None})
    with pytest.raises(TeacherError, match=r"has 'extra'"):
        attempt({"extra": torch.zeros(1)})
    with pytest.raises(TeacherError, match=r"classifier.2.bias is \(7,\)"):
        attempt({"classifier.2.bias": torch.zeros(7)})
    with pytest.raises(TeacherError, match="not finite"):
        attempt({"classifier.2.bias": torch.full((10,), torch.inf)})


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nowhere", "module:function"),
        ("nowhere:at_all", "cannot import"),
        ("dreamstill.nets.lenet:absent", "cannot import"),
        ("json:loads", "failed"),
        ("builtins:dict", r"torch.nn.Module; got dict"),
        ("sys:exit", "failed: SystemExit"),
        ("test_teacher:lazy", "1.weight of .* is lazy: run the network once"),
    ],
)
def test_a_wrong_factory_is_named(factory: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=message):
        load_module(factory, tmp_path / "w.safetensors")


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((2,), -torch.inf))


def test_a_mask_may_be_infinite_but_no_statistic(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(Masked().state_dict(), path)
    load_module("test_teacher:Masked", path)
    save_file({"mask": torch.full((2,), torch.nan)}, path)
    with pytest.raises(TeacherError, match="not finite"):
        load_module("test_teacher:Masked", path)
    state = toys.small_cnn().state_dict() | {"norm.running_var": torch.full((6,), torch.inf)}
    save_file(state, path)
    with pytest.raises(TeacherError, match=r"norm.running_var .* not finite"):
        load_module("toys:small_cnn", path)


def test_what_a_checkpoint_holds_instead_is_named(tmp_path: Path) -> None:
    torch.save({"generator": lenet5().state_dict(), "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match="got dict of generator, epoch"):
        load_weights(tmp_path / "w.pt")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import builtins; builtins.evil_ran = True",)


def test_a_pickle_runs_no_code_without_consent(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": {}, "x": Evil()}, path)
    with pytest.raises(TeacherError, match="allow_pickle"):
        load_weights(path)
    import builtins

    assert not hasattr(builtins, "evil_ran")


def test_a_misspelt_name_in_a_card_is_named_and_notes_are_left_alone(tmp_path: Path) -> None:
    card = {"shape": [1, 8, 8], "range": [0, 1], "accuracy": 0.9, "settings": {}, "seed": 1}
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert read_card(tmp_path / "card.json") == card
    (tmp_path / "card.json").write_text(json.dumps(card | {"classes": 7}))
    with pytest.raises(TeacherError, match="has 'classes': did you mean 'num_classes'"):
        read_card(tmp_path / "card.json")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
def test_torch_files_load_with_prefixes_and_wrapping(prefix: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "w.th"
    state = {f"{prefix}{k}": v for k, v in lenet5().state_dict().items()}
    torch.save({key: state, "epoch": 3}, path)
    load_module("dreamstill.nets.lenet:lenet5", path)
    save_file(state, tmp_path / "w.safetensors")
    load_module("dreamstill.nets.lenet:lenet5", tmp_path / "w.safetensors")


def computed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Weights in double precision, the last of them computed."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm(nn.Linear(8, 4))).double()


def weight_normed() -> nn.Module:
    return computed(parametrizations.weight_norm)


def spectral_normed() -> nn.Module:
    return computed(parametrizations.spectral_norm)


def weight_normed_before_parametrizations() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return computed(nn.utils.weight_norm)


def spectral_normed_before_parametrizations() -> nn.Module:
    return computed(nn.utils.spectral_norm)


@pytest.mark.parametrize(
    "factory",
    [
        weight_normed,
        spectral_normed,
        weight_normed_before_parametrizations,
        spectral_normed_before_parametrizations,
    ],
)
def test_weights_are_floats_and_computed_ones_become_plain(
    factory: Callable[[], nn.Module], tmp_path: Path
) -> None:
    module = factory().eval()
    inputs = torch.randn(3, 1, 8, 8)
    for vector in module.buffers():  # of spectral norms, far from settled
        vector.copy_(F.normalize(torch.randn_like(vector), dim=0))
    wanted = module(inputs.double()).float()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    loaded = load_module(f"test_teacher:{factory.__name__}", tmp_path / "w.pt").eval()
    torch.testing.assert_close(loaded(inputs), wanted)
    assert set(loaded.state_dict()) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    check_keepable([loaded])


class Wrapper(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = torch.nn.Linear(2, 2)


def test_a_network_whose_names_begin_with_module_keeps_them(tmp_path: Path) -> None:
    torch.save(Wrapper().state_dict(), tmp_path / "w.pt")
    load_module(f"{__name__}:Wrapper", tmp_path / "w.pt")


def test_the_embedded_teacher_is_what_its_card_says() -> None:
    from importlib.resources import files

    card = json.loads((files("dreamstill") / "assets" / "lenet5_mnist.json").read_text())
    assert card["accuracy"] >= 0.989


def test_weights_of_an_old_torch_lack_batch_counts_and_still_open(tmp_path: Path) -> None:
    state = toys.small_cnn().state_dict()
    del state["norm.num_batches_tracked"]
    save_file(dict(state), tmp_path / "old.safetensors")
    module = load_module("toys:small_cnn", tmp_path / "old.safetensors")
    torch.testing.assert_close(module.state_dict()["conv.weight"], state["conv.weight"])
