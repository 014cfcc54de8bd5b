"""DFQ's identities, grids, mixed bits, and that fine-tuning repairs."""

import copy
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import as_file, files

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import toys
from dreamstill.compression.config import InputRange, QuantizeConfig
from dreamstill.compression.quantization.equalization import equalize, expected_inputs
from dreamstill.compression.quantization.histograms import entering_quantized
from dreamstill.compression.quantization.moments import Moments, relu_moments, window_sizes
from dreamstill.compression.quantization.quantize import (
    check_plain,
    observed_ranges,
    quantize,
    quantize_without_inputs,
)
from dreamstill.compression.quantization.sensitivity import mixed_bits
from dreamstill.data.config import NO_AUGMENTATION
from dreamstill.data.images import load_images
from dreamstill.distillation.config import DistillConfig
from dreamstill.errors import ConfigError, TeacherError
from dreamstill.evaluation import agreement, predict
from dreamstill.graph.batch_norm_folding import fold_batch_norm
from dreamstill.graph.modules import replace_module
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.nn.hooks import Probe
from dreamstill.nn.lenet import lenet5, lenet5_bn
from dreamstill.nn.quantized import QuantizedLayer, best_step, fake_quantize, quantized_bytes
from dreamstill.nn.resnet_cifar import ResNetCifar
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.synthesize import draw_images
from dreamstill.synthesis.config import ImageProgramsConfig
from dreamstill.teacher import Teacher

GREY = InputSpec(shape=(1, 28, 28), mean=(0.5,), std=(0.25,))
SMALL = InputSpec(shape=(1, 4, 4), mean=(0.5,), std=(0.25,))
COLOR = InputSpec(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def trained(model: nn.Module, spec: InputSpec) -> Teacher:
    """Give a network the statistics of noise, and unlike ranges from channel to channel."""
    with seeded(rng()), torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.exp(torch.randn(len(module.weight)) * 0.7))
                module.bias.normal_(0, 0.5)
        model.train()
        for _ in range(30):
            model(torch.randn(64, *spec.shape))
    return Teacher(model, spec)


def weight(model: nn.Module, name: str) -> Tensor:
    value = model.get_submodule(name).weight
    assert isinstance(value, Tensor)
    return value


def lenet() -> Teacher:
    with seeded(rng()):
        model = lenet5_bn()
    return trained(model, GREY)


def resnet() -> Teacher:
    with seeded(rng()):
        model = ResNetCifar(8, width=8)
    return trained(model, COLOR)


def mobile(clip: Callable[[], nn.Module] = nn.ReLU) -> Teacher:
    with seeded(rng()):
        model = toys.MobileNet(clip)
    return trained(model, COLOR)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-2.0, 1.0), (1.5, 0.5), (3.0, 1e-9)])
def test_analytic_relu_moments_are_those_of_monte_carlo(mean: float, std: float) -> None:
    drawn = (mean + std * torch.randn(2_000_000, generator=rng(), dtype=torch.float64)).relu()
    wanted = torch.stack([drawn.mean(), drawn.var()])
    got = torch.stack(relu_moments(torch.tensor(mean), torch.tensor(std)))
    torch.testing.assert_close(got.double(), wanted, atol=3e-3, rtol=0)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (5.0, 2.0), (9.0, 1.0), (-8.0, 1.0)])
def test_analytic_relu6_moments_are_those_of_monte_carlo(mean: float, std: float) -> None:
    drawn = mean + std * torch.randn(2_000_000, generator=rng(), dtype=torch.float64)
    drawn = drawn.clamp(0, 6)
    before = Moments.normal(torch.tensor(mean), torch.tensor(std**2))
    got = before.relu6()
    torch.testing.assert_close(got.mean.double(), drawn.mean(), atol=5e-3, rtol=0)
    torch.testing.assert_close(got.variance.double(), drawn.var(), atol=1e-2, rtol=0)
    assert 0 <= got.low <= got.high <= 6


def following(*layers: nn.Module) -> nn.Module:
    with seeded(rng()):
        return nn.Sequential(nn.Conv2d(1, 4, 3), *layers, nn.Flatten(), nn.Linear(4 * 26 * 26, 10))


def test_a_batch_norm_that_cannot_be_folded_says_what_it_puts_out() -> None:
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.bias.fill_(2.0)
        norm.weight.fill_(0.5)
    model = following(nn.ReLU(), norm).eval()
    moments = expected_inputs(equalize(model, GREY), GREY)["4"]
    torch.testing.assert_close(moments.mean, torch.full_like(moments.mean, 2.0))
    torch.testing.assert_close(moments.variance, torch.full_like(moments.mean, 0.25))


def test_plain_batch_norms_are_quantized_too() -> None:
    teacher = Teacher(following(nn.BatchNorm2d(4, affine=False), nn.ReLU()), GREY)
    for model in (
        quantize_without_inputs(teacher, QuantizeConfig()),
        quantize(teacher, images(teacher), QuantizeConfig(), rng=rng()),
    ):
        x = teacher.input_spec.encode(images(teacher))
        same = (model(x).argmax(1) == teacher(x).argmax(1)).float().mean()
        assert same > 0.9


