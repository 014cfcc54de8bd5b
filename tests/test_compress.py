"""Folding, merging, factorizing, pruning and packing, against answers known by hand."""

import base64
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dreamstill
import toys
from dreamstill.compression.config import (
    FactorizeConfig,
    Importance,
    MergeConfig,
    PackConfig,
    PruneConfig,
    QuantizeConfig,
    Target,
)
from dreamstill.compression.deep_compression.file_format import (
    from_gaps,
    gaps_of,
    load_packed,
    save_packed,
)
from dreamstill.compression.deep_compression.pack import codebook_of, lamp_masks, pack
from dreamstill.compression.factorization.factorize import factorize
from dreamstill.compression.factorization.factors import (
    modes_by_responses,
    modes_of,
    split_convolution,
)
from dreamstill.compression.merge import filter_partners, merge, merge_order
from dreamstill.compression.prune import importance_of, prune
from dreamstill.compression.quantization.quantize import quantize, quantize_without_inputs
from dreamstill.data.batch import Batch
from dreamstill.data.config import NO_AUGMENTATION
from dreamstill.data.images import load_images
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.batch_stream import replay
from dreamstill.distillation.config import FinetuneConfig
from dreamstill.distillation.finetune import finetune
from dreamstill.errors import ConfigError, DataError, ExportError, TeacherError
from dreamstill.evaluation import accuracy, predict
from dreamstill.graph.batch_norm_folding import fold_batch_norm
from dreamstill.graph.layer_pairs import pairs
from dreamstill.graph.tracing import trace
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.nn.lenet import lenet5, lenet5_bn
from dreamstill.nn.quantized import QuantizedLayer
from dreamstill.nn.resnet_cifar import resnet20
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.synthesize import draw_images
from dreamstill.profiling import count_macs
from dreamstill.progress import Progress
from dreamstill.teacher import Teacher

SPEC = InputSpec(shape=(1, 28, 28), mean=(0.5,), std=(0.5,))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def lenet(*, batch_norm: bool = False) -> nn.Module:
    with seeded(rng()):
        model: nn.Module = lenet5_bn() if batch_norm else lenet5()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias)
    return model.eval()


def images(num: int, shape: tuple[int, int, int] = (1, 28, 28)) -> Tensor:
    return torch.randint(0, 256, (num, *shape), generator=rng(), dtype=torch.uint8)


def shown(num: int = 16) -> Tensor:
    return SPEC.encode(images(num))


def weight(model: nn.Module, name: str) -> Tensor:
    value = model.get_submodule(name).weight
    assert isinstance(value, Tensor)
    return value


