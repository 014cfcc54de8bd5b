"""Convolutions that pad in code of their own are followed as plain ones are."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import toys
from dreamstill.compression.config import FactorizeConfig, QuantizeConfig
from dreamstill.compression.factorization.factorize import factorize
from dreamstill.compression.quantization.quantize import quantize, quantize_without_inputs
from dreamstill.evaluation import agreement, predict
from dreamstill.graph.batch_norm_folding import fold_batch_norm
from dreamstill.graph.modules import plain_layers
from dreamstill.input_spec import InputSpec
from dreamstill.nn.padding import make_padding_plain
from dreamstill.nn.quantized import QuantizedLayer
from dreamstill.nn.seeded import seeded
from dreamstill.teacher import Teacher

SPEC = InputSpec(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def network() -> toys.EfficientNet:
    with seeded(rng()):
        model = toys.EfficientNet()
        for _ in range(20):
            model(torch.randn(64, *SPEC.shape))
    return model.eval()


def images(num: int = 64) -> Tensor:
    return torch.randint(0, 256, (num, *SPEC.shape), generator=rng(), dtype=torch.uint8)


class Same(nn.Module):
    """The padding is a submodule, made for one size, as in EfficientNet's static variant."""

    def __init__(self) -> None:
        super().__init__()

        class Static(nn.Conv2d):
            def __init__(self) -> None:
                super().__init__(3, 4, 3, stride=2)
                self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

            def forward(self, x: Tensor) -> Tensor:
                x = self.static_padding(x)
                return F.conv2d(x, self.weight, self.bias, self.stride)

        self.conv = Static()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [(5, 1), (3, 2), (4, 1), (1, 1), (5, 3), ((3, 5), (2, 1))])
def test_a_convolution_that_pads_by_itself_becomes_a_plain_one(size: Any) -> None:
    with seeded(rng()):
        model = nn.Sequential(toys.SameConv2d(3, 4, *size))
    x = torch.randn(2, 3, 16, 16, generator=rng())
    wanted, names, before = model(x), list(model.state_dict()), torch.get_rng_state()
    make_padding_plain(model, x)
    assert type(model[0]) is nn.Conv2d
    torch.testing.assert_close(model(x), wanted, atol=1e-5, rtol=1e-5)
    assert list(model.state_dict()) == names
    assert torch.equal(torch.get_rng_state(), before)


def test_padding_that_is_a_module_is_followed() -> None:
    model = Same()
    x = torch.randn(2, 3, 16, 16, generator=rng())
    wanted = model(x)
    make_padding_plain(model, x)
    assert type(model.conv) is nn.Conv2d
    torch.testing.assert_close(model(x), wanted, atol=1e-5, rtol=1e-5)


class Standardized(nn.Conv2d):
    """Computes its weight before each pass."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.std(), self.bias)


class Reflecting(nn.Conv2d):
    """Pads with what is at the border."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, [1, 1, 1, 1], mode="reflect"), self.weight, self.bias)


class Twice(nn.Module):
    """Calls a layer on maps of two sizes, of which only the even one is padded unequally."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = toys.SameConv2d(3, 3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3)) + self.conv(x[:, :, 1:, 1:]).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "make", [lambda: Standardized(3, 4, 3), lambda: Reflecting(3, 4, 3), Twice]
)
def test_other_subclasses_stay(make: Any) -> None:
    model = nn.Sequential(make())
    kinds = [type(module) for module in model.modules()]
    make_padding_plain(model, torch.randn(2, 3, 16, 16, generator=rng()))
    assert [type(module) for module in model.modules()] == kinds


def test_every_layer_of_an_efficientnet_is_folded_and_quantized() -> None:
    model = network()
    folded = fold_batch_norm(model, SPEC)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert len(plain_layers(folded)) == 8
    teacher = Teacher(model, SPEC)
    wanted = predict(model, SPEC, images())
    for quantized in (
        quantize(teacher, images(), QuantizeConfig(), rng=rng()),
        quantize(teacher, images(), QuantizeConfig(), rng=rng(), model=model),
        quantize_without_inputs(teacher, QuantizeConfig()),
    ):
        layers = [m for m in quantized.modules() if isinstance(m, QuantizedLayer)]
        assert len(layers) == 8
        assert agreement(predict(quantized, SPEC, images()), wanted) > 0.9
    split, _ = factorize(teacher.module, SPEC, FactorizeConfig(energy=1.0), images(), rng=rng())
    torch.testing.assert_close(predict(split, SPEC, images()), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_int8_files_of_an_efficientnet_agree_with_it(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime" if kind == "onnx" else "torchao")
    from dreamstill.exporters.int8 import export_int8

    path, teacher = tmp_path / f"network.{kind}", Teacher(network(), SPEC)
    record = export_int8(teacher.module, SPEC, images(), path)
    assert record.agreement > 0.9
    if kind == "pt2":
        graph = torch.export.load(path).module().graph
        scaled = [node for node in graph.nodes if "dequantize_per_channel" in str(node.target)]
        assert len(scaled) == 8  # a weight of each layer, also of a class of its own