class SplitAndJoined(nn.Module):
    """Halves of the channels change places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.norm(self.first(x)).chunk(2, dim=1)
        maps = torch.cat([right, left], dim=1)
        return self.last(maps.mean((2, 3)))  # type: ignore[no-any-return]


def test_moments_are_followed_through_chunks_and_concatenation() -> None:
    with seeded(rng()):
        model = SplitAndJoined().eval()
    with torch.no_grad():
        model.norm.bias.copy_(torch.arange(4.0))
        model.norm.weight.copy_(torch.arange(1.0, 5.0))
    moments = expected_inputs(equalize(model, GREY), GREY)["last"]
    torch.testing.assert_close(moments.mean, torch.tensor([[2.0, 3.0, 0.0, 1.0]]))
    of_one = torch.tensor([[9.0, 16.0, 1.0, 4.0]])
    torch.testing.assert_close(moments.variance, of_one * (26 * 26) ** (-2 / 3))


def test_what_cannot_be_known_without_inputs_is_named() -> None:
    teacher = Teacher(following(nn.GELU()), GREY)
    with pytest.raises(TeacherError, match=r"what 1 \(GELU\) puts out.*on images instead$"):
        quantize_without_inputs(teacher, QuantizeConfig())


def test_bytes_count_what_stays_as_it_was() -> None:
    teacher = Teacher(following(nn.GroupNorm(2, 4), nn.ReLU()), GREY)
    quantized = quantize(teacher, images(teacher), QuantizeConfig(weight_bits=8), rng=rng())
    without = sum(
        m.layer.weight.numel() for m in quantized.modules() if isinstance(m, QuantizedLayer)
    )
    rest = (4 + 4) + (4 + 4) + (10 + 10) + 2  # GroupNorm; biases and steps of two layers; inputs
    assert quantized_bytes(quantized) == without + 4 * rest


def test_taking_low_bits_out_keeps_what_the_weights_compute() -> None:
    teacher = lenet()
    quantized = quantize(teacher, images(teacher), QuantizeConfig(weight_bits=3), rng=rng())
    plain = copy.deepcopy(quantized)
    for name, layer in quantized.named_modules():
        if isinstance(layer, QuantizedLayer):
            replace_module(plain, name, layer.plain())
    check_plain(quantized, plain, GREY)
    plain.get_submodule("classifier.0").register_forward_hook(lambda m, x, output: 2 * output)
    with pytest.raises(TeacherError, match=r"^taking the simulation of low bits out changes the"):
        check_plain(quantized, plain, GREY)


class ReadsItsWeight(nn.Module):
    """Beside calling its second layer it reads that layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.second(self.first(x).relu()) + self.second.weight.sum()
        return self.last(maps.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_layer_whose_weight_the_code_reads_is_not_equalized() -> None:
    with seeded(rng()):
        model = ReadsItsWeight().eval()
    x = torch.randn(4, 1, 28, 28, generator=rng())
    torch.testing.assert_close(equalize(model, GREY).model(x), model(x))


EVENED = {
    lenet: ("features.0", "features.4"),
    resnet: ("layer1.0.conv1", "layer1.0.conv2"),
    mobile: ("block.3", "block.6"),
}


@pytest.mark.parametrize("make", EVENED)
def test_equalization_keeps_the_function_and_evens_the_ranges(make) -> None:  # type: ignore[no-untyped-def]
    teacher = make()
    equalized = equalize(teacher.module, teacher.input_spec, absorb=False)
    x = torch.randn(32, *teacher.input_spec.shape, generator=rng())
    torch.testing.assert_close(equalized.model(x), teacher(x), atol=1e-4, rtol=1e-4)
    first, second = (weight(equalized.model, name) for name in EVENED[make])
    ranges = first.flatten(1).abs().amax(1)
    torch.testing.assert_close(ranges, second.abs().amax((0, 2, 3)), rtol=2e-2, atol=1e-4)


def test_equalization_past_relu6_keeps_the_function_with_relu() -> None:
    clipped, free = mobile(nn.ReLU6), mobile(nn.ReLU)
    free.module.load_state_dict(clipped.module.state_dict())
    x = 3 * torch.randn(32, *COLOR.shape, generator=rng())
    assert not torch.allclose(clipped(x), free(x), atol=0.05)
    equalized = equalize(clipped.module, COLOR, absorb=False).model
    torch.testing.assert_close(equalized(x), free(x), atol=1e-4, rtol=1e-4)
    assert any(isinstance(module, nn.ReLU6) for module in clipped.module.modules())


def shades(num: int) -> Tensor:
    """Noisy images of a color each."""
    color, noise = (torch.randn(num, 3, *size, generator=rng()) for size in ((1, 1), (16, 16)))
    return (127 + 48 * color + 32 * noise).clamp(0, 255).byte()


@torch.no_grad()
def spoilt(clip: Callable[[], nn.Module], factor: float) -> Teacher:
    """Each fourth channel in a block is far from the others' range; depthwise makes up for it."""
    with seeded(rng()):
        model = toys.MobileNet(clip)
    for _ in range(50):
        model(COLOR.encode(shades(64)))
    for block in (model.block, model.residual):
        _, norm, _, depthwise, *_ = block
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(depthwise, nn.Conv2d)
        norm.weight[::4] *= factor
        depthwise.weight[::4] /= factor
    model.eval()  # and every class has its share
    model.head.bias.sub_(model(COLOR.encode(shades(256))).mean(0))
    return Teacher(model, COLOR)


@pytest.mark.parametrize(("clip", "factor"), [(nn.ReLU, 100.0), (nn.ReLU6, 0.01)])
def test_equalization_recovers_channels_that_differ_a_hundredfold(
    clip: Callable[[], nn.Module], factor: float
) -> None:
    teacher, x = spoilt(clip, factor), shades(512)
    config = QuantizeConfig(per_channel=False)
    wanted = predict(teacher.module, COLOR, x)
    equalized = quantize_without_inputs(teacher, config)
    assert agreement(predict(equalized, COLOR, x), wanted) > 0.95
    calibrated = quantize(teacher, x, config, rng=rng())
    assert agreement(predict(calibrated, COLOR, x), wanted) < 0.8


def test_absorbing_high_biases_only_cuts_a_tail() -> None:
    layers = [nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    with seeded(rng()):
        model = nn.Sequential(*layers)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([10.0, 0.0, 10.0, 0.0]))
    teacher = trained(model, SMALL)
    with torch.no_grad():
        bias = teacher.module.get_submodule("1").get_parameter("bias")
        bias.copy_(torch.tensor([10.0, 0.0, 10.0, 0.0]))
    equalized = equalize(teacher.module, teacher.input_spec)
    means = equalized.statistics["0"][0] / equalized.statistics["0"][1]
    torch.testing.assert_close(means, torch.tensor([3.0, 0.0, 3.0, 0.0]), atol=1e-3, rtol=0)
    x = torch.randn(500, 1, 4, 4, generator=rng())
    difference = (equalized.model(x) - teacher(x)).abs().mean()
    assert difference < 0.02 * teacher(x).std()


@pytest.mark.parametrize(
    ("pool", "through"),
    [
        (nn.AvgPool2d(2), True),
        (nn.AvgPool2d(3, 2, 1), False),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), True),
        (nn.MaxPool2d(3, 2, 1), True),
    ],
)
def test_a_bias_is_not_absorbed_through_an_average_of_padding(
    pool: nn.Module, through: bool
) -> None:
    with seeded(rng()):
        norm, last = nn.BatchNorm2d(4), nn.Linear(16, 3)
        nn.init.constant_(norm.bias, 6.0)
        layers = (nn.Conv2d(1, 4, 1), norm, nn.ReLU(), pool, nn.Flatten(), last)
        model = nn.Sequential(*layers).eval()
    equalized = equalize(model, SMALL)
    x = 0.3 * torch.randn(64, 1, 4, 4, generator=rng())
    torch.testing.assert_close(equalized.model(x), model(x), atol=1e-4, rtol=1e-3)
    means = equalized.statistics["0"][0] / equalized.statistics["0"][1]
    assert bool((means < 3.01).all()) == through


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_absorb_what_they_see(groups: int) -> None:
    with seeded(rng()):
        norm, second = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=groups)
        nn.init.constant_(norm.bias, 6.0)
        model = nn.Sequential(nn.Conv2d(1, 4, 1), norm, nn.ReLU(), second).eval()
    equalized = equalize(model, SMALL)
    mean, std = equalized.statistics["0"]
    torch.testing.assert_close(mean, 3 * std)
    x = 0.3 * torch.randn(64, 1, 4, 4, generator=rng())
    torch.testing.assert_close(equalized.model(x), model(x), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("make", [lenet, resnet])
def test_expected_inputs_are_near_the_measured_ones(make) -> None:  # type: ignore[no-untyped-def]
    teacher = make()
    expected = expected_inputs(
        equalize(teacher.module, teacher.input_spec, iterations=0, absorb=False), teacher.input_spec
    )
    folded = fold_batch_norm(teacher.module)
    with Probe({name: folded.get_submodule(name) for name in expected}) as probe:
        folded(torch.randn(512, *teacher.input_spec.shape, generator=rng()))
    assert probe.inputs.keys() == expected.keys()
    for name, moments in expected.items():
        if name == "classifier.2":
            continue  # behind a layer without BatchNorm, which is expected to be a trained one
        seen = probe.inputs[name].mean(0, keepdim=True)
        error = (moments.mean.mean() - seen.mean()).abs()
        assert error < 0.3 * probe.inputs[name].std() + 0.05, name


def test_moments_pass_through_a_layer_by_its_weights() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 0.0], [1.0, -3.0]]))
        layer.bias.copy_(torch.tensor([0.5, 0.0]))
    model = nn.Sequential(nn.Flatten(), layer, nn.Linear(2, 1))
    spec = InputSpec(shape=(1, 1, 2), mean=(0.5,), std=(0.25,))  # N(0, 1) where the network looks
    moments = expected_inputs(equalize(model, spec, iterations=0), spec)["2"]
    torch.testing.assert_close(moments.mean, torch.tensor([[0.5, 0.0]]))
    torch.testing.assert_close(
        moments.variance, torch.tensor([[4.0, 10 ** (2 / 3) * 4 ** (2 / 3)]])
    )


