"""The weights of drawn images: their moments, their optimum, and the images that they choose."""

import pytest
import torch
from torch import nn

import toys
from dreamstill.input_spec import InputSpec
from dreamstill.synthesis.image_weights import answers_and_moments, fit_slopes, log_weights
from dreamstill.synthesis.methods.image_programs import ImagePrograms, ImageProgramsConfig
from dreamstill.synthesis.programs.registry import PROGRAMS
from dreamstill.teacher import Teacher

SPEC = InputSpec((1, 2, 2), mean=(0.0,), std=(1.0,))


class Normed(nn.Module):
    """BatchNorm of one channel with mean 3 and variance 4, then one class for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, eps=0.0)
        self.norm.running_mean, self.norm.running_var = torch.tensor([3.0]), torch.tensor([4.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = self.norm(x).mean((1, 2, 3))
        return torch.stack([-bright, bright], 1)


def normed() -> Teacher:
    return Teacher(Normed(), SPEC)


def weights_of(teacher: Teacher, moments: torch.Tensor) -> torch.Tensor:
    return log_weights(moments, fit_slopes(teacher, moments)).softmax(0)


def test_moments_are_of_the_standardized_input_of_each_channel() -> None:
    image = torch.tensor([[[[1.0, 5.0], [3.0, 7.0]]]])  # standardized: -1, 1, 0, 2
    logits, moments = answers_and_moments(normed(), image)
    torch.testing.assert_close(logits, torch.tensor([[-0.5, 0.5]]))
    chance = torch.tensor(1.0).sigmoid().item()
    torch.testing.assert_close(moments, torch.tensor([[1 - chance, chance, 0.5, 1.5]]))


def test_weights_make_the_classes_even() -> None:
    teacher = toys.quadrant_teacher()  # has no BatchNorm
    classes = torch.eye(4)[[0] * 90 + [1] * 4 + [2] * 3 + [3] * 3]
    weights = weights_of(teacher, classes)
    shares = weights @ classes
    assert shares.min() > 0.15
    # against the variety: the classes are not quite even
    assert shares.argmax() == 0
    assert torch.isclose(weights[0], weights[89])


def test_weights_bring_the_statistics_to_the_running_ones() -> None:
    rng = torch.Generator().manual_seed(0)
    images = (
        3 + 8 * torch.rand(400, 1, 1, 1, generator=rng) + torch.randn(400, 1, 2, 2, generator=rng)
    )
    _, moments = answers_and_moments(normed(), images)
    before, after = moments.mean(0), weights_of(normed(), moments) @ moments
    for index, wanted in ((2, 0.0), (3, 1.0)):
        assert (after[index] - wanted).abs() < 0.5 * (before[index] - wanted).abs()


def test_slopes_are_those_of_the_best_weights() -> None:
    """At the optimum, the loss falls for no small change of the weights."""
    teacher, rng = toys.cnn_teacher(), torch.Generator().manual_seed(1)
    moments = answers_and_moments(teacher, torch.randn(60, 1, 8, 8, generator=rng))[1]
    slopes = fit_slopes(teacher, moments)
    again = fit_slopes(teacher, moments[torch.randperm(60, generator=rng)])
    torch.testing.assert_close(slopes, again, rtol=0.02, atol=0.02)


def test_a_teacher_is_drawn_what_it_knows() -> None:
    """The classes are evener with the weights, and programs that fit are drawn more often."""
    entropy = {}
    teacher = toys.quadrant_teacher()
    teacher.module.head.bias[3] = 2  # type: ignore[operator, union-attr]  # most images
    for fit in (True, False):
        method = ImagePrograms(
            teacher,
            ImageProgramsConfig(batch_size=64, fit=fit),
            rng=torch.Generator().manual_seed(0),
        )
        share = method.draw(512).logits.softmax(1).mean(0)
        entropy[fit] = -(share * share.log()).sum()
        assert len(method.shares) == len(PROGRAMS)
        assert method.shares.sum() == pytest.approx(1, abs=1e-5)
        assert (method.shares.std() > 1e-4) == fit
        assert method.shares.min() > 0.4 / len(PROGRAMS)
    assert entropy[True] > entropy[False] + 0.05


def test_only_the_programs_asked_for_are_drawn() -> None:
    config = ImageProgramsConfig(batch_size=8, programs=("gradients", "strokes"), fit=False)
    method = ImagePrograms(toys.quadrant_teacher(), config, rng=torch.Generator().manual_seed(0))
    assert list(method.programs) == ["gradients", "strokes"]
    assert method.next_batch().images.shape == (8, 1, 8, 8)