class Residual(nn.Module):
    """A layer whose output goes two ways must not be made narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        logits: Tensor = self.head(x + self.second(x).relu())
        return logits


def test_folding_keeps_the_function_and_leaves_no_batch_norm() -> None:
    model = lenet(batch_norm=True)
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model)
    torch.testing.assert_close(folded(shown()), model(shown()), atol=1e-5, rtol=1e-4)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_batch_norm_without_scale_is_folded_into_a_linear_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    inputs = torch.randn(16, 6, generator=rng())
    model(inputs)
    model.eval()
    torch.testing.assert_close(fold_batch_norm(model)(inputs), model(inputs))


def test_pairs_are_layers_that_feed_one_other_alone() -> None:
    found = [(p.first, p.second, p.relu, p.positions) for p in pairs(trace(lenet()))]
    assert found == [
        ("features.0", "features.3", True, 1),
        ("features.3", "features.6", True, 1),
        ("features.6", "classifier.0", True, 1),
        ("classifier.0", "classifier.2", True, 1),
    ]
    assert pairs(trace(Residual())) == []


def test_a_flattened_map_gives_each_channel_its_positions() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    (pair,) = pairs(trace(model))
    assert (pair.first, pair.second, pair.positions) == ("0", "3", 9)


def test_the_nearest_neurons_weighted_by_what_leaves_them_go_first() -> None:
    weight = torch.tensor([[0.0], [1.0], [3.0]])
    outgoing = torch.tensor([[1.0, 2.0, 0.1]])
    order, saliencies = merge_order(weight, torch.zeros(3), outgoing)
    # 2 into 1 costs 0.01 * 4; then a_1 is 2.1, and 0 into 1 costs 1 * 1
    assert order == [(1, 2), (1, 0)]
    assert saliencies == pytest.approx([0.04, 1.0])


def test_merging_copies_of_a_neuron_changes_nothing() -> None:
    with seeded(rng()):
        half, head = nn.Linear(6, 5), nn.Linear(10, 3)
    whole = nn.Linear(6, 10)
    whole.weight = nn.Parameter(half.weight.repeat(2, 1))
    whole.bias = nn.Parameter(half.bias.repeat(2))
    model = nn.Sequential(whole, nn.ReLU(), head)
    merged, (record,) = merge(model, SPEC, MergeConfig(keep=0.5))
    x = torch.randn(8, 6, generator=rng())
    torch.testing.assert_close(merged(x), model(x), atol=1e-5, rtol=1e-5)
    assert (record.layer, record.before, record.after) == ("0", 10, 5)
    assert record.saliency[:5] == pytest.approx([0] * 5, abs=1e-9)
    _, (record,) = merge(model, SPEC, MergeConfig())
    assert record.after == 5
    cut, _ = merge(model, SPEC, MergeConfig(keep=0.5, compensate=False))
    assert not torch.allclose(cut(x), model(x), atol=0.05)
    assert len(weight(model, "0")) == 10


def test_a_filter_that_is_a_multiple_of_another_goes_into_it() -> None:
    with seeded(rng()):
        first, second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)
    with torch.no_grad():
        first.weight[2:] = 0.25 * first.weight[:2]
        assert first.bias is not None
        first.bias[2:] = 0.25 * first.bias[:2]
    model = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second)
    merged, (record,) = merge(model, SPEC, MergeConfig())
    torch.testing.assert_close(merged(shown()), model(shown()), atol=1e-5, rtol=1e-5)
    assert record.after == 2


@pytest.mark.parametrize("batch_norm", [False, True])
def test_opposite_filters_are_cut_not_merged(*, batch_norm: bool) -> None:
    with seeded(rng()):
        first, last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)
        norm = nn.BatchNorm2d(4).eval() if batch_norm else nn.Identity()
    with torch.no_grad():
        assert first.bias is not None
        first.weight.abs_()  # 0 and 1 are alike, and 2 and 3 like neither
        first.bias.abs_()
        first.weight[2:] = -0.9 * first.weight[:2]
        first.bias[2:] = -0.9 * first.bias[:2]
    model = nn.Sequential(first, norm, nn.ReLU(), last)
    merged, (record,) = merge(model, SPEC, MergeConfig(keep=0.5))
    cut, _ = merge(model, SPEC, MergeConfig(keep=0.5, compensate=False))
    assert record.after == 2
    for mine, other in zip(merged.parameters(), cut.parameters(), strict=True):
        assert torch.equal(mine, other)
    forced, _ = merge(model, SPEC, MergeConfig(keep=0.5, threshold=-1))
    assert not torch.allclose(weight(forced, "3"), weight(cut, "3"))


def test_a_filter_goes_into_the_most_similar_above_the_threshold() -> None:
    angles = torch.tensor([0.0, 0.5, 1.5]) * torch.pi / 3  # cosines of the last: 0, 0.5
    rows = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[2.0], [2.0], [1.0]])

    def partners(threshold: float) -> list[tuple[int, int, float]]:
        config = MergeConfig(threshold=threshold)
        return filter_partners(rows, torch.zeros(3), 1, config, batch_norm=False)

    ((kept, removed, factor),) = partners(0.49)
    assert (kept, removed) == (1, 2)
    assert factor == pytest.approx(0.5)
    assert partners(0.51) == [(1, 2, 0.0)]


def test_behind_batch_norm_the_distance_of_biases_counts_too() -> None:
    rows = torch.tensor([[2.0, 0.0], [2.0, 0.4], [1.0, 0.0]])
    bias = torch.tensor([5.0, 1.0, 0.5])  # the last is half of the second, by its bias

    def partner(share: float, *, batch_norm: bool = True) -> int:
        config = MergeConfig(cosine_share=share)
        ((kept, removed, factor),) = filter_partners(rows, bias, 1, config, batch_norm=batch_norm)
        assert removed == 2
        assert batch_norm is False or factor == pytest.approx(1 / rows[kept].norm().item())
        return kept

    assert [partner(share) for share in (1.0, 0.85, 0.0)] == [0, 1, 1]
    assert partner(0.85, batch_norm=False) == 1  # (2, 0.4, 1) is more like (1, 0, 0.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"threshold": 1.5}, r"threshold must be at most 1; got 1.5"),
        ({"cosine_share": -0.1}, r"cosine_share must be at least 0; got -0.1"),
        ({"threshold": 0.3, "compensate": False}, "threshold 0.3 has no effect with compensate"),
    ],
)
def test_settings_of_partners_are_checked(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MergeConfig(**config)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_merged_layers_are_solved_for_what_they_made(*, batch_norm: bool) -> None:
    model, drawn = lenet(batch_norm=batch_norm), images(512)
    unseen = SPEC.encode(drawn[-100:])
    errors = []
    for given in (None, drawn[:400]):
        small, _ = merge(model, SPEC, MergeConfig(keep=0.5), given)
        errors.append((small(unseen) - model(unseen)).square().mean())
    assert errors[1] < 0.5 * errors[0]
    as_merged, _ = merge(model, SPEC, MergeConfig(keep=0.5))
    left, _ = merge(model, SPEC, MergeConfig(keep=0.5, reconstruct=0), drawn)
    for mine, papers in zip(left.parameters(), as_merged.parameters(), strict=True):
        assert torch.equal(mine, papers)


def test_what_cannot_be_merged_is_named() -> None:
    with pytest.raises(TeacherError, match="nothing to merge"):
        merge(Residual(), SPEC, MergeConfig())
    color = InputSpec(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(ConfigError, match=r"narrower; known: stem\.0, top\.0$"):
        merge(toys.MobileNet(nn.ReLU), color, MergeConfig(layers=("block.3",)))  # depthwise
    with pytest.raises(ConfigError, match=r"cannot make 'classifier.2' narrower"):
        merge(lenet(), SPEC, MergeConfig(layers=("classifier.2",)))
    with pytest.raises(ConfigError, match=r"keep must be above 0; got -0.5"):
        MergeConfig(keep=-0.5)


def test_full_rank_keeps_the_function_and_low_rank_the_best_error() -> None:
    with seeded(rng()):
        linear = nn.Linear(40, 30)
    with torch.no_grad():
        u, s, v = torch.linalg.svd(linear.weight, full_matrices=False)
        s[3:] *= 1e-4
        linear.weight.copy_(u * s @ v)
    model = nn.Sequential(nn.Linear(40, 40), linear)
    row = InputSpec(shape=(1, 1, 40), mean=(0.5,), std=(0.5,))
    small, (record,) = factorize(model, row, FactorizeConfig(energy=0.999))
    assert (record.layer, record.full, record.ranks) == ("1", (30,), (3,))
    x = torch.randn(8, 40, generator=rng())
    torch.testing.assert_close(small(x), model(x), atol=1e-3, rtol=1e-3)
    assert sum(p.numel() for p in small.get_submodule("1").parameters()) == 3 * 70 + 30


def test_tucker_of_a_low_rank_convolution_is_exact() -> None:
    with seeded(rng()):
        factors = nn.Conv2d(8, 2, 1, bias=False), nn.Conv2d(2, 3, 3), nn.Conv2d(3, 12, 1)
    inner, core, outer = (f.weight.detach() for f in factors)
    layer = nn.Conv2d(8, 12, 3, stride=2, padding=1)
    weight = torch.einsum("op,pqkl,qi->oikl", outer[:, :, 0, 0], core, inner[:, :, 0, 0])
    layer.weight = nn.Parameter(weight)
    model = nn.Sequential(nn.Conv2d(1, 8, 1), layer)
    small, (record,) = factorize(model, SPEC, FactorizeConfig(energy=1 - 1e-6))
    assert record.ranks == (2, 3)
    torch.testing.assert_close(small(shown()), model(shown()), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shown_images", [None, 64])
def test_a_convolution_of_1x1_is_two_layers_and_its_stride_comes_first(
    shown_images: int | None,
) -> None:
    with seeded(rng()):
        layer = nn.Conv2d(16, 24, 1, stride=2, padding=1)
    with torch.no_grad():
        u, s, v = torch.linalg.svd(layer.weight[:, :, 0, 0], full_matrices=False)
        s[3:] = 0
        layer.weight.copy_((u * s @ v)[:, :, None, None])
    model = nn.Sequential(nn.Conv2d(1, 16, 3), layer)
    given = None if shown_images is None else images(shown_images)
    small, (record,) = factorize(model, SPEC, FactorizeConfig(energy=1 - 1e-6), given)
    assert (record.layer, record.full, record.ranks) == ("1", (16,), (3,))
    torch.testing.assert_close(small(shown()), model(shown()), atol=1e-4, rtol=1e-3)
    assert sum(p.numel() for p in small.get_submodule("1").parameters()) == 3 * (16 + 24) + 24
    macs = [count_macs(network, SPEC) for network in (small, model)]
    assert macs[1] - macs[0] == 14 * 14 * (16 * 24 - 3 * (16 + 24))


def half_silent(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """A network in which half of what enters `layer` is always 0, and has the larger weights."""
    inputs = layer.weight.shape[1]
    first = nn.Conv2d(1, inputs, 5) if isinstance(layer, nn.Conv2d) else nn.Linear(28, inputs)
    with torch.no_grad():
        for part in (first.weight, first.bias):
            assert part is not None
            part[inputs // 2 :] = 0
        layer.weight[:, inputs // 2 :] *= 3
    return nn.Sequential(first, layer)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(16, 16, 3),
        lambda: nn.Conv2d(16, 32, 1, stride=2),
        lambda: nn.Linear(16, 32),
    ],
    ids=["3x3", "1x1", "linear"],
)
def test_responses_say_what_to_keep(make: Callable[[], nn.Conv2d | nn.Linear]) -> None:
    with seeded(rng()):
        model = half_silent(make()).eval()
    target = FactorizeConfig(target=Target.PARAMETERS, keep=0.9)
    missed = []
    for config in (target, replace(target, responses=0)):
        small, _ = factorize(model, SPEC, config, images(64))
        missed.append((small(shown()) - model(shown())).pow(2).mean().item())
    assert missed[0] < 0.05 * missed[1]


@torch.no_grad()
def test_all_directions_together_are_the_layer() -> None:
    with seeded(rng()):
        layer = nn.Conv2d(6, 5, 3, stride=2, padding=1)
    x = torch.randn(4, 6, 9, 9, generator=rng())
    (modes,) = modes_by_responses(layer, {"": layer}, [x[:3], x[3:]]).values()
    rows = layer(x).movedim(1, -1).flatten(0, -2).double() - layer.bias
    squares = torch.linalg.svdvals(rows).pow(2)
    torch.testing.assert_close(modes[1].energy, squares)  # of the responses, principal directions
    for found in (modes, modes_of(layer)):
        for mode in found:  # or training would move one factor much faster than another
            torch.testing.assert_close(mode.into.norm(dim=1), torch.ones(len(mode.into)).double())
        factors = split_convolution(layer, found, (6, 5))
        torch.testing.assert_close(factors(x), layer(x), atol=1e-5, rtol=1e-4)


class InPlace(nn.Module):
    """What enters and leaves the layer is changed after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0
        out = self.layer(x)
        x.zero_()
        changed: Tensor = out.relu_()
        return changed