def digits() -> Tensor:
    with as_file(files("dreamstill") / "assets" / "digits.npz") as path:
        return load_images(path, embedded().input_spec, 10)[0]


def embedded() -> Teacher:
    """The LeNet-5 without BatchNorm that comes with the package."""
    with as_file(files("dreamstill") / "assets" / "lenet5_mnist.safetensors") as path:
        return open_from(TeacherFile(weights=str(path)))


class View(nn.Module):
    """The LeNet of PyTorch's first tutorial, in grey, trained a little on the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(256, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c2(x)), 2).view(-1, 16 * 4 * 4)
        logits: Tensor = self.fc2(F.relu(self.fc1(x)))
        return logits


def view() -> Teacher:
    source, shown = embedded(), digits()
    named = predict(source.module, source.input_spec, shown).argmax(1)
    with seeded(rng()):
        model = View()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(150):
            chosen = torch.randint(len(shown), (64,))
            optimizer.zero_grad()
            F.cross_entropy(
                model(source.input_spec.encode(shown[chosen])), named[chosen]
            ).backward()
            optimizer.step()
    return Teacher(model, source.input_spec)


POOLS: list[Callable[[Tensor], Tensor]] = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(2, dilation=2),
    nn.MaxPool2d(4, ceil_mode=True),
    nn.AdaptiveMaxPool2d(4),
    nn.AdaptiveMaxPool2d((1, 2)),
]
BEHIND_MAX_POOL: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.MaxPool2d(2),
    "function": lambda x: F.max_pool2d(x, 2),
    "by keyword": lambda x: F.max_pool2d(input=x, kernel_size=2, stride=2),
    "of torch": lambda x: torch.max_pool2d(x, [2, 2]),
    "adaptive": nn.AdaptiveMaxPool2d(13),
    "adaptive function": lambda x: F.adaptive_max_pool2d(x, 13),
    "overlapping": lambda x: F.max_pool2d(x, 2, stride=1),
}


class Pooled(nn.Module):
    """What enters `last` is the mean of a max pool of max(0, N(0, 1))."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.pool = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), pool
        self.last = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.pool(self.norm(self.first(x)).relu())
        return self.last(maps.mean((2, 3)))  # type: ignore[no-any-return]


