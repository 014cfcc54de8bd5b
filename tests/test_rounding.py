"""AdaRound and QDrop by hand: what is learned, block by block, and the contract of the option."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import toys
from dreamstill.compression.config import QuantizeConfig, Rounding
from dreamstill.compression.quantization.quantize import quantize
from dreamstill.compression.quantization.rounding import (
    SoftRounding,
    beta_at,
    learn_rounding,
    partly_quantized,
    rectified_sigmoid,
    rounding_loss,
)
from dreamstill.config import from_plain
from dreamstill.errors import ConfigError, NonFiniteError, TeacherError
from dreamstill.evaluation import predict
from dreamstill.graph.blocks import blocks
from dreamstill.graph.tracing import trace
from dreamstill.input_spec import InputSpec
from dreamstill.nn.lenet import lenet5
from dreamstill.nn.quantized import QuantizedLayer, fake_quantize
from dreamstill.nn.resnet_cifar import ResNetCifar
from dreamstill.nn.seeded import seeded
from dreamstill.progress import Progress
from dreamstill.teacher import Teacher

GREY = InputSpec(shape=(1, 28, 28), mean=(0.5,), std=(0.25,))
COLOR = InputSpec(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
PAIR = InputSpec.from_range((1, 1, 2), 0.0, 4.0)
learned = pytest.mark.parametrize("rounding", [Rounding.ADAROUND, Rounding.QDROP])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(spec: InputSpec, num: int = 64) -> Tensor:
    return torch.randint(0, 256, (num, *spec.shape), generator=rng(), dtype=torch.uint8)


def resnet() -> Teacher:
    with seeded(rng()):
        model = ResNetCifar(8, width=4)
        for _ in range(20):
            model(torch.randn(64, *COLOR.shape))
    return Teacher(model, COLOR)


def low(rounding: Rounding, **changes: Any) -> QuantizeConfig:
    plain: dict[str, Any] = {
        "weight_bits": 3,
        "activation_bits": 8,
        "rounding": rounding,
        "rounding_steps": 60,
    }
    return QuantizeConfig(**plain | changes)


def levels(model: nn.Module) -> list[Tensor]:
    layers = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
    return [m.layer.weight / m.weight_step for m in layers]


def test_the_rectified_sigmoid_and_its_regularizer_are_the_papers() -> None:
    v = torch.tensor([-9.0, 0.0, 9.0, 0.4])
    expected = [0.0, 0.5, 1.0, 1.2 / (1 + 2.718281828**-0.4) - 0.1]
    assert rectified_sigmoid(v).tolist() == pytest.approx(expected)
    assert rounding_loss(torch.tensor([0.0, 1.0]), 20.0) == 0
    assert rounding_loss(torch.tensor([0.5, 0.75]), 2.0).item() == pytest.approx(1 + 0.75)


def test_the_exponent_falls_from_20_to_2_after_a_fifth_of_the_steps() -> None:
    assert beta_at(0.0) is None
    assert beta_at(0.19) is None
    assert [beta_at(share) for share in (0.2, 0.6, 1.0)] == pytest.approx([20.0, 11.0, 2.0])


def test_the_soft_weight_begins_as_in_full_precision_and_ends_on_the_grid() -> None:
    with seeded(rng()):
        quantized = QuantizedLayer(nn.Linear(8, 4), 3, 8, -1.0, 1.0, per_channel=True)
    whole = quantized.layer.weight.detach().clone()
    soft = SoftRounding(quantized, None)
    begun = soft.weight(rectified_sigmoid(soft.v))
    inside = (whole / quantized.weight_step).abs() < 3
    torch.testing.assert_close(begun[inside], whole[inside], atol=1e-5, rtol=1e-5)
    assert soft.harden() is quantized
    torch.testing.assert_close(quantized.layer.weight, quantized.quantized_weight())
    step = quantized.weight_step.detach()
    nearest = fake_quantize(whole, step, -4, 3)
    torch.testing.assert_close(quantized.quantized_weight().detach(), nearest)


def test_a_half_of_the_activations_is_quantized_with_the_gradients_of_lsq() -> None:
    values = torch.tensor([0.2, 0.9, 5.0, -7.0, 0.3, 9.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    kept = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    output = partly_quantized(values, step, kept, -2, 3)
    assert output.tolist() == pytest.approx([0.0, 1.0, 1.5, -1.0, 0.3, 9.0])
    (output * weight).sum().backward()
    got = values.grad, step.grad
    values.grad = step.grad = None
    wanted = torch.where(kept == 1, values, fake_quantize(values, step, -2, 3))
    (wanted * weight).sum().backward()
    torch.testing.assert_close(got, (values.grad, step.grad))


def pair(rows: list[list[float]]) -> nn.Sequential:
    """A linear layer with a grid of whole numbers."""
    linear = nn.Linear(2, len(rows), bias=False)
    linear.weight.data.copy_(torch.tensor(rows))
    return nn.Sequential(nn.Flatten(), linear)


@learned
def test_two_weights_of_equal_inputs_are_rounded_apart(rounding: Rounding) -> None:
    """Of 0.3 x + 0.45 x nearest leaves nothing; one of them has to go up: x, of 0.75 x."""
    whole = pair([[0.3, 0.45], [2.55, 2.7], [-0.45, -0.3], [1.0, 0.0]])
    model = copy.deepcopy(whole)
    quantized = QuantizedLayer(model[1], 4, 8, 0.0, 4.0, per_channel=True)  # type: ignore[arg-type]
    quantized.weight_step.data.fill_(1.0)
    model[1] = quantized
    shades = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 1, 2)
    config = low(rounding, rounding_steps=1000)
    learn_rounding(whole, model, PAIR, shades, config, rng=rng())
    rows = quantized.layer.weight
    assert rows.tolist() == [[0.0, 1.0], [2.0, 3.0], [-1.0, 0.0], [1.0, 0.0]]


def test_residual_blocks_are_found_and_run_one_after_the_other() -> None:
    model = resnet().module
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    found = blocks(trace(model), model, names)
    assert [part for part, _ in found] == [
        ["conv1"],
        *([f"layer{n}.0.conv1", f"layer{n}.0.conv2"] for n in (1, 2, 3)),
        ["linear"],
    ]
    x = torch.randn(2, *COLOR.shape, generator=rng())
    sizes = [tuple(x.shape)]
    wanted = model(x)
    for _, part in found:
        x = part(x)
        sizes.append(tuple(x.shape))
    torch.testing.assert_close(x, wanted)
    assert sizes[-2] == (2, 16, 4, 4)  # pooling begins the last part
    assert (found[1][1](torch.randn(2, 4, 16, 16)) >= 0).all()  # which ends with its ReLU


class Sized(nn.Module):
    """Reads the size of its input first, and uses it last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        num = x.size(0)
        x = F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))
        return self.head(x.view(num, -1))  # type: ignore[no-any-return]


