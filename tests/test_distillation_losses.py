"""Distillation losses between two networks: which layers, which answers, what is learned."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import toys
from dreamstill.compression.deep_compression.pack import Mask
from dreamstill.distillation.config import LossName
from dreamstill.distillation.distillation_losses import (
    LOSSES,
    DistillationLoss,
    Layers,
    LogitLoss,
    Networks,
    register_loss,
)
from dreamstill.distillation.weight_inheritance import inherit
from dreamstill.errors import ConfigError
from dreamstill.graph.batch_norm_folding import fold_batch_norm
from dreamstill.graph.modules import map_modules
from dreamstill.input_spec import InputSpec
from dreamstill.nn.hooks import Probe, ReluInputs
from dreamstill.nn.lenet import LeNet5, lenet5, lenet5_half
from dreamstill.nn.quantized import Logarithm, QuantizedLayer
from dreamstill.nn.resnet_cifar import ResNetCifar
from dreamstill.nn.seeded import seeded
from dreamstill.teacher import Teacher

SPEC = InputSpec(shape=(1, 28, 28), mean=(0.5,), std=(0.5,))
CIFAR = InputSpec(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
EVERY = tuple(LossName)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss_of(
    teacher: Teacher,
    student: nn.Module,
    *names: LossName,
    inherited: dict[str, Tensor] | None = None,
) -> DistillationLoss:
    return DistillationLoss(Networks(teacher, student, 2.0, rng(), inherited or {}), names)


def lenets() -> tuple[Teacher, nn.Module, Tensor]:
    with seeded(rng()):
        teacher, student = Teacher(lenet5(), SPEC), lenet5_half()
    return teacher, student, torch.randn(8, 1, 28, 28, generator=rng())


def test_maps_are_paired_by_resolution_and_boundaries_before_the_relu() -> None:
    teacher, student, _ = lenets()
    loss = loss_of(teacher, student, LossName.ATTENTION, LossName.BOUNDARY, LossName.RELATIONAL)
    # of 28, 14, 10, 5 and 1 pixels; the pooled maps have a resolution of their own
    assert [name for name, _ in loss.parts[LossName.ATTENTION].pairs] == [
        f"features.{i}" for i in (1, 2, 4, 5, 7)
    ]
    assert loss.parts[LossName.BOUNDARY].pairs == [("0", "0"), ("1", "1"), ("2", "2")]
    assert loss.parts[LossName.RELATIONAL].pairs == [("classifier.2", "classifier.2")]


def test_the_boundary_of_a_residual_network_is_behind_its_sums() -> None:
    with seeded(rng()):
        network = ResNetCifar(8, width=4)
    teacher = Teacher(network, CIFAR)
    loss = loss_of(teacher, copy.deepcopy(network), LossName.BOUNDARY)
    names = ("layer1.0", "layer2.0", "layer3.0")
    blocks = {name: teacher.module.get_submodule(name) for name in names}
    with ReluInputs() as relus, Probe(blocks) as probe:
        teacher(torch.randn(4, 3, 32, 32, generator=rng()))
    for (_, theirs), block in zip(loss.parts[LossName.BOUNDARY].pairs, blocks, strict=True):
        assert relus.inputs[theirs].relu().equal(probe.outputs[block])
        assert relus.inputs[theirs].min() < 0


def test_connectors_of_the_boundary_are_he_normal_and_absent_where_channels_agree() -> None:
    teacher, _, images = lenets()
    assert not [*loss_of(teacher, lenet5(), LossName.BOUNDARY).connectors.parameters()]
    student = LeNet5((6, 800, 120, 84))  # of its three layers before a ReLU one has other channels
    loss = loss_of(teacher, student, LossName.BOUNDARY)
    (weight,) = (p for p in loss.connectors.parameters() if p.dim() == 4)
    assert weight.shape == (16, 800, 1, 1)
    assert weight.std().item() == pytest.approx((2 / 16) ** 0.5, rel=0.03)
    assert loss.initialize(images) > 0


def masked(layer: nn.Module) -> nn.Module:
    """As `pack` fine-tunes it."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    parametrize.register_parametrization(layer, "weight", Mask(torch.ones(layer.weight.shape)))
    return layer