class First(nn.Module):
    """The first of several."""

    def forward(self, several: tuple[Tensor, ...]) -> Tensor:
        return several[0]


def test_expected_ranges_without_batch_norm_hold_what_is_seen() -> None:
    teacher = embedded()
    equalized = equalize(teacher.module, teacher.input_spec)
    expected = expected_inputs(equalized, teacher.input_spec)
    seen = observed_ranges(
        equalized.model,
        teacher.input_spec,
        digits(),
        QuantizeConfig(calibration=InputRange.MIN_MAX),
    )
    assert seen.keys() == expected.keys()
    for name, (_, high) in seen.items():
        assert 0.7 * high <= expected[name].high.max() <= 2 * high, name


@pytest.mark.parametrize("make", [embedded, view])
def test_eight_bits_without_inputs_are_as_good_as_calibrated(make: Callable[[], Teacher]) -> None:
    teacher, shown, config = make(), digits(), QuantizeConfig()
    wanted = predict(teacher.module, teacher.input_spec, shown)
    calibrated = quantize(teacher, shown, config, rng=rng())
    without = quantize_without_inputs(teacher, config)
    shares = [
        agreement(predict(m, teacher.input_spec, shown), wanted) for m in (without, calibrated)
    ]
    assert shares[0] >= shares[1] - 0.003


@pytest.mark.parametrize("pool", POOLS)
def test_the_largest_of_a_window_is_expected_above_what_is_in_it(
    pool: Callable[[Tensor], Tensor],
) -> None:
    """Of rectified normals that are independent, by hand and by Monte Carlo."""
    drawn = pool((1.5 * torch.randn(20_000, 1, 6, 6, generator=rng()) - 0.5).relu())
    ones = torch.ones(1, 1, 6, 6)
    got = Moments.normal(-0.5 * ones, 2.25 * ones).relu().largest(pool)
    torch.testing.assert_close(got.mean[0], drawn.mean(0), atol=0.04, rtol=0)
    torch.testing.assert_close(got.variance[0], drawn.var(0), atol=0.06, rtol=0)


