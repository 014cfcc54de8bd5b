"""The teacher's validation set: what the steps on its pixels do."""

import pytest
import torch
import torch.nn.functional as F

import toys
from dreamstill.synthesis import validation_set as validating
from dreamstill.synthesis.batch_norm_statistics import batch_norm_divergence
from dreamstill.synthesis.validation_set import steered, validation_set
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


def test_a_quarter_of_the_images_is_mixed_and_the_others_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mixed = validation_set(toys.quadrant_teacher(), 64)
    monkeypatch.setattr(validating, "MIXED", 65)  # none
    plain = validation_set(toys.quadrant_teacher(), 64)
    assert torch.equal(mixed.images[:48], plain.images[:48])
    assert not torch.equal(mixed.images[48:], plain.images[48:])

    def certainty(logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(1).amax(1).mean()

    assert certainty(mixed.logits[48:]) < certainty(plain.logits[48:]) - 0.05
    teacher = toys.quadrant_teacher()
    assert torch.equal(teacher(toys.SPEC.encode(mixed.images)), mixed.logits)


def test_images_are_mixed_pixel_by_pixel() -> None:
    images = torch.stack([torch.full((1, 2, 2), value, dtype=torch.uint8) for value in (0, 200)])
    made = validating._mixed(images, 100, torch.Generator().manual_seed(0)).float()
    assert (made.flatten(1).amax(1) == made.flatten(1).amin(1)).all()  # one share for an image
    assert 0 < made.mean() < 200
    assert made.unique().numel() > 10


@pytest.mark.parametrize("num", [2, 3, 5])
def test_small_sets_are_made(num: int) -> None:
    assert len(validation_set(toys.quadrant_teacher(), num).images) == num