class Skipping(nn.Module):
    """Every part reaches past the next one, so that only the whole is a block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(784, 784) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        y = self.a(x)
        z = self.b(y) + x
        return self.c(z)[:, :4] + y[:, :4]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lenet5, [["features.0"], ["features.3"], ["classifier.0"], ["classifier.2"]]),
        (Sized, [["first"], ["second"], ["head"]]),
        (Skipping, [["a", "b", "c"]]),
    ],
)
def test_parts_of_other_networks(make: Callable[[], nn.Module], parts: list[list[str]]) -> None:
    with seeded(rng()):
        model = make().eval()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    found = blocks(trace(model), model, names)
    x = torch.randn(3, *GREY.shape, generator=rng())
    wanted = model(x)
    for _, part in found:
        x = part(x)
    torch.testing.assert_close(x, wanted)
    if make is not lenet5:
        assert [part for part, _ in found] == parts
    else:
        assert len(found) == len(names)


class Branching(nn.Module):
    """Cannot be traced: it asks whether there are values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x.relu() if len(x) > 0 else x
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def branching() -> Teacher:
    with seeded(rng()):
        return Teacher(Branching(), GREY)


@learned
@pytest.mark.parametrize("make", [resnet, branching])
def test_learned_rounding_is_nearer_to_the_whole_network_and_on_the_grid(
    make: Callable[[], Teacher], rounding: Rounding
) -> None:
    teacher, errors = make(), []
    shown = images(teacher.input_spec, 128)
    wanted = predict(teacher.module, teacher.input_spec, shown)
    for way in (Rounding.NEAREST, rounding):
        steps = {"rounding_steps": 300} if way is rounding else {"rounding_steps": 500}
        config = low(way, first_last_bits=None, **steps)
        model = quantize(teacher, shown, config, rng=rng())
        errors.append((predict(model, teacher.input_spec, shown) - wanted).pow(2).mean().item())
    assert errors[1] < 0.7 * errors[0]
    assert all(type(m) is not SoftRounding for m in model.modules())
    for rows in levels(model):
        torch.testing.assert_close(rows, rows.round(), atol=1e-4, rtol=0)
        assert -4 <= rows.min() <= rows.max() <= 3