@pytest.mark.parametrize("name", BEHIND_MAX_POOL)
def test_max_pools_are_followed_however_they_are_called(name: str) -> None:
    with seeded(rng()):
        model = Pooled(BEHIND_MAX_POOL[name]).eval()
    moments = expected_inputs(equalize(model, GREY), GREY)["last"]
    # the integral of 1 - F(x)^4 for relu(N(0, 1)); of the map itself it is 0.399
    torch.testing.assert_close(moments.mean, torch.full((1, 4), 1.043), atol=0.02, rtol=0)
    assert (moments.high == 6).all()


def test_an_average_varies_less_than_what_is_in_it() -> None:
    ones = torch.ones(1, 2, 4, 4)
    one = Moments.normal(3 * ones, 4 * ones)
    pool = nn.AvgPool2d(2)
    got = one.average(pool, window_sizes(pool, ones))
    torch.testing.assert_close(got.mean, torch.full((1, 2, 2, 2), 3.0))
    # a third of the way from 4 / 4, the variance of independent values, to 4
    torch.testing.assert_close(got.variance, torch.full((1, 2, 2, 2), 4 ** (1 / 3)))
    border = nn.AvgPool2d(3, 2, 1)
    got = one.average(border, window_sizes(border, ones))
    assert got.mean[0, 0, 0, 0] == pytest.approx(3 * 4 / 9)  # 5 of 9 are padding
    assert window_sizes(border, ones).tolist() == [[4, 6], [6, 9]]


def test_a_max_pool_that_returns_indices_is_named() -> None:
    teacher = Teacher(following(nn.MaxPool2d(1, return_indices=True), First()), GREY)
    with pytest.raises(TeacherError, match="a max pool that returns indices"):
        quantize_without_inputs(teacher, QuantizeConfig())


def test_eight_bits_without_inputs_are_as_good_on_pixels_as_given() -> None:
    with seeded(rng()):
        teacher = Teacher(lenet5(), GREY)
    raw = copy.deepcopy(teacher.module)
    first = raw.get_submodule("features.0")
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        assert first.bias is not None
        first.bias.sub_(first.weight.sum((1, 2, 3)) * 2)  # (x / 255 - 0.5) / 0.25
        first.weight.mul_(4 / 255)
    spec = InputSpec.from_range((1, 28, 28), 0.0, 255.0)
    x = images(teacher)
    for given in (teacher, Teacher(raw, spec)):
        quantized = quantize_without_inputs(given, QuantizeConfig())
        wanted = predict(given.module, given.input_spec, x)
        error = (predict(quantized, given.input_spec, x) - wanted).pow(2).mean() / wanted.var()
        assert error < 0.02


def test_the_grid_has_its_levels_and_zero_on_it() -> None:
    layer = nn.Linear(8, 4)
    quantized = QuantizedLayer(layer, 3, 2, -1.0, 2.0, per_channel=True)
    assert len(quantized.quantized_weight()[0].unique()) <= 8
    step = quantized.input_step
    seen = fake_quantize(
        torch.linspace(-9, 9, 99), step, -quantized.zero_point, 3 - quantized.zero_point
    )
    assert seen.unique().tolist() == pytest.approx([-1.0, 0.0, 1.0, 2.0])


def test_the_best_step_is_not_worse_than_the_largest_magnitude() -> None:
    weight = torch.randn(4, 50, generator=rng())
    for per_channel in (True, False):
        step = best_step(weight, 3, per_channel=per_channel)
        plain = weight.abs().amax(1, keepdim=True) / 3 if per_channel else weight.abs().max() / 3
        errors = [(fake_quantize(weight, s, -4, 3) - weight).pow(2).mean() for s in (step, plain)]
        assert errors[0] < 0.7 * errors[1]


