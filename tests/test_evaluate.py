"""Measures against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

import toys
from dreamstill.evaluation import (
    accuracy,
    agreement,
    confusion_matrix,
    expected_calibration_error,
    predict,
    warn_of_guesses,
)
from dreamstill.input_spec import InputSpec
from dreamstill.nn.lenet import lenet5, lenet5_half
from dreamstill.profiling import measure_profile

LOGITS = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
LABELS = torch.tensor([0, 1, 1, 1])


def test_accuracy_agreement_and_confusion() -> None:
    assert accuracy(LOGITS, LABELS) == 0.75
    assert agreement(LOGITS, LOGITS.flip(0)) == 0.0
    assert confusion_matrix(LOGITS, LABELS, 2).tolist() == [[1, 0], [1, 2]]


def test_calibration_error_is_the_weighted_gap_of_bins() -> None:
    # two answers at confidence s(2), half right; two at s(1), both right; different bins of 15
    sure, less = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    wanted = 0.5 * (sure - 0.5) + 0.5 * (1 - less)
    assert expected_calibration_error(LOGITS, LABELS) == pytest.approx(wanted, rel=1e-5)


def test_a_teacher_that_guesses_is_warned_of() -> None:
    labels = torch.arange(100) % 4
    right = 2 * torch.eye(4)[labels]
    assert warn_of_guesses(right, labels) == []
    assert warn_of_guesses(right.roll(1, 1), labels)  # classes in another order
    (text,) = warn_of_guesses(torch.eye(4)[torch.zeros(100, dtype=torch.long)], labels)
    assert text.startswith(
        "the teacher is right on 25.00 % of the 100 real images, no more often than"
    )
    assert warn_of_guesses(right[labels == 1], labels[labels == 1]) == []  # of one class alone
    assert warn_of_guesses(right, labels + 4) == []  # of classes that it never learned


def test_cost_of_lenet() -> None:
    spec = InputSpec(shape=(1, 28, 28), mean=(0.13,), std=(0.31,))
    cost, half = (measure_profile(m, spec) for m in (lenet5(), lenet5_half()))
    assert (cost.parameters, cost.macs, cost.bytes) == (61_706, 416_520, 246_824)
    assert half.parameters == 15_738
    assert 0 < cost.latency_ms.low <= cost.latency_ms.median <= cost.latency_ms.high


def test_prediction_restores_modes_also_after_an_exception() -> None:
    model = toys.small_cnn()
    model.norm.eval()
    predict(model, toys.SPEC, torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert model.training
    assert not model.norm.training
    with pytest.raises(RuntimeError):
        predict(model, toys.SPEC, torch.zeros(3, 2, 8, 8, dtype=torch.uint8))
    assert model.training
    assert not model.norm.training


def test_prediction_does_not_depend_on_the_batch_size() -> None:
    model = toys.small_cnn()
    images = torch.randint(0, 256, (701, 1, 8, 8)).to(torch.uint8)
    parts = torch.cat([predict(model, toys.SPEC, part) for part in images.split(2)])
    torch.testing.assert_close(parts, predict(model, toys.SPEC, images))


def test_attention_and_recurrent_layers_are_counted() -> None:
    class Sequence(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.layer(x.flatten(1, 2))
            return (out if isinstance(out, torch.Tensor) else out[0])[:, 0]

    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    linear = 8 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 16)  # in, out and the two of the feed-forward part
    products = 2 * 8 * 8 * 8  # of queries with keys, and of their weights with values
    assert measure_profile(Sequence(layer), toys.SPEC).macs == linear + products
    recurrent = nn.LSTM(8, 6, batch_first=True)
    assert measure_profile(Sequence(recurrent), toys.SPEC).macs == 8 * 4 * 6 * (8 + 6)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_network_without_parameters_is_measured() -> None:
    cost = measure_profile(nn.Flatten(), toys.SPEC)
    assert (cost.parameters, cost.macs) == (0, 0)