@learned
def test_the_seed_alone_determines_the_bits(rounding: Rounding) -> None:
    teacher = resnet()
    shown, before = images(COLOR), torch.get_rng_state()
    fingerprint, kept = teacher.fingerprint, shown.clone()

    def weights(seed: int) -> list[Tensor]:
        model = quantize(teacher, shown, low(rounding), rng=rng(seed))
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        return [value.clone() for value in model.state_dict().values()]

    first, again, other = weights(0), weights(0), weights(1)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    assert torch.equal(torch.get_rng_state(), before)
    assert teacher.fingerprint == fingerprint
    assert torch.equal(shown, kept)


def test_activations_have_learned_step_sizes_in_qdrop_alone() -> None:
    teacher = resnet()
    steps = {
        rounding: [
            m.input_step.item()
            for m in quantize(teacher, images(COLOR), config, rng=rng()).modules()
            if isinstance(m, QuantizedLayer)
        ]
        for rounding in Rounding
        if (config := low(rounding, rounding_steps=60 if rounding != "nearest" else 500))
    }
    assert steps[Rounding.ADAROUND] == steps[Rounding.NEAREST]
    assert all(
        abs(a / b - 1) > 1e-4
        for a, b in zip(steps[Rounding.QDROP], steps[Rounding.NEAREST], strict=True)
    )


def test_every_step_is_told() -> None:
    told: list[Progress] = []
    quantize(resnet(), images(COLOR), low(Rounding.QDROP), rng=rng(), on_progress=told.append)
    assert [step.done for step in told] == list(range(1, 5 * 60 + 1))
    assert {(step.stage, step.total) for step in told} == {("round", 300)}
    assert all(step.record["loss"] >= 0 for step in told)


def test_mixed_precision_and_fine_tuning_go_with_it() -> None:
    from dreamstill.distillation.config import FinetuneConfig

    tuned = FinetuneConfig(steps=2, batch_size=8, num_validation=16)
    config = QuantizeConfig(keep=0.5, rounding=Rounding.QDROP, rounding_steps=5, finetune=tuned)
    model = quantize(resnet(), images(COLOR), config, rng=rng())
    bits = {m.weight_bits for m in model.modules() if isinstance(m, QuantizedLayer)}
    assert len(bits) > 1


class Again(nn.Module):
    """Runs its only layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 784)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x.flatten(1)).relu())[:, :4]  # type: ignore[no-any-return]


def test_what_cannot_be_learned_says_so() -> None:
    with pytest.raises(ConfigError, match=r"^qdrop needs images: leave without_inputs out$"):
        QuantizeConfig(rounding=Rounding.QDROP, without_inputs=True)
    with pytest.raises(ConfigError, match="rounding_steps 5 has no effect on rounding to nearest"):
        QuantizeConfig(rounding_steps=5)
    with pytest.raises(ConfigError, match="rounding must be one of nearest, adaround, qdrop"):
        from_plain(QuantizeConfig, {"rounding": "up"})
    with seeded(rng()):
        teacher = Teacher(Again(), GREY)
    with pytest.raises(TeacherError, match="the rounding of no layer can be learned: each runs"):
        quantize(teacher, images(GREY), low(Rounding.ADAROUND), rng=rng())


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    whole = pair([[0.4, 0.4], [torch.nan, 0.0]])
    model = copy.deepcopy(whole)
    model[1] = QuantizedLayer(model[1], 4, 8, 0.0, 4.0, per_channel=True)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match=r"^the loss of rounding 1 is nan in step 1$"):
        learn_rounding(whole, model, PAIR, images(PAIR), low(Rounding.ADAROUND), rng=rng())


def test_an_efficientnet_is_rounded_in_blocks() -> None:
    with seeded(rng()):
        teacher = Teacher(toys.EfficientNet(), COLOR)
    config = low(Rounding.QDROP, rounding_steps=5)
    model = quantize(teacher, images(COLOR), config, rng=rng())
    assert len(levels(model)) == 8
    assert dataclasses.replace(config, rounding_steps=6) != config