@torch.no_grad()
def test_responses_are_those_of_the_layer_itself() -> None:
    with seeded(rng()):
        model = InPlace()
    x = torch.randn(4, 3, 9, 9, generator=rng())
    (found,) = modes_by_responses(model, {"layer": model.layer}, [x]).values()
    (wanted,) = modes_by_responses(model.layer, {"layer": model.layer}, [x]).values()
    for here, there in zip(found, wanted, strict=True):
        torch.testing.assert_close(here.energy, there.energy)


def test_a_target_is_met_where_it_costs_least() -> None:
    """Of two layers of one size the one of rank 1 goes first; the rest of the budget is used."""
    row = InputSpec(shape=(1, 1, 40), mean=(0.5,), std=(0.5,))
    with seeded(rng()):
        layers = [nn.Linear(40, 40, bias=False) for _ in range(3)]
    with torch.no_grad():
        layers[1].weight.copy_(torch.outer(layers[1].weight[0], layers[1].weight[1]))
    model = nn.Sequential(*layers)
    small, records = factorize(model, row, FactorizeConfig(target=Target.PARAMETERS, keep=0.7))
    assert [(record.layer, record.ranks) for record in records] == [("1", (1,))]
    x = torch.randn(8, 40, generator=rng())
    torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=1e-4)
    small, records = factorize(model, row, FactorizeConfig(target=Target.PARAMETERS, keep=0.5))
    assert [record.layer for record in records] == ["1", "2"]
    left = sum(p.numel() for p in small.parameters()) / (3 * 1600)
    assert 0.5 - 80 / 4800 < left <= 0.5  # no further rank would fit