def test_gradients_reach_weight_and_steps_as_lsq_has_them() -> None:
    values = torch.tensor([0.2, 0.9, 5.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    fake_quantize(values, step, -2, 3).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 1.0, 0.0]
    # inside: round(v/s) - v/s; above the grid: its highest level
    assert step.grad is not None
    assert step.grad.item() == pytest.approx((0 - 0.4) + (2 - 1.8) + 3)


def test_eight_bits_without_inputs_are_near_and_correction_helps() -> None:
    teacher = resnet()
    x = torch.randn(256, *teacher.input_spec.shape, generator=rng())
    wanted = teacher(x)
    error = {}
    for correct in (True, False):
        config = QuantizeConfig(weight_bits=4, per_channel=False, first_last_bits=None)
        model = quantize_without_inputs(teacher, config, correct=correct)
        error[correct] = (model(x) - wanted).mean(0).abs().mean().item()
    assert error[True] < error[False]
    model = quantize_without_inputs(teacher, QuantizeConfig())
    assert (model(x) - wanted).abs().mean() < 0.2 * wanted.std()


def test_correction_of_a_depthwise_layer_is_of_each_channel_alone() -> None:
    with seeded(rng()):
        layers = (nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6))
        teacher = trained(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), COLOR)
    config = QuantizeConfig(weight_bits=3, per_channel=False, first_last_bits=None)
    layer = quantize_without_inputs(teacher, config).get_submodule("3")
    assert isinstance(layer, QuantizedLayer)
    error = (layer.quantized_weight() - layer.layer.weight).sum((1, 2, 3))
    equalized = equalize(teacher.module, teacher.input_spec)
    mean, _ = relu_moments(*equalized.statistics["0"])
    before = equalized.model.get_submodule("3").bias
    assert isinstance(before, Tensor)
    torch.testing.assert_close(layer.layer.bias, before - error * mean)


def images(teacher: Teacher, num: int = 128) -> Tensor:
    size = (num, *teacher.input_spec.shape)
    return torch.randint(0, 256, size, generator=rng(), dtype=torch.uint8)


@pytest.mark.parametrize("calibration", InputRange)
def test_finetuning_repairs_low_bits_and_bytes_are_counted(calibration: InputRange) -> None:
    teacher = lenet()
    shown = draw_images(teacher, "image_programs", ImageProgramsConfig(), 256, seed=1)[0]
    low = QuantizeConfig(
        weight_bits=3, activation_bits=3, first_last_bits=None, calibration=calibration
    )
    tuned = DistillConfig(
        steps=200,
        batch_size=32,
        lr=1e-3,
        num_validation=128,
        validate_every=25,
        augment=NO_AUGMENTATION,
    )
    fingerprint = teacher.fingerprint
    wanted, errors = teacher(teacher.input_spec.encode(shown)), []
    for config in (low, replace(low, finetune=tuned)):
        model = quantize(teacher, shown, config, rng=rng())
        errors.append((model(teacher.input_spec.encode(shown)) - wanted).abs().mean().item())
    assert errors[1] < 0.85 * errors[0]
    assert teacher.fingerprint == fingerprint
    weights = sum(m.layer.weight.numel() for m in model.modules() if isinstance(m, QuantizedLayer))
    assert weights * 3 / 8 < quantized_bytes(model) < weights * 3 / 8 + 4 * 800


@pytest.mark.parametrize("bits", [8, 4])
def test_finetuning_at_the_default_rate_keeps_every_step_alive(bits: int) -> None:
    teacher = lenet()
    config = QuantizeConfig(
        weight_bits=bits, finetune=DistillConfig(steps=30, batch_size=32, num_validation=32)
    )
    calibrated = quantize(teacher, images(teacher), replace(config, finetune=None), rng=rng())
    tuned = quantize(teacher, images(teacher), config, rng=rng())
    for network in (calibrated, tuned):
        for layer in (m for m in network.modules() if isinstance(m, QuantizedLayer)):
            assert type(layer) is QuantizedLayer  # nothing that a file cannot hold is left
            rows = layer.quantized_weight().flatten(1)
            assert (rows.abs().amax(1) > 0).all()


def test_mixed_bits_go_down_where_it_costs_least() -> None:
    table = {"a": {4: 0.1, 8: 0.0}, "b": {4: 9.0, 8: 0.0}}
    assert mixed_bits(table, {"a": 100, "b": 100}, 0.75) == {"a": 4, "b": 8}
    assert mixed_bits(table, {"a": 100, "b": 100}, 0.5) == {"a": 4, "b": 4}
    with pytest.raises(ConfigError, match=r"keep 0\.4 cannot be met: .* it is 0\.500"):
        mixed_bits(table, {"a": 100, "b": 100}, 0.4)


def test_what_the_last_layer_saved_beyond_the_size_is_given_back() -> None:
    table = {"small": {4: 0.001, 8: 0.0}, "large": {4: 0.3, 8: 0.0}}
    # the small one alone does not save enough, and the large one then more than enough
    assert mixed_bits(table, {"small": 10, "large": 100}, 0.6) == {"small": 8, "large": 4}


def test_mixed_precision_meets_its_size() -> None:
    teacher = lenet()
    for fixed in (None, 8):  # at 8 bits the first and last layer count in the size
        config = QuantizeConfig(keep=0.38, first_last_bits=fixed)
        model = quantize(teacher, images(teacher), config, rng=rng())
        layers = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
        weights = sum(m.layer.weight.numel() for m in layers)
        bits = sum(m.layer.weight.numel() * m.weight_bits for m in layers)
        assert 0.28 * 8 * weights < bits <= 0.38 * 8 * weights
        assert len({m.weight_bits for m in layers}) > 1
        assert fixed is None or layers[0].weight_bits == layers[-1].weight_bits == 8