def on_a_grid(layer: nn.Module) -> nn.Module:
    """As `quantize` fine-tunes it."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    quantized = QuantizedLayer(layer, 8, 8, -4.0, 4.0, per_channel=True)
    parametrize.register_parametrization(quantized, "weight_step", Logarithm())
    return quantized


@pytest.mark.parametrize("change", [masked, on_a_grid])
@pytest.mark.parametrize("name", EVERY)
def test_what_makes_a_weight_is_no_map(
    name: LossName, change: Callable[[nn.Module], nn.Module]
) -> None:
    teacher, _, x = lenets()
    plain, made = (copy.deepcopy(teacher.module) for _ in range(2))
    made = map_modules(
        made, lambda _, m: change(m) if isinstance(m, nn.Conv2d | nn.Linear) else None
    )
    loss = loss_of(teacher, made, name)
    assert loss.parts[name].pairs == loss_of(teacher, plain, name).parts[name].pairs
    value = loss.initialize(x) if name is LossName.BOUNDARY else loss(x)
    assert value.isfinite()


def test_a_boundary_needs_a_relu() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 1, 28, 28))
    with pytest.raises(ConfigError, match="boundary needs"):
        loss_of(Teacher(network, SPEC), copy.deepcopy(network), LossName.BOUNDARY)


@pytest.mark.parametrize("name", [t for t in LossName if t not in ("mimic", "boundary")])
def test_a_student_that_is_the_teacher_pays_nothing(name: LossName) -> None:
    teacher, _, images = lenets()
    student = lenet5()
    student.load_state_dict(teacher.module.state_dict())
    assert loss_of(teacher, student, name)(images).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_every_loss_falls_when_the_student_learns(name: LossName) -> None:
    teacher, student, images = lenets()
    if name is LossName.LAYERS:
        student = lenet5()
    loss = loss_of(teacher, student, name)
    value = loss.initialize if name is LossName.BOUNDARY else loss
    parameters = [*student.parameters(), *loss.connectors.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    before = value(images)
    for _ in range(30):
        optimizer.zero_grad()
        value(images).backward()
        optimizer.step()
    assert value(images).item() < 0.8 * before.item()
    assert all(p.grad is None for p in teacher.module.parameters())


def test_the_sum_is_weighted_and_leaves_the_boundary_out() -> None:
    teacher, student, images = lenets()
    names = (LossName.L1, LossName.BOUNDARY, LossName.MSE)
    weighted = DistillationLoss(Networks(teacher, student, 1.0, rng()), names, (2, 7, 3))
    parts = [loss_of(teacher, student, name)(images).item() for name in (names[0], names[2])]
    assert weighted(images).item() == pytest.approx(2 * parts[0] + 3 * parts[1], rel=1e-5)


def test_a_loss_of_ones_own_is_registered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamstill.distillation.distillation_losses.LOSSES", dict(LOSSES))

    @register_loss
    class Halved(LogitLoss):
        name, weight = "halved", 0.5
        function = staticmethod(
            lambda student, teacher, temperature: (student - teacher).abs().mean()
        )

    teacher, student, images = lenets()
    own = DistillationLoss(Networks(teacher, student, 1.0, rng()), ("halved",))
    assert own(images).item() == 0.5 * loss_of(teacher, student, LossName.L1)(images).item()


@pytest.mark.parametrize(
    ("name", "answered", "asked"),
    [("kl", True, 0), ("kl", False, 8), ("attention", True, 8), ("attention", False, 8)],
)
def test_the_teacher_is_asked_for_what_it_has_not_said(
    name: str, answered: bool, asked: int
) -> None:
    teacher, student, images = lenets()
    logits = teacher(images) if answered else None
    before = teacher.queries
    loss_of(teacher, student, LossName(name), LossName.L1)(images, logits)
    assert teacher.queries == before + asked


def test_layers_are_compared_past_their_batch_norm_and_blocks_once() -> None:
    with seeded(rng()):
        network = ResNetCifar(8, width=4)
    teacher = Teacher(network, CIFAR)
    pairs = loss_of(teacher, copy.deepcopy(network), LossName.LAYERS).parts[LossName.LAYERS].pairs
    blocks = [f"layer{i}.0{part}" for i in (1, 2, 3) for part in (".bn1", ".bn2", "")]
    assert pairs == [(name, name) for name in ("bn1", *blocks, "linear")]


def test_a_block_has_the_channels_of_its_last_layer() -> None:
    with seeded(rng()):
        teacher = Teacher(ResNetCifar(8, width=8), CIFAR)
    student = ResNetCifar(8, width=4)
    kept = inherit(teacher.module, student, CIFAR)
    loss = loss_of(teacher, student, LossName.LAYERS, inherited=kept)
    layers = loss.parts[LossName.LAYERS]
    assert isinstance(layers, Layers)
    for block in ("layer1.0", "layer2.0", "layer3.0"):
        assert torch.equal(layers.channels[block][1], kept[f"{block}.bn2"])
        assert (block, block) in loss.parts[LossName.LAYERS].pairs


def test_layers_are_compared_in_the_channels_that_are_left() -> None:
    teacher = Teacher(InPlace(), toys.SPEC)
    student, whole = InPlace(channels=2), teacher.module
    kept = torch.tensor([2, 0])
    assert student.conv.bias is not None
    with torch.no_grad():
        student.conv.weight.copy_(whole.get_parameter("conv.weight")[kept])
        student.conv.bias.copy_(whole.get_parameter("conv.bias")[kept] + 0.5)
    images = torch.randn(8, 1, 8, 8, generator=rng())
    answer = teacher(images)
    loss = loss_of(teacher, student, LossName.LAYERS, inherited={"conv": kept})
    wanted = whole.get_submodule("conv")(images)[:, kept]
    logits = (student(images) - answer).pow(2).mean() / answer.var()
    assert loss(images).item() == pytest.approx((0.25 / wanted.var() + logits).item() / 2, rel=1e-4)


class ChannelsLast(nn.Module):
    """A linear layer on maps whose channels come last."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(1, channels), nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.mix(x.permute(0, 2, 3, 1)).relu()
        return self.head(maps.mean((1, 2)))  # type: ignore[no-any-return]