class OutOfOrder(nn.Module):
    """The head is defined first and called last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)
        self.first = nn.Conv2d(1, 16, 3)
        self.inner = nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.inner(torch.relu(self.first(x))))
        logits: Tensor = self.head(out.mean((2, 3)))
        return logits


def test_the_first_layer_is_the_one_that_is_called_first() -> None:
    with seeded(rng()):
        model = OutOfOrder()
    _, records = factorize(model, SPEC, FactorizeConfig(energy=0.3))
    assert [record.layer for record in records] == ["inner", "head"]
    teacher = Teacher(model, SPEC)
    config = QuantizeConfig(weight_bits=2, activation_bits=3)
    quantized = quantize(teacher, images(8), config, rng=rng())
    bits = {
        name: (layer.weight_bits, layer.activation_bits)
        for name, layer in quantized.named_modules()
        if isinstance(layer, QuantizedLayer)
    }
    assert bits == {"head": (8, 8), "first": (8, 8), "inner": (2, 3)}


class Attention(nn.Module):
    """Four patches, a transformer layer, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 16, 14, 14)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.layer(tokens).mean(1))
        return logits


def test_layers_inside_attention_are_skipped() -> None:
    with seeded(rng()):
        teacher = Teacher(Attention(), SPEC)
    small, records = factorize(teacher.module, SPEC, FactorizeConfig(energy=0.3))
    assert [record.layer for record in records] == ["head"]
    assert small(shown()).shape == (len(shown()), 4)
    config = PruneConfig(keep=0.9, rounds=1, target=Target.PARAMETERS, finetune=None)
    pruned, _ = prune(teacher, images(16), config, rng=rng())
    assert weight(pruned, "layer.linear1").shape[0] < 32
    assert weight(pruned, "layer.linear1").shape[1] == 16
    assert pruned(shown()).shape == (len(shown()), 4)
    config = replace(config, keep=0.1)
    with pytest.raises(ConfigError, match=r"keep 0\.1 of parameters cannot be met"):
        prune(teacher, images(16), config, rng=rng())


class Columns(nn.Module):
    """A linear layer over columns, where one expects channels."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Conv2d(1, 8, 3, padding=1)
        self.columns = nn.Linear(28, 4)
        self.head = nn.Linear(8 * 28 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.columns(self.rows(x))).flatten(1))
        return logits


def test_a_network_that_cannot_be_cut_is_named() -> None:
    with seeded(rng()):
        teacher = Teacher(Columns(), SPEC)
    with pytest.raises(
        TeacherError, match=r"no layer of Columns can lose channels: columns, rows skipped: "
    ):
        prune(teacher, images(16), PruneConfig(keep=0.6, finetune=None), rng=rng())


def test_scales_are_not_read_where_there_are_none() -> None:
    config = PruneConfig(importance=Importance.BATCH_NORM, finetune=None)
    with pytest.raises(ConfigError, match="LeNet5 has none: take magnitude or taylor"):
        prune(Teacher(lenet(), SPEC), images(16), config, rng=rng())


def test_factors_have_fewer_multiply_accumulates_too() -> None:
    """A stride is taken by the second factor: the first works on four times as many pixels."""
    with seeded(rng()):
        model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 3, stride=2), nn.Flatten())
    whole = count_macs(model, SPEC)
    for energy in (0.3, 0.6, 0.9, 0.95):
        small, _ = factorize(model, SPEC, FactorizeConfig(energy=energy))
        assert count_macs(small, SPEC) <= whole
    assert isinstance(small.get_submodule("1"), nn.Conv2d)


def test_a_target_of_macs_is_met_with_convolutions_of_1x1() -> None:
    """Both factors work behind the stride: the whole layer's positions are theirs."""
    with seeded(rng()):
        wide, narrow = nn.Conv2d(16, 64, 1, stride=2), nn.Conv2d(64, 16, 1)
        model = nn.Sequential(nn.Conv2d(1, 16, 3), wide, nn.ReLU(), narrow)
    whole = count_macs(model, SPEC)
    for share in (0.9, 0.7, 0.5):
        config = FactorizeConfig(keep=share)
        small, records = factorize(model, SPEC, config, images(64), rng=rng())
        assert share - 0.05 < count_macs(small, SPEC) / whole <= share
        assert all(len(record.ranks) == 1 for record in records)