def test_what_needs_images_says_so() -> None:
    with pytest.raises(ConfigError, match="need images"):
        quantize_without_inputs(lenet(), QuantizeConfig(keep=0.5))
    with pytest.raises(
        ConfigError, match="calibration min-max has no effect without inputs: it reads images"
    ):
        quantize_without_inputs(lenet(), QuantizeConfig(calibration=InputRange.MIN_MAX))
    with pytest.raises(ConfigError, match="weight_bits must be at least 2; got 1"):
        QuantizeConfig(weight_bits=1)


class ChannelsLast(nn.Module):
    """A linear layer over the channels of a map, as in networks that permute them to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.mix = nn.Linear(6, 8)
        self.head = nn.Linear(8 * 28 * 28, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mix(self.norm(self.conv(x)).permute(0, 2, 3, 1))
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


def test_biases_are_corrected_where_channels_are_last() -> None:
    with seeded(torch.Generator().manual_seed(0)):
        model = ChannelsLast()
    model.norm.bias.data.fill_(0.7)  # the mean of what enters `mix`
    teacher = Teacher(model, GREY)
    config = QuantizeConfig(weight_bits=3, first_last_bits=None)
    biases = []
    for correct in (False, True):
        quantized = quantize_without_inputs(teacher, config, correct=correct)
        mix = quantized.get_submodule("mix")
        assert isinstance(mix, QuantizedLayer)
        assert mix.layer.bias is not None
        biases.append(mix.layer.bias.detach())
    assert isinstance(mix, QuantizedLayer)
    error = mix.quantized_weight() - mix.layer.weight
    expected = error @ error.new_full((6,), 0.7)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(biases[0] - biases[1], expected.detach(), atol=1e-6, rtol=1e-4)


def test_layers_called_by_keyword_are_quantized() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 26 * 26, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(input=self.first(input=x).relu().flatten(1))
            return logits

    with seeded(torch.Generator().manual_seed(0)):
        teacher = Teacher(Keywords(), GREY)
    images = torch.randint(0, 256, (16, 1, 28, 28), dtype=torch.uint8)
    quantized = quantize(teacher, images, QuantizeConfig(), rng=torch.Generator())
    assert [type(part) for part in quantized.children()] == [QuantizedLayer] * 2


def test_convolutions_of_signals_are_quantized_past_their_batch_norm() -> None:
    with seeded(rng()):
        model = toys.Sensor()
        model.train()(torch.randn(256, 1, 1, 64))
    teacher = Teacher(model, toys.SIGNAL)
    shown = torch.randint(0, 256, (128, 1, 1, 64), dtype=torch.uint8, generator=rng())
    config = QuantizeConfig(activation_bits=8)
    quantized = quantize(teacher, shown, config, rng=rng())
    layers = {n for n, m in quantized.named_modules() if isinstance(m, QuantizedLayer)}
    assert layers == {"first", "second", "head"}
    wanted, got = (predict(m, toys.SIGNAL, shown) for m in (teacher.module, quantized))
    assert (wanted - got).abs().max() < 0.05 * wanted.std()


class Untraceable(nn.Module):
    """Without BatchNorm, so that there is nothing to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(784, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.reshape(len(x), 784))
        return logits


def test_what_has_no_batch_norm_need_not_be_traced() -> None:
    with seeded(rng()):
        teacher = Teacher(Untraceable(), GREY)
    shown = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8, generator=rng())
    quantized = quantize(teacher, shown, QuantizeConfig(), rng=rng())
    before, after = (predict(m, GREY, shown) for m in (teacher.module, quantized))
    assert agreement(before, after) > 0.95


