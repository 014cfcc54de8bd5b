"""Losses against numbers worked out by hand, and their gradients against finite differences."""

import math

import pytest
import torch

from dreamstill.losses.diversity import information_entropy
from dreamstill.losses.features import activation
from dreamstill.losses.logits import kl_divergence, l1, soft_cross_entropy
from dreamstill.losses.priors import l2_norm, total_variation
from dreamstill.losses.statistics import batch_statistics, batch_statistics_distance


def test_kl_is_the_sum_over_classes_and_the_mean_over_the_batch() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL = 1/2 log 2 + 1/2 log(2/3)
    teacher = torch.zeros(3, 2)
    student = torch.log(torch.tensor([[0.25, 0.75]])).repeat(3, 1)
    wanted = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert kl_divergence(student, teacher).item() == pytest.approx(wanted, rel=1e-5)


def test_kl_at_a_temperature_is_scaled_by_its_square() -> None:
    teacher, student = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = 1 / (1 + math.exp(-1))
    plain = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert kl_divergence(student, teacher, 4.0).item() == pytest.approx(16 * plain, rel=1e-5)


def test_kl_is_forward() -> None:
    # where the teacher is sure and the student is not, forward KL is finite: log 2
    teacher, student = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert kl_divergence(student, teacher).item() == pytest.approx(math.log(2))


def test_l1_is_the_mean_over_all_logits() -> None:
    assert l1(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])).item() == 2.0


def test_soft_cross_entropy_of_uniform_targets_and_logits_is_log_k() -> None:
    targets = torch.full((2, 5), 0.2)
    assert soft_cross_entropy(torch.zeros(2, 5), targets, 20.0).item() == pytest.approx(math.log(5))


def test_information_entropy_spans_minus_one_to_zero_for_ten_classes() -> None:
    even = 1000 * torch.eye(10)
    assert information_entropy(even).item() == pytest.approx(-1.0)
    assert information_entropy(even[:1].repeat(4, 1)).item() == pytest.approx(0.0)


def test_activation_rewards_magnitude_of_either_sign() -> None:
    assert activation(torch.tensor([[1.0, -3.0]])).item() == -2.0


def test_total_variation_of_a_step_edge() -> None:
    # 2x2 image (0 1 / 0 1): horizontal sqrt(2), vertical 0, both diagonals 1
    image = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert total_variation(image).item() == pytest.approx(math.sqrt(2) + 2)


def test_l2_norm_is_per_image() -> None:
    images = torch.stack([torch.full((1, 2, 2), 1.0), torch.full((1, 2, 2), 3.0)])
    assert l2_norm(images).item() == pytest.approx((2 + 6) / 2)


def test_batch_statistics_are_what_batch_norm_tracks() -> None:
    layer = torch.nn.BatchNorm2d(3, momentum=1.0)
    inputs = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    layer(inputs)
    mean, variance = batch_statistics(inputs)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    torch.testing.assert_close(mean, layer.running_mean)
    torch.testing.assert_close(variance * 100 / 99, layer.running_var)


def test_batch_statistics_distance_is_a_sum_of_two_norms() -> None:
    inputs = torch.tensor([[[[1.0]], [[2.0]]], [[[3.0]], [[2.0]]]])  # means 2, 2; variances 1, 0
    mean, variance = torch.tensor([2.0, 5.0]), torch.tensor([5.0, 3.0])
    assert batch_statistics_distance(inputs, mean, variance).item() == pytest.approx(3 + 5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: kl_divergence(x, torch.linspace(-1, 1, 12).double().view(3, 4), 3.0),
        lambda x: l1(x, torch.linspace(-3, 3, 12).double().view(3, 4)),
        information_entropy,
        activation,
        lambda x: soft_cross_entropy(x, torch.full((3, 4), 0.25), 20.0),
        lambda x: total_variation(x.view(1, 1, 3, 4)),
        lambda x: l2_norm(x.view(3, 1, 2, 2)),
        lambda x: batch_statistics_distance(x.view(3, 2, 2), torch.ones(2), torch.ones(2)),
    ],
)
def test_gradients_match_finite_differences(loss) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, x.requires_grad_())
