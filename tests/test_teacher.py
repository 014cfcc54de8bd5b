"""Opening a teacher: what it offers, and every mistake by name."""

import json
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as masks

import toys
from dreamstill.errors import TeacherError
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.card import read_card, spec_from_card
from dreamstill.loaders.state_dict import load_module, load_weights
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import Probe
from dreamstill.nn.lenet import lenet5, lenet5_bn
from dreamstill.pipelines.saved_networks import check_saveable
from dreamstill.teacher import Teacher, check_trainable

MNIST = InputSpec(shape=(1, 28, 28), mean=(0.13,), std=(0.31,))


def test_a_teacher_is_frozen_and_says_what_it_offers() -> None:
    teacher = Teacher(lenet5_bn(), MNIST)
    assert teacher.num_classes == 10
    assert teacher.capabilities.gradient
    assert teacher.capabilities.batch_norm == ("features.1", "features.5", "features.9")
    assert teacher.capabilities.last_linear == "classifier.2"
    assert teacher.capabilities.num_features == 84
    assert not teacher.module.training
    assert not any(p.requires_grad for p in teacher.module.parameters())


def test_a_linear_layer_that_is_not_the_last_is_not_taken_for_it() -> None:
    teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.LeakyReLU()), toys.SPEC)
    assert teacher.capabilities.last_linear is None
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
        (nn.Flatten(2), r"\(N, K\) logits; got \(4, 1, 64\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "at least 2 classes; got 1"),
        (Returns(torch.zeros(4, 0)), "at least 2 classes; got 0"),
        (Returns("text"), "got str"),
        (Returns(torch.full((4, 3), torch.nan)), "not finite"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1)), "before softmax"),
    ],
)
def test_a_wrong_network_is_named(module: nn.Module, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        Teacher(module, toys.SPEC)


def test_a_wrong_number_of_classes_is_named() -> None:
    with pytest.raises(TeacherError, match="has 4 classes, not 7"):
        Teacher(toys.small_cnn(), toys.SPEC, num_classes=7)
    with pytest.raises(TeacherError, match="at least 2; got 0"):
        Teacher(toys.small_cnn(), toys.SPEC, num_classes=0)


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
        load_module("dreamstill.nn.lenet:lenet5", path)

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
        ("dreamstill.nn.lenet:absent", "cannot import"),
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
    load_module("dreamstill.nn.lenet:lenet5", path)
    save_file(state, tmp_path / "w.safetensors")
    load_module("dreamstill.nn.lenet:lenet5", tmp_path / "w.safetensors")


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
    check_saveable([loaded])


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


class Computed(nn.Module):
    """A layer whose weight a forward pre-hook sets from `weight_orig`, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.flatten, self.head = nn.Flatten(), nn.Linear(64, 4)
        head = self.head
        head.weight_orig = nn.Parameter(head.weight.detach() * 5)
        if way == "attribute":
            del head.weight
        head.register_forward_pre_hook({"attribute": by_attribute, "data": by_data}[way])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.flatten(x))
        return logits


def by_attribute(layer: nn.Linear, args: object) -> None:
    layer.weight = layer.weight_orig * 0.2  # type: ignore[assignment,operator]


def by_data(layer: nn.Linear, args: object) -> None:
    layer.weight.data = 0.2 * layer.get_parameter("weight_orig").data


@pytest.mark.parametrize("way", ["attribute", "data"])
def test_weights_that_a_hook_sets_become_plain(way: str) -> None:
    module = Computed(way)
    teacher = Teacher(module, toys.SPEC)
    head = teacher.module.get_submodule("head")
    assert isinstance(head, nn.Linear)
    assert not head._forward_pre_hooks
    assert isinstance(head.weight, nn.Parameter)
    inputs = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(teacher(inputs), module(inputs))
    with torch.no_grad():
        head.weight.zero_()
    assert not torch.equal(teacher(inputs), module(inputs))  # what is changed is what computes
    assert module.head._forward_pre_hooks, "the user's own network is left alone"


def test_masks_of_pruning_become_plain_weights() -> None:
    module = toys.SmallCnn().eval()
    masks.l1_unstructured(module.conv, "weight", 0.5)
    teacher = Teacher(module, toys.SPEC)
    conv = teacher.module.get_submodule("conv")
    assert set(dict(conv.named_parameters())) == {"weight", "bias"}
    assert (conv.get_parameter("weight") == 0).float().mean() == pytest.approx(0.5, abs=0.02)


def doubling(layer: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
    layer.weight = layer.weight_orig * 0.2  # type: ignore[assignment,operator]
    return args[0] * 2


def test_a_hook_that_sets_a_weight_and_changes_the_input_is_refused() -> None:
    module = Computed("attribute")
    module.head._forward_pre_hooks.clear()
    module.head.register_forward_pre_hook(doubling)
    with pytest.raises(TeacherError, match="head sets its weight and changes its input"):
        Teacher(module, toys.SPEC)


class Ends(nn.Module):
    """A linear layer of the flattened image, and something after or around it."""

    def __init__(self, after: Any, *, scale: float = 1.0) -> None:
        super().__init__()
        self.head, self.after, self.scale = nn.Linear(64, 4), after, scale

    def forward(self, x: torch.Tensor) -> Any:
        return self.after(self.scale * self.head(x.flatten(1)))


def centered(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean()


def percents(x: torch.Tensor) -> torch.Tensor:
    return 100 * x.softmax(1)


def running_sum(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(0)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Ends(nn.Sigmoid()), "return what enters the sigmoid"),
        (Ends(nn.Hardsigmoid()), "return what enters the sigmoid"),
        (Ends(percents), "before softmax"),
        (Ends(running_sum), "depends on the others of its batch"),
        (Ends(nn.LogSoftmax(1)), "return what enters LogSoftmax"),
        (Ends(F.dropout), "answers differently when it is asked again"),
        (Ends(centered), "depends on the others of its batch"),
        (Ends(nn.BatchNorm1d(4, track_running_stats=False)), "after .* without running statistics"),
        (
            nn.Sequential(nn.Unflatten(0, (2, 2)), nn.Flatten(0, 1)),
            "does not run|logits|at least 2 classes",
        ),
    ],
)
def test_a_network_that_no_task_may_trust_is_refused_with_the_way_out(
    module: nn.Module, message: str
) -> None:
    torch.manual_seed(0)
    with pytest.raises(TeacherError, match=message) as caught:
        Teacher(module, toys.SPEC)
    assert len(str(caught.value)) < 400


def test_logits_that_happen_to_lie_in_the_unit_interval_are_logits() -> None:
    module = Ends(nn.Identity(), scale=1e-3)
    nn.init.constant_(module.head.bias, 500.0)
    assert Teacher(module, toys.SPEC).num_classes == 4


def test_a_rectified_network_that_shrinks_its_input_returns_logits() -> None:
    network = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU()) for _ in range(4)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 0.01)
    assert Teacher(network, InputSpec((3, 8, 8), (0.0,) * 3, (1.0,) * 3)).num_classes == 3


def test_a_batch_of_a_fixed_size_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(x.view(4, 64))
            return logits

    with pytest.raises(TeacherError, match="runs on 4 images and not on one"):
        Teacher(Fixed(), toys.SPEC)


def test_a_network_that_changes_its_input_is_refused() -> None:
    class Subtracts(toys.SmallCnn):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x -= 0.1
            return super().forward(x)

    with pytest.raises(TeacherError, match="changes its input in place"):
        Teacher(Subtracts(), toys.SPEC)


def test_the_users_network_and_the_global_rng_are_left_as_they_were() -> None:
    module = nn.Sequential(toys.SmallCnn(), nn.Sigmoid()).train()
    state = torch.get_rng_state()
    with pytest.raises(TeacherError):
        Teacher(module, toys.SPEC)
    opened = toys.SmallCnn().train()
    Teacher(opened, toys.SPEC)
    for network in (module, opened):
        assert all(part.training for part in network.modules())
        assert all(p.requires_grad for p in network.parameters())
    torch.nn.Dropout()(torch.ones(4))  # draws; what was there before is what is compared
    torch.set_rng_state(state)
    Teacher(toys.SmallCnn(), toys.SPEC)
    assert not torch.equal(state, torch.get_rng_state())  # SmallCnn() itself draws
    state = torch.get_rng_state()
    Teacher(opened, toys.SPEC)
    assert torch.equal(state, torch.get_rng_state())


class Several(toys.SmallCnn):
    """More outputs in train mode, the logits first or last, or in a named place."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.side = kind, nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        logits = super().forward(x)
        if not self.training:
            return logits
        side = self.side(logits)
        return {
            "first": (logits, side),
            "last": (side, logits),
            "named": {"aux": side, "logits": logits},
            "loss": logits.sum(),
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [("first", None), ("named", None), ("last", "the first is not"), ("loss", "returns \\(\\)")],
)
def test_several_outputs_in_train_mode(kind: str, message: str | None) -> None:
    teacher = Teacher(Several(kind), toys.SPEC)
    if message is None:
        assert teacher.capabilities.obstacle is None
        training = copy_network(teacher.module).train()
        assert teacher.run(training, torch.rand(2, 1, 8, 8)).shape == (2, 4)
    else:
        assert teacher.capabilities.obstacle is not None
        assert re.search(message, teacher.capabilities.obstacle)


def test_a_network_that_cannot_be_differentiated_can_be_asked_and_not_trained() -> None:
    class Closed(toys.SmallCnn):
        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    teacher = Teacher(Closed(), toys.SPEC)
    assert not teacher.capabilities.gradient
    assert "torch.no_grad" in (teacher.capabilities.obstacle or "")
    with pytest.raises(TeacherError, match=r"cannot be trained: .*no_grad"):
        check_trainable(Closed(), toys.SPEC)


def test_a_network_that_keeps_its_activations_is_copied() -> None:
    class Keeps(toys.SmallCnn):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = {"maps": [self.norm(self.conv(x))]}
            return super().forward(x)

    module = Keeps()
    module(torch.rand(2, 1, 8, 8))
    copied = copy_network(Teacher(module, toys.SPEC).module)
    inputs = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(copied(inputs), module.eval()(inputs))


def test_half_and_double_networks_open_as_floats() -> None:
    for module in (toys.SmallCnn().half(), toys.SmallCnn().double()):
        teacher = Teacher(module, toys.SPEC)
        assert teacher(torch.rand(2, 1, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    "mean_and_std", [((127.5,), (127.5,)), ((104.0,), (1.0,)), ((0.0,), (255.0,))]
)
def test_statistics_of_bytes_are_refused_with_the_right_values(
    mean_and_std: tuple[tuple[float], tuple[float]],
) -> None:
    mean, std = mean_and_std
    with pytest.raises(TeacherError, match=f"mean {mean[0] / 255:.4g}, std {std[0] / 255:.4g}"):
        InputSpec(shape=(1, 8, 8), mean=mean, std=std)


def test_a_shape_of_two_numbers_is_told_how_a_signal_is_written() -> None:
    with pytest.raises(TeacherError, match=r"\(C, 1, L\)"):
        InputSpec(shape=(1, 64), mean=(0.5,), std=(0.25,))  # type: ignore[arg-type]


def wrapped(state: dict[str, torch.Tensor], before: str) -> dict[str, torch.Tensor]:
    return {before + name: value for name, value in state.items()}


def checkpoint_of(kind: str) -> Any:
    """A checkpoint of SmallCnn as other tools write it."""
    net = toys.SmallCnn()
    state = net.state_dict()
    return {
        "average": torch.optim.swa_utils.AveragedModel(net).state_dict(),
        "counted": state | {"total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)},
        "sparse": state | {"conv.weight": state["conv.weight"].flatten(1).to_sparse()},
        "ema": {"epoch": 3, "model_ema": {"module": state}},
        "backbone": wrapped(state, "backbone."),
        "compiled in parallel": wrapped(state, "_orig_mod.module."),
        "parallel inside": {"net.module." + n: v for n, v in state.items()},
        "two": wrapped(state, "student.") | wrapped(state, "teacher."),
        "numbers": dict(enumerate(state.values())),
        "complex": state | {"conv.bias": torch.zeros(6, dtype=torch.complex64)},
        "negative": state | {"norm.running_var": -torch.ones(6)},
        "lacking": wrapped({n: v for n, v in state.items() if n != "conv.bias"}, "module."),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("average", None),
        ("counted", None),
        ("ema", None),
        ("backbone", None),
        ("compiled in parallel", None),
        ("parallel inside", None),
        ("sparse", "conv.weight is"),
        ("two", "several such networks, student. and teacher."),
        ("numbers", "names a tensor 0"),
        ("complex", "conv.bias in .* is complex"),
        ("negative", "running_var in .* is a variance, and below 0"),
        ("lacking", "lacks 'conv.bias'"),
    ],
)
def test_checkpoints_of_other_tools(kind: str, message: str | None, tmp_path: Path) -> None:
    torch.save(checkpoint_of(kind), tmp_path / "w.pt")
    if message is None:
        load_module("toys:SmallCnn", tmp_path / "w.pt")
    else:
        with pytest.raises(TeacherError, match=message):
            load_module("toys:SmallCnn", tmp_path / "w.pt")


def test_masks_in_a_file_are_applied(tmp_path: Path) -> None:
    module = toys.SmallCnn()
    masks.l1_unstructured(module.conv, "weight", 0.5)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    loaded = load_module("toys:SmallCnn", tmp_path / "w.pt")
    assert torch.equal(loaded.get_parameter("conv.weight"), module.conv.weight)


def test_sparse_and_quantized_weights_become_dense_floats(tmp_path: Path) -> None:
    state = toys.SmallCnn().state_dict()
    sparse = state | {"head.weight": state["head.weight"].to_sparse()}
    torch.save(sparse, tmp_path / "w.pt")
    loaded = load_module("toys:SmallCnn", tmp_path / "w.pt").state_dict()
    assert torch.equal(loaded["head.weight"], state["head.weight"])


def test_a_forward_caught_in_a_closure_is_refused() -> None:
    module = toys.SmallCnn()
    plain = module.conv.forward
    setattr(module.conv, "forward", lambda x: plain(x) + 1)  # noqa: B010
    with pytest.raises(TeacherError, match="conv has been given a forward"):
        Teacher(module, toys.SPEC)


def test_what_cannot_be_copied_is_refused() -> None:
    module = toys.SmallCnn()
    setattr(module, "lock", threading.Lock())  # noqa: B010
    with pytest.raises(TeacherError, match=r"SmallCnn cannot be copied .*pickle"):
        Teacher(module, toys.SPEC)


class Cast(nn.Linear):
    """What timm writes for torch.jit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.flatten(1), 2 * self.weight, self.bias)


def test_a_linear_layer_of_its_own_class_becomes_plain_where_it_does_the_same() -> None:
    network = nn.Sequential(nn.Flatten(), Cast(64, 8), nn.Unflatten(1, (2, 4)), Scaled(8, 4))
    plain = Teacher(network, toys.SPEC).module
    assert [type(layer) for layer in plain.children()][1::2] == [nn.Linear, Scaled]
    assert {*plain.state_dict()} == {*network.state_dict()}
    assert type(network[1]) is Cast


class Times(nn.Linear):
    """Its second argument changes what it does; it returns a pair where there is none."""

    def forward(self, x: Tensor, by: float = 0.0) -> Any:
        out = super().forward(x)
        return out * by if by else (out, self.bias)


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.pair = Times(64, 64), Times(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.twice(self.twice(x.flatten(1), 2.0), 1.0)
        logits: Tensor = self.pair(out)[0]
        return logits


def test_a_linear_layer_that_does_more_in_one_of_its_calls_stays() -> None:
    module = Teacher(CalledTwice(), toys.SPEC).module
    assert {type(layer) for layer in module.children()} == {Times}