class Again(nn.Module):
    """One layer on an image and on its double, or on a part of it."""

    def __init__(self, factor: float = 2.0, end: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.factor, self.end = factor, end

    def forward(self, x: Tensor) -> Tensor:
        again = self.conv(x[..., : self.end] if self.end else x * self.factor)
        logits: Tensor = self.conv(x).mean((2, 3)) + again.mean((2, 3))
        return logits


def test_the_default_range_has_the_least_squared_rounding_error() -> None:
    spec = InputSpec((1, 16, 16), (0.0,), (1.0,))
    teacher = Teacher(nn.Sequential(nn.Conv2d(1, 4, 16), nn.Flatten()), spec)
    shown = torch.randint(0, 40, (64, 1, 16, 16), generator=rng(), dtype=torch.uint8)
    shown[0, 0, 0, :8] = 255  # a few pixels are far outside
    pixels = shown.float().flatten() / 255

    def error(step: float) -> float:
        rounded = (pixels / step).round().clamp(0, 15) * step
        return (rounded - pixels).square().mean().item()

    of = {}
    for calibration in InputRange:
        config = QuantizeConfig(activation_bits=4, first_last_bits=None, calibration=calibration)
        model = quantize(teacher, shown, config, rng=rng())
        (layer,) = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
        of[calibration] = error(layer.input_step.item())
    least = min(map(error, torch.linspace(1e-3, 1 / 15, 300).tolist()))
    assert of[InputRange.MSE] < 1.05 * least
    assert of[InputRange.PERCENTILE] == of[InputRange.MIN_MAX] > 1.5 * least
    assert QuantizeConfig().calibration is InputRange.MSE


def test_the_range_is_that_of_all_columns_of_an_image() -> None:
    spec = InputSpec((1, 32, 32), (0.0,), (1.0,))
    teacher = Teacher(nn.Sequential(nn.Conv2d(1, 4, 32), nn.Flatten()), spec)
    shown = torch.randint(0, 256, (64, 1, 32, 32), generator=rng(), dtype=torch.uint8)
    shown[..., ::4] //= 16  # every fourth column, which an even sample would see alone, is dark
    config = QuantizeConfig(activation_bits=4, first_last_bits=None)
    model = quantize(teacher, shown, config, rng=rng())
    (layer,) = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
    assert 15 * layer.input_step.item() > 0.8


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_layer_has_the_range_of_all_its_calls(factor: float) -> None:
    teacher = Teacher(Again(factor), GREY)  # pixels are from -2 to 2
    shown = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28)
    config = QuantizeConfig(calibration=InputRange.MIN_MAX)
    model = quantize(teacher, shown, config, rng=rng())
    (layer,) = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
    high = 2 * max(factor, 1.0)
    assert layer.input_step.item() == pytest.approx(2 * high / 255)
    entered = entering_quantized(model, GREY, shown)["conv"]
    assert [end.item() for end in entered.aminmax()] == [-high, high]


def test_calls_of_one_layer_are_told_apart_without_inputs() -> None:
    mixed = Moments.mixture(
        [Moments(*torch.tensor([-1.0, 1.0, -3.0, 1.0])), Moments(*torch.tensor([1.0, 3.0, 0, 5]))]
    )
    assert [v.item() for v in (mixed.mean, mixed.variance, mixed.low, mixed.high)] == [0, 3, -3, 5]
    of_sizes = Teacher(Again(end=14), GREY)
    with pytest.raises(TeacherError, match="conv, called on maps of several sizes, puts out"):
        quantize_without_inputs(of_sizes, QuantizeConfig())


def test_what_is_seen_of_a_sorted_set_is_not_its_beginning() -> None:
    teacher = lenet()
    black, white = (torch.full((2048, 1, 28, 28), v, dtype=torch.uint8) for v in (0, 255))
    config = QuantizeConfig(calibration=InputRange.MIN_MAX, first_last_bits=None)
    model = quantize(teacher, torch.cat([black, white]), config, rng=rng())
    first = next(m for m in model.modules() if isinstance(m, QuantizedLayer))
    assert first.input_step.item() == pytest.approx(4 / 255)


@pytest.mark.parametrize("make", [lenet, resnet])
def test_a_network_keeps_its_mode(make: Callable[[], Teacher]) -> None:
    teacher = make()
    network = copy.deepcopy(teacher.module).train()
    equalize(network, teacher.input_spec)
    assert all(part.training for part in network.modules())


def test_a_shared_weight_is_stored_once_for_each_grid() -> None:
    one, two, three = (nn.Linear(8, 8, bias=False) for _ in range(3))
    two.weight = three.weight = one.weight
    quantized = nn.Sequential(
        *(QuantizedLayer(m, 4, 8, 0.0, 1.0, per_channel=False) for m in (one, two, three))
    )
    steps = 3 * 2 * 4
    assert quantized_bytes(quantized) == 64 // 2 + steps
    with torch.no_grad():
        quantized.get_parameter("2.weight_step").mul_(2)
    assert quantized_bytes(quantized) == 64 + steps
    assert quantized_bytes(nn.Sequential(quantized[0], one)) == 64 // 2 + 4 * 64 + 2 * 4


def test_a_layer_of_two_names_is_counted_once() -> None:
    layer = QuantizedLayer(nn.Linear(8, 8, bias=False), 4, 8, 0.0, 1.0, per_channel=False)
    assert quantized_bytes(nn.Sequential(layer, layer)) == 64 // 2 + 2 * 4


def test_a_weight_of_two_layers_is_counted_once() -> None:
    one, two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    two.weight = one.weight
    assert quantized_bytes(nn.Sequential(one, two)) == 4 * 64


def test_code_that_reads_a_layers_weight_reads_it_on_its_grid() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(64, 64), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x.flatten(1)).relu()
            logits: Tensor = self.head(F.linear(x, self.inner.weight, self.inner.bias))
            return logits

    teacher = Teacher(Tied(), toys.SPEC)
    images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8)
    quantized = quantize(teacher, images, QuantizeConfig(), rng=torch.Generator())
    inputs = toys.SPEC.encode(images)
    torch.testing.assert_close(quantized(inputs), teacher(inputs), atol=0.05, rtol=0.1)
