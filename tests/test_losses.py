"""Losses against numbers worked out by hand, and their gradients against finite differences."""

import math

import pytest
import torch

from dreamstill.losses import features
from dreamstill.losses.diversity import information_entropy, sample_diversity
from dreamstill.losses.features import activation
from dreamstill.losses.logits import (
    js_divergence,
    kl_divergence,
    l1,
    mse,
    reverse_kl,
    soft_cross_entropy,
)
from dreamstill.losses.priors import gaussian_smoothness, l2_norm, smoothness, total_variation
from dreamstill.losses.statistics import batch_statistics, gaussian_kl, statistics_distance


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


def test_attention_is_the_same_for_maps_of_the_other_sign() -> None:
    student = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(1))
    assert features.attention(student, teacher) > 0
    assert features.attention(student, teacher) == features.attention(-student, teacher)
    assert features.attention(student, teacher) == features.attention(student, -teacher)
    # of squares 1 and 4 in the one map and equal ones in the other
    ours, wanted = torch.tensor([[[[-1.0, 2.0]]]]), torch.tensor([[[[3.0, -3.0]]]])
    first, other = torch.tensor([1.0, 4.0]) / 17**0.5, torch.tensor([1.0, 1.0]) / 2**0.5
    expected = (first - other).pow(2).mean().item()
    assert features.attention(ours, wanted).item() == pytest.approx(expected)


def test_mimic_is_its_papers_loss_over_the_number_of_features() -> None:
    student = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    paper = (student - teacher).flatten(1).pow(2).sum(1).mean() / 2
    assert 75 * features.mimic(student, teacher).item() == pytest.approx(paper.item())


def test_l1_is_the_mean_over_all_logits() -> None:
    assert l1(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])).item() == 2.0


def test_soft_cross_entropy_of_uniform_targets_and_logits_is_log_k() -> None:
    targets = torch.full((2, 5), 0.2)
    assert soft_cross_entropy(torch.zeros(2, 5), targets, 20.0).item() == pytest.approx(math.log(5))


def test_information_entropy_of_a_class_that_nobody_is_has_a_gradient() -> None:
    logits = torch.tensor([[200.0, 0.0], [200.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(information_entropy(logits), logits)
    assert gradient.isfinite().all()


def test_information_entropy_spans_minus_log_k_to_zero() -> None:
    even = 1000 * torch.eye(10)
    assert information_entropy(even).item() == pytest.approx(-math.log(10))
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


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(64, 5, 7, 6), (64, 5, 9), (64, 5), (1, 5)])
def test_batch_statistics_of_bfloat16_are_of_its_values(
    shape: tuple[int, ...], channels_last: bool
) -> None:
    """Float32 moments, and in bfloat16 the gradient that float64 has, whatever the layout."""
    inputs = (3 + torch.randn(shape, generator=torch.Generator().manual_seed(0))).bfloat16()
    if channels_last and inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    exact = inputs.double().requires_grad_()
    flat = exact.transpose(0, 1).flatten(1)
    wanted = (flat.mean(1), flat.var(1, correction=0))
    found = batch_statistics(inputs.requires_grad_())
    weights = torch.arange(1.0, 6.0)
    for moments in (wanted, found):
        (weights * moments[0] - 2 * weights * moments[1]).sum().backward()
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)
    assert inputs.grad is not None
    assert exact.grad is not None
    scale = exact.grad.abs().max().item()
    torch.testing.assert_close(inputs.grad.double(), exact.grad, rtol=0.02, atol=0.02 * scale)


def test_statistics_distance_is_a_sum_of_two_norms() -> None:
    inputs = torch.tensor([[[[1.0]], [[2.0]]], [[[3.0]], [[2.0]]]])  # means 2, 2; variances 1, 0
    mean, variance = torch.tensor([2.0, 5.0]), torch.tensor([5.0, 3.0])
    distance = statistics_distance(mean, variance, *batch_statistics(inputs))
    assert distance.item() == pytest.approx(3 + 5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: kl_divergence(x, torch.linspace(-1, 1, 12).double().view(3, 4), 3.0),
        lambda x: l1(x, torch.linspace(-3, 3, 12).double().view(3, 4)),
        information_entropy,
        activation,
        lambda x: soft_cross_entropy(x, torch.full((3, 4), 0.25), 20.0),
        lambda x: total_variation(x.view(1, 1, 3, 4)),
        lambda x: reverse_kl(x, torch.linspace(-1, 1, 12).double().view(3, 4), 3.0),
        lambda x: js_divergence(x, torch.linspace(-1, 1, 12).double().view(3, 4), 3.0),
        lambda x: mse(x, torch.linspace(-1, 1, 12).double().view(3, 4)),
        lambda x: smoothness(x.view(1, 1, 3, 4)),
        lambda x: gaussian_smoothness(x.view(1, 1, 3, 4)),
        lambda x: sample_diversity(x.repeat(2, 1)[:4].view(4, 1, 2, 2), torch.eye(4).double()),
        lambda x: features.attention(x.view(3, 1, 2, 2), torch.ones(3, 1, 2, 2).double()),
        lambda x: features.activation_boundary(x, torch.linspace(-1, 1, 12).view(3, 4)),
        lambda x: features.relational_distance(x, torch.eye(3).double()),
        lambda x: features.relational_angle(x, torch.eye(3).double()),
        lambda x: features.similarity_preserving(x, torch.eye(3).double()),
        lambda x: gaussian_kl(torch.zeros(2), torch.ones(2), *batch_statistics(x.view(3, 2, 2))),
        lambda x: l2_norm(x.view(3, 1, 2, 2)),
        lambda x: statistics_distance(
            torch.ones(2), torch.ones(2), *batch_statistics(x.view(3, 2, 2))
        ),
    ],
)
def test_gradients_match_finite_differences(loss) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, x.requires_grad_())


