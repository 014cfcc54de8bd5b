"""The teacher's validation set: what the steps on its pixels do."""

import torch
import torch.nn.functional as F

import toys
from dreamstill.synthesis.batch_norm_statistics import batch_norm_divergence
from dreamstill.synthesis.validation_set import steered
from dreamstill.teacher import Teacher


def inputs() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return toys.SPEC.normalize(torch.rand(64, 1, 8, 8, generator=rng))


def test_steps_lead_to_the_statistics_and_to_certainty() -> None:
    teacher, before = toys.cnn_teacher(), inputs()
    after = steered(teacher, before)
    assert after.shape == before.shape
    assert not after.requires_grad
    pixels = toys.SPEC.denormalize(after)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    with torch.no_grad():
        (far, logits), (near, sure) = (batch_norm_divergence(teacher, x) for x in (before, after))
    classes = logits.argmax(1)
    assert near < far
    assert F.cross_entropy(sure, classes) < F.cross_entropy(logits, classes)


def test_a_teacher_without_batch_norm_is_steered_to_certainty() -> None:
    teacher, before = toys.quadrant_teacher(), inputs()
    classes = teacher(before).argmax(1)
    after = teacher(steered(teacher, before))
    assert F.cross_entropy(after, classes) < 0.8 * F.cross_entropy(teacher(before), classes)


def test_a_teacher_without_gradients_is_not_steered() -> None:
    class Rounding(toys.Quadrants):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).detach()

    teacher = Teacher(Rounding(), toys.SPEC)
    assert torch.equal(steered(teacher, inputs()), inputs())