def test_a_target_of_macs_is_met_and_an_absurd_one_refused() -> None:
    model = lenet()
    small, _ = factorize(model, SPEC, FactorizeConfig(keep=0.5))
    macs = [count_macs(network, SPEC) for network in (small, model)]
    assert 0.48 < macs[0] / macs[1] <= 0.5
    with pytest.raises(ConfigError, match=r"no rank brings macs to 0\.001"):
        factorize(model, SPEC, FactorizeConfig(keep=0.001))


class Again(nn.Module):
    """One layer, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        for _ in range(3):
            x = self.again(x).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_every_call_of_a_layer_counts_towards_a_target_of_macs() -> None:
    with seeded(rng()):
        model = Again()
    whole = count_macs(model, SPEC)
    for share in (0.9, 0.7, 0.5):
        small, _ = factorize(model, SPEC, FactorizeConfig(keep=share))
        assert share - 0.1 < count_macs(small, SPEC) / whole <= share


class Tied(nn.Module):
    """Two convolutions of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3)
        self.one, self.two = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.two.weight = self.one.weight
        self.wide, self.head = nn.Linear(16, 128), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(self.first(x).relu()).relu()).relu()
        logits: Tensor = self.head(self.wide(x.mean((2, 3))).relu())
        return logits


def test_a_weight_of_two_layers_stays_one(tmp_path: Path) -> None:
    with seeded(rng()):
        teacher = Teacher(Tied(), SPEC)
    model = teacher.module
    small, records = factorize(model, SPEC, FactorizeConfig(target=Target.PARAMETERS, keep=0.7))
    assert {record.layer for record in records} <= {"wide", "head"}
    counts = [sum(p.numel() for p in network.parameters()) for network in (small, model)]
    assert counts[0] <= 0.7 * counts[1]
    reconstructed, _ = factorize(
        model, SPEC, FactorizeConfig(target=Target.PARAMETERS, keep=0.7), images(64), rng=rng()
    )
    assert torch.equal(weight(reconstructed, "one"), weight(model, "one"))  # no solution suits both
    assert [(p.first, p.second) for p in pairs(trace(model))] == [("wide", "head")]
    packed_model, path = packed(teacher), tmp_path / "tied.packed"
    size = save_packed(packed_model, path)
    plain = copy.deepcopy(model)
    plain.load_state_dict(load_packed(path)[0])
    torch.testing.assert_close(plain(shown()), packed_model(shown()))
    apart = copy.deepcopy(packed_model)
    two = apart.get_submodule("two")
    two.weight = nn.Parameter(weight(apart, "one").clone())
    save_packed(apart, path)
    assert (
        path.stat().st_size - size > 0.9 * 4 * weight(apart, "two").numel()
    )  # it was written once


def test_a_network_without_layers_to_factorize_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 4))
    with pytest.raises(ConfigError, match=r"no rank brings macs to 0\.5"):
        factorize(model, SPEC, FactorizeConfig(keep=0.5))