def test_channels_that_come_last_are_compared_there() -> None:
    with seeded(rng()):
        teacher = Teacher(ChannelsLast(), toys.SPEC)
    student, kept = ChannelsLast(3), torch.tensor([5, 0, 2])
    with torch.no_grad():
        student.mix.weight.copy_(teacher.module.get_parameter("mix.weight")[kept])
        student.mix.bias.copy_(teacher.module.get_parameter("mix.bias")[kept])
    loss = loss_of(teacher, student, LossName.LAYERS, inherited={"mix": kept})
    images = torch.randn(4, 1, 8, 8, generator=rng())
    answer = teacher(images)
    logits = (student(images) - answer).pow(2).mean() / answer.var()
    assert loss(images).item() == pytest.approx(logits.item() / 2, rel=1e-4)


def test_layers_of_a_folded_network_are_found_by_name() -> None:
    with seeded(rng()):
        network = ResNetCifar(8, width=4).eval()
    folded = fold_batch_norm(network)
    teacher = Teacher(network, CIFAR)
    loss = loss_of(teacher, folded, LossName.LAYERS)
    assert ("layer1.0.bn1",) * 2 in loss.parts[LossName.LAYERS].pairs
    images = torch.randn(4, 3, 32, 32, generator=rng())
    assert loss(images).item() == pytest.approx(0, abs=1e-6)


def test_a_student_of_other_layers_cannot_be_compared_layer_by_layer() -> None:
    teacher, student, _ = lenets()
    with pytest.raises(ConfigError, match="of 5 layers 0 can be compared"):
        loss_of(teacher, Talkative(), LossName.LAYERS)
    with pytest.raises(ConfigError, match="of 5 layers 1 can be compared"):
        loss_of(teacher, student, LossName.LAYERS)


class InPlace(nn.Module):
    """A ReLU that overwrites what the convolution put out."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.relu_(self.conv(x))
        logits: torch.Tensor = self.head(maps.mean((2, 3)))
        return logits


def test_a_relu_in_place_does_not_hide_the_boundary() -> None:
    with seeded(rng()):
        teacher, student = Teacher(InPlace(), toys.SPEC), InPlace()
    images = torch.randn(8, 1, 8, 8, generator=rng())
    loss = loss_of(teacher, student, LossName.KL, LossName.BOUNDARY)
    boundary = loss.parts[LossName.BOUNDARY]
    boundary.connectors = nn.ModuleList(nn.Identity() for _ in boundary.connectors)
    value = loss.initialize(images).item()
    ours, wanted = student.conv(images), teacher.module.get_submodule("conv")(images)
    silent = ((ours + 1).clamp_min(0) ** 2)[wanted <= 0].sum()
    firing = ((ours - 1).clamp_max(0) ** 2)[wanted > 0].sum()
    assert value == pytest.approx(3e-3 * (silent + firing).item() / 8, rel=1e-4)


def test_networks_with_nothing_in_common_are_named() -> None:
    with pytest.raises(ConfigError, match=r"attention needs feature maps of one size"):
        loss_of(toys.cnn_teacher(), toys.Quadrants(), LossName.ATTENTION)


class Pair(nn.Module):
    """A block that takes and gives more than one tensor."""

    def forward(self, x: Tensor, more: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return x, more


class Talkative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Conv2d(1, 4, 3, padding=1), Pair()
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.block(self.first(x), [x])
        return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_blocks_that_give_more_than_a_tensor_are_passed_over() -> None:
    spec = InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.25,))
    teacher, student = Teacher(Talkative(), spec), Talkative()
    loss = loss_of(teacher, student, LossName.ATTENTION)
    images = torch.randn(4, 1, 8, 8, generator=rng())
    assert loss(images) > 0