def test_divergences_of_two_classes_by_hand() -> None:
    teacher = torch.tensor([[0.5, 0.5]]).log()
    student = torch.tensor([[0.9, 0.1]]).log()
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    backward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    half = [
        0.5 * sum(p * math.log(p / m) for p, m in zip(side, (0.7, 0.3), strict=True))
        for side in ((0.5, 0.5), (0.9, 0.1))
    ]
    assert kl_divergence(student, teacher).item() == pytest.approx(forward, rel=1e-5)
    assert reverse_kl(student, teacher).item() == pytest.approx(backward, rel=1e-5)
    assert js_divergence(student, teacher).item() == pytest.approx(sum(half), rel=1e-5)
    assert mse(student, teacher).item() == pytest.approx(
        (math.log(0.9 / 0.5) ** 2 + math.log(0.1 / 0.5) ** 2) / 2, rel=1e-5
    )


def test_js_of_answers_that_share_nothing_is_ln_2_with_finite_gradients() -> None:
    student = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = js_divergence(student, torch.tensor([[0.0, 200.0]]))
    assert loss.item() == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(gradient).all()


def test_attention_sees_where_and_not_how_much_or_in_how_many_channels() -> None:
    maps = torch.zeros(1, 1, 2, 2)
    maps[..., 0, 0] = 1.0
    elsewhere = maps.flip(2)
    assert features.attention(7 * maps.expand(1, 3, 2, 2), maps).item() == pytest.approx(0)
    assert features.attention(maps, elsewhere).item() == pytest.approx(2 / 4)


def test_activation_boundary_is_a_squared_hinge_on_the_teachers_side() -> None:
    teacher = torch.tensor([[-1.0, -1.0, 2.0, 2.0]])
    student = torch.tensor([[-2.0, 0.5, 3.0, 0.5]])  # far enough, wrong, far enough, too near
    wanted = (0.5 + 1) ** 2 + (0.5 - 1) ** 2
    assert features.activation_boundary(student, teacher).item() == pytest.approx(wanted)


def test_relations_do_not_see_scale_or_rotation() -> None:
    points = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    turned = 3 * points @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    stretched = points * torch.tensor([1.0, 5.0])
    for loss in (features.relational_distance, features.relational_angle):
        assert loss(turned, points).item() == pytest.approx(0, abs=1e-6)
        assert loss(stretched, points).item() > 0.01


def test_relational_angle_is_the_cosine_of_each_triple() -> None:
    corner = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])  # a right angle at the second
    line = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])  # a straight one
    # at the second the cosine is 0 and -1, at the first and third root 1/2 and 1: two of each
    wanted = (2 * 0.5 * 1.0 + 4 * 0.5 * (1 - 0.5**0.5) ** 2) / 27
    assert features.relational_angle(line, corner).item() == pytest.approx(wanted, rel=1e-4)


def test_similarity_preserving_by_hand() -> None:
    same, apart = torch.ones(2, 3), torch.eye(2)
    # rows of the normalized Gram matrices: (.7071, .7071) against (1, 0) and (0, 1)
    wanted = (2 * (1 - 0.5**0.5) ** 2 + 2 * 0.5) / 4
    assert features.similarity_preserving(same, apart).item() == pytest.approx(wanted, rel=1e-4)


def test_sample_diversity_asks_for_images_as_different_as_the_answers() -> None:
    images = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    assert sample_diversity(images, torch.eye(2)).item() == pytest.approx(2**0.5 / 2)


def test_smoothness_of_a_flat_image_is_zero_and_of_a_point_is_not() -> None:
    assert smoothness(torch.full((1, 1, 5, 5), 3.0)).item() == pytest.approx(0, abs=1e-10)
    point = torch.zeros(1, 1, 5, 5)
    point[..., 2, 2] = 1.0
    assert smoothness(point).item() == pytest.approx(((8 / 9) ** 2 + 8 / 81) / 25, rel=1e-4)


def test_gaussian_smoothness_of_a_point_is_what_the_bell_leaves_of_it() -> None:
    flat = torch.full((1, 2, 5, 5), 3.0)
    assert gaussian_smoothness(flat).item() == pytest.approx(0, abs=1e-10)
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1.0
    bell = [
        math.exp(-(d**2) / 4) / sum(math.exp(-(e**2) / 4) for e in range(-2, 3))
        for d in range(-2, 3)
    ]
    blurred = [(a * b) ** 2 for a in bell for b in bell]
    center = bell[2] ** 2
    wanted = sum(blurred) - center**2 + (1 - center) ** 2
    assert gaussian_smoothness(point).item() == pytest.approx(wanted / 81, rel=1e-4)