def test_layers_called_by_keyword_are_factorized() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 8, 3, stride=3), nn.Conv2d(8, 8, 3)
            self.head = nn.Linear(8 * 7 * 7, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(input=self.second(input=self.first(x)).flatten(1))
            return logits

    with seeded(rng()):
        model = Keywords()
    config = FactorizeConfig(keep=0.7)
    small, records = factorize(model, SPEC, config, images(64), rng=rng())
    assert records
    assert small(shown(4)).shape == (4, 4)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_factors_are_solved_for_what_the_layers_made(*, batch_norm: bool) -> None:
    model = lenet(batch_norm=batch_norm)
    errors = []
    for reconstructed in (0, 256):
        config = FactorizeConfig(keep=0.5, reconstruct=reconstructed)
        small, _ = factorize(model, SPEC, config, images(256), rng=rng())
        errors.append((small(shown(400)[-100:]) - model(shown(400)[-100:])).square().mean())
    assert errors[1] < errors[0]


def quick(**changes: Any) -> FinetuneConfig:
    config: dict[str, Any] = {
        "steps": 5,
        "batch_size": 16,
        "num_validation": 8,
        "validate_every": 5,
    }
    return FinetuneConfig(**(config | changes))


def test_finetuning_repairs_and_needs_images() -> None:
    teacher = toys.quadrant_teacher()
    student = copy.deepcopy(teacher.module).requires_grad_(True)
    with torch.no_grad():
        weight(student, "head").add_(torch.randn(4, 4, generator=rng()) * 3)
    pictures = images(80, (1, 8, 8))
    inputs = toys.SPEC.encode(pictures)
    before = (student(inputs) - teacher(inputs)).abs().mean()
    tuned = finetune(teacher, student, pictures, quick(steps=200, lr=0.05), rng=rng())
    assert (tuned(inputs) - teacher(inputs)).abs().mean() < 0.2 * before
    with pytest.raises(DataError, match="at least 8 images; got 7"):
        finetune(teacher, student, pictures[:7], quick(), rng=rng())


def test_a_network_that_training_ruins_is_returned_as_it_started(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assets = Path(dreamstill.__file__).parent / "assets"
    teacher = open_from(TeacherFile(weights=str(assets / "lenet5_mnist.safetensors")))
    x, y = load_images(assets / "digits.npz", teacher.input_spec, 10)
    shown, _ = draw_images(teacher, "structured_noise", toys.structured(), 600, seed=0)
    student = copy.deepcopy(teacher.module).requires_grad_(True)
    assert accuracy(predict(student, teacher.input_spec, x), y) == pytest.approx(0.9905)
    ends: list[Progress] = []
    tuned = finetune(
        teacher, student, shown, quick(steps=100, lr=0.3), rng=rng(), on_progress=ends.append
    )
    assert accuracy(predict(tuned, teacher.input_spec, x), y) >= 0.98
    assert ends[-1].record["chosen_at_step"] == 0
    (record,) = [r for r in caplog.records if r.name.startswith("dreamstill")]
    assert record.getMessage().startswith("none of the 100 steps improved on the start")


def test_a_random_student_is_not_judged_at_its_start() -> None:
    ends: list[Progress] = []
    teacher, student = toys.quadrant_teacher(), toys.student()
    finetune(
        teacher,
        student,
        images(40, (1, 8, 8)),
        quick(lr=1.0),
        rng=rng(),
        pretrained=False,
        on_progress=ends.append,
    )
    assert ends[-1].record["chosen_at_step"] == 5


def test_fine_tuning_writes_no_image_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    monkeypatch.chdir(tmp_path)
    student = copy.deepcopy(toys.quadrant_teacher().module).requires_grad_(True)
    finetune(toys.quadrant_teacher(), student, images(40, (1, 8, 8)), quick(), rng=rng())
    assert not list(tmp_path.iterdir())


def test_images_in_memory_are_replayed_as_a_pool_of_them_is(tmp_path: Path) -> None:
    pictures = images(40, (1, 8, 8))
    buffer, memory = ReplayBuffer(tmp_path, toys.SPEC, 50), ReplayBuffer(None, toys.SPEC, 50)
    for part in (pictures[:30], pictures[30:]):
        for store in (buffer, memory):
            store.add(Batch(toys.SPEC.encode(part), torch.empty(0)))
    assert memory.added == buffer.added == 40
    assert torch.equal(memory.images(35), buffer.images(35))
    assert torch.equal(memory.sample(16, rng()), buffer.sample(16, rng()))
    plain = quick(augment=NO_AUGMENTATION)
    shown, _ = next(replay(pictures, toys.SPEC, plain, rng()))
    assert torch.equal(shown, buffer.sample(16, rng()))


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_batch_norm_keeps_its_statistics(freeze: bool) -> None:
    student = toys.small_cnn()
    assert student.norm.running_mean is not None
    before = student.norm.running_mean.clone()
    config = quick(freeze_batch_norm=freeze)
    finetune(toys.cnn_teacher(), student, images(40, (1, 8, 8)), config, rng=rng())
    assert torch.equal(before, student.norm.running_mean) == freeze


@pytest.mark.parametrize("importance", Importance)
@pytest.mark.parametrize("target", [Target.MACS, Target.PARAMETERS])
def test_pruning_meets_its_target(importance: Importance, target: Target) -> None:
    teacher = Teacher(lenet(batch_norm=True), SPEC)
    config = PruneConfig(keep=0.5, target=target, importance=importance, rounds=2, finetune=quick())
    fingerprint = teacher.fingerprint
    pruned, records = prune(teacher, images(64), config, rng=rng())
    whole = {
        Target.MACS: 416_520,
        Target.PARAMETERS: sum(p.numel() for p in teacher.module.parameters()),
    }
    assert 0.3 < getattr(records[-1], target.value) / whole[target] <= 0.5
    assert len(records) == 2
    assert pruned(shown()).shape == (16, 10)
    assert teacher.fingerprint == fingerprint


@pytest.mark.parametrize("importance", Importance)
def test_padded_shortcuts_keep_their_channels(importance: Importance) -> None:
    with seeded(rng()):
        model = resnet20()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
    teacher = Teacher(model, InputSpec(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3))
    config = PruneConfig(keep=0.6, importance=importance, rounds=1, finetune=None)
    pruned, records = prune(teacher, images(32, (3, 16, 16)), config, rng=rng())
    assert records[-1].macs <= 0.6 * count_macs(model, teacher.input_spec)
    assert pruned(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert weight(pruned, "conv1").shape == (16, 3, 3, 3)
    assert len(weight(pruned, "layer2.1.conv1")) < 32


class PadsAtRunTime(nn.Module):
    """A shortcut whose padding is not known before it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.inner, self.out = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = torch.relu(self.wide(x))
        x = y + nn.functional.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        x = x + self.out(torch.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_channels_padded_by_a_number_of_run_time_are_kept() -> None:
    with seeded(rng()):
        model = PadsAtRunTime()
    teacher = Teacher(model, InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3))
    config = PruneConfig(keep=0.8, rounds=1, finetune=None)
    pruned, _ = prune(teacher, images(32, (3, 8, 8)), config, rng=rng())
    assert weight(pruned, "first").shape == (8, 3, 3, 3)
    assert len(weight(pruned, "inner")) < 16
    assert pruned(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("rounds", [1, 2])
def test_pruning_says_which_of_the_teachers_channels_are_left(
    rounds: int, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher(lenet(batch_norm=True), SPEC)
    for layer in teacher.module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            assert layer.bias is not None
            with torch.no_grad():
                layer.bias.copy_(torch.arange(len(layer.bias)))
    seen = []

    def finetune(
        teacher: Teacher, model: nn.Module, *args: Any, inherited: dict[str, Tensor], **more: Any
    ) -> nn.Module:
        for name, channels in inherited.items():
            assert torch.equal(model.get_parameter(f"{name}.bias"), channels.float()), name
        seen.append(inherited)
        return model

    monkeypatch.setattr("dreamstill.compression.prune.finetune", finetune)
    config = PruneConfig(keep=0.5, rounds=rounds, reconstruct=0, finetune=quick())
    prune(teacher, images(8), config, rng=rng(), model=teacher.module if given else None)
    assert len(seen) == rounds
    assert "features.1" in seen[-1], "a BatchNorm's channels are followed too"
    assert any(len(channels) < 6 for channels in seen[-1].values())


def test_a_channel_costs_the_same_time_however_many_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "torch_pruning.importance.GroupMagnitudeImportance",
        lambda: lambda group: torch.ones(len(group[0][1])),
    )
    layer = nn.Conv2d(1, 8, 3)
    importance = importance_of(PruneConfig(latency=0.5), {layer: 8.0})
    for width in (8, 4):  # a second a channel, which is the mean: half of the score goes
        dependency = SimpleNamespace(target=SimpleNamespace(module=layer))
        scores = importance([(dependency, range(width))])
        torch.testing.assert_close(scores, torch.full((width,), 0.5))


def test_channels_of_a_slow_layer_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(lenet(), SPEC)
    left = []
    for slow in ("features.0", "features.6"):

        def seconds(model: nn.Module, image: Tensor, slow: str = slow) -> Any:
            layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
            return {layer: 1.0 if name == slow else 1e-3 for name, layer in layers.items()}

        monkeypatch.setattr("dreamstill.compression.prune.layer_seconds", seconds)
        config = PruneConfig(
            keep=0.8, latency=1.0, importance=Importance.MAGNITUDE, rounds=1, finetune=quick()
        )
        pruned, _ = prune(teacher, images(64), config, rng=rng())
        left.append([len(weight(pruned, name)) for name in ("features.0", "features.6")])
    assert left[0] != left[1]
    assert left[0][0] <= left[1][0]
    assert left[0][1] >= left[1][1]


def test_taylor_removes_the_channel_that_does_nothing() -> None:
    model = lenet()
    with torch.no_grad():
        weight(model, "features.3")[:, 2] = 0
    teacher = Teacher(model, SPEC)
    config = PruneConfig(
        keep=0.95, rounds=1, importance=Importance.TAYLOR, reconstruct=0, finetune=None
    )
    pruned, _ = prune(teacher, images(64), config, rng=rng())
    kept, whole = weight(pruned, "features.0"), weight(model, "features.0")
    same = (kept[:, None] == whole).flatten(2).all(2)  # not fine-tuned: the weights as they were
    assert same.any(1).all()
    assert not same[:, 2].any()


def test_batch_norm_removes_the_channel_of_the_least_scale() -> None:
    """Whatever its weights are: by magnitude the same channel stays."""
    model = lenet(batch_norm=True)
    with torch.no_grad():
        weight(model, "features.0")[2] *= 100
        weight(model, "features.1")[2] = 1e-3
    teacher = Teacher(model, SPEC)
    gone = {}
    for importance in (Importance.BATCH_NORM, Importance.MAGNITUDE):
        config = PruneConfig(
            keep=0.95, rounds=1, importance=importance, reconstruct=0, finetune=None
        )
        pruned, _ = prune(teacher, images(16), config, rng=rng())
        gone[importance] = not torch.isclose(weight(pruned, "features.1"), torch.tensor(1e-3)).any()
    assert gone == {Importance.BATCH_NORM: True, Importance.MAGNITUDE: False}


def test_lamp_keeps_the_share_and_never_a_whole_layer_less() -> None:
    weights = {"big": torch.arange(1.0, 101).view(10, 10), "small": torch.full((4,), 1e-3)}
    masks = lamp_masks(weights, 0.25)
    assert sum(int(mask.sum()) for mask in masks.values()) == 26
    assert masks["small"].any()
    assert masks["big"].view(-1).nonzero().min() >= 75


def test_a_codebook_finds_the_clusters() -> None:
    values = torch.tensor([-1.0, -1.1, -0.9, 2.0, 2.2, 5.0])
    centroids, index = codebook_of(values, 3)
    torch.testing.assert_close(centroids, torch.tensor([-1.0, 2.1, 5.0]))
    assert index.tolist() == [0, 0, 0, 1, 1, 2]


def test_gaps_survive_runs_longer_than_a_byte() -> None:
    codes = np.zeros(2000, dtype=np.int64)
    codes[[0, 3, 700, 1999]] = [5, 1, 2, 3]
    symbols, gaps = gaps_of(codes)
    assert max(gaps) == 255
    assert (from_gaps(symbols, gaps, 2000) == codes).all()


def packed(teacher: Teacher, **changes: Any) -> nn.Module:
    config: dict[str, Any] = {"keep": 0.1, "rounds": 2, "finetune": quick()}
    return pack(teacher, images(64), PackConfig(**(config | changes)), rng=rng())


def test_a_packed_file_decodes_exactly_and_counts_all_of_it(tmp_path: Path) -> None:
    teacher = Teacher(lenet(batch_norm=True), SPEC)
    model, path = packed(teacher), tmp_path / "net.packed"
    size = save_packed(model, path, card={"factory": "dreamstill.nn.lenet:lenet5_bn"})
    assert size == path.stat().st_size
    state, card = load_packed(path)
    plain = lenet5_bn()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain.eval()(shown()), model(shown()))
    assert card == {"factory": "dreamstill.nn.lenet:lenet5_bn"}
    weights = [v for k, v in state.items() if v.ndim in (2, 4)]
    kept = sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert kept <= 0.105
    assert max(len(w.unique()) for w in weights) <= 2**5
    assert size < sum(v.numel() * 4 for v in state.values()) / 15


def test_packed_numbers_keep_their_dtype(tmp_path: Path) -> None:
    model, path = packed(Teacher(lenet(batch_norm=True), SPEC)), tmp_path / "net.packed"
    buffers = {
        "steps": torch.tensor([2**24 + 1, -(2**62) - 1]),
        "places": torch.arange(6, dtype=torch.int32).view(2, 3).T,
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "doubles": torch.tensor([1 / 3], dtype=torch.float64),
        "halves": torch.tensor([1 / 3], dtype=torch.bfloat16),
        "waves": torch.tensor([1 + 2j]),
        "none": torch.zeros(0, 3, dtype=torch.int64),
    }
    for name, value in buffers.items():
        model.register_buffer(name, value)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.num_batches_tracked is not None
            part.num_batches_tracked.fill_(2**24 + 1)
    save_packed(model, path)
    state, _ = load_packed(path)
    assert state["features.1.num_batches_tracked"].equal(torch.tensor(2**24 + 1))
    for name, value in buffers.items():
        assert state[name].dtype == value.dtype
        assert state[name].equal(value)


def test_weights_of_another_dtype_are_packed_as_they_are(tmp_path: Path) -> None:
    model = packed(Teacher(lenet(), SPEC)).to(torch.bfloat16)
    save_packed(model, tmp_path / "net.packed")
    state, _ = load_packed(tmp_path / "net.packed")
    assert {value.dtype for value in state.values()} == {torch.bfloat16}


def test_files_whose_numbers_all_are_float32_are_read(tmp_path: Path) -> None:
    """Linear(4, 2) and BatchNorm1d(2), written by the first release."""
    path = tmp_path / "old.packed"
    path.write_bytes(
        base64.b64decode(
            "RFNQQUNLMQq6AAAANAAAAHjanZHNCsJADITfZc5B6Coe9lXKUmK7tos2lu1WkbLvbvTgH4LoLUzmy4RkRs2xgZ0R"
            "ZJgSbFmQIeMyYew4em2VM4R7D4ticfKh7RJuzUGl0tDKEbykGPwIawgy9bBLQn1orkqpAwtHaiycOlse3sWs8rDn"
            "IK9Rm8Djc5C6mnS+1tjuD5yWBpnufvNhtW/ErwlxEgnSVr1n+Yc7cvwF00NWG05158cqRa53+owH/kQHSesVsssX"
            "F52QlwAAgL8AAAA/AACAPgAAgL4AAIA/AACAPwAAAAAAAAAAAAAAAAAAAAAAAIA/AACAPwAA4ECk"
        )
    )
    state, card = load_packed(path)
    assert card == {"input": [1, 2, 2]}
    assert state["1.weight"].tolist() == [[0, 0.5, 0, -1], [0, 0, 0.5, 0]]
    assert state["1.bias"].tolist() == [0.25, -0.25]
    assert state["2.num_batches_tracked"].equal(torch.tensor(7))


def test_files_that_are_not_packed_networks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "net.packed"
    path.write_bytes(b"else")
    with pytest.raises(ExportError, match="not a packed network"):
        load_packed(path)
    save_packed(packed(Teacher(lenet(), SPEC)), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ExportError, match="not a whole packed network"):
        load_packed(path)


def test_a_network_without_layers_is_not_taken_for_a_smaller_one() -> None:
    """Packing failed in the depths of a library, DFQ gave the network back as it was."""
    bare = nn.Sequential(nn.AvgPool2d(4), nn.ReLU(), nn.Flatten())
    teacher = Teacher(bare, toys.SPEC)
    with pytest.raises(TeacherError, match="that can be packed"):
        pack(teacher, images(8, (1, 8, 8)), PackConfig(), rng=rng())
    with pytest.raises(TeacherError, match="that can be quantized"):
        quantize_without_inputs(teacher, QuantizeConfig())
