"""Class balance against answers worked out by hand."""

from dataclasses import replace

import torch

import toys
from dreamstill.data.batch import Batch
from dreamstill.output_spec import OutputSpec
from dreamstill.synthesis.balanced_draws import hardest_first
from dreamstill.synthesis.class_balance import ClassMemory
from dreamstill.synthesis.config import StructuredNoiseConfig
from dreamstill.synthesis.methods.structured_noise import StructuredNoise


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(classes: list[int], first: int = 0) -> Batch:
    """Images that hold their own number, of the given classes."""
    numbers = torch.arange(first, first + len(classes), dtype=torch.uint8)
    return Batch(numbers.view(-1, 1, 1, 1), torch.eye(3)[classes])


def test_memory_draws_only_what_it_saw_under_its_class() -> None:
    memory = ClassMemory(6, OutputSpec(3), (1, 1, 1), torch.device("cpu"))
    assert len(memory.draw(4, rng()).images) == 0
    memory.remember(batch([0, 2, 2]))
    drawn = memory.draw(20, rng())
    assert drawn.logits.argmax(1).tolist() == [0] * 20 + [2] * 20
    assert set(drawn.images.flatten()[:20].tolist()) == {0.0}
    assert set(drawn.images.flatten()[20:].tolist()) == {1.0, 2.0}


def test_memory_forgets_the_oldest_of_a_class() -> None:
    memory = ClassMemory(6, OutputSpec(3), (1, 1, 1), torch.device("cpu"))
    memory.remember(batch([1, 1]))
    memory.remember(batch([1], first=7))
    assert set(memory.draw(40, rng()).images.flatten().tolist()) == {1.0, 7.0}


def test_a_rare_class_is_filled_up_from_memory() -> None:
    teacher = toys.quadrant_teacher()
    # a bias that makes the last class rare: one image in some dozens
    teacher.module.head.bias[3] = -1.5  # type: ignore[operator, union-attr]
    config = StructuredNoiseConfig(batch_size=40, oversample=1)
    remembering = StructuredNoise(teacher, config, rng=rng())
    counts = torch.zeros(4)
    for step in range(12):
        classes = remembering.next_batch().logits.argmax(1)
        if step >= 6:
            counts += torch.bincount(classes, minlength=4)
    assert counts.tolist() == [60, 60, 60, 60]


def test_a_batch_shows_no_image_twice_while_there_are_others() -> None:
    teacher = toys.quadrant_teacher()
    teacher.module.head.bias[3] = -1.5  # type: ignore[operator, union-attr]
    config = StructuredNoiseConfig(batch_size=40, oversample=1)
    first = StructuredNoise(teacher, config, rng=rng()).next_batch()
    varied = first.images.flatten(1).std(1) > 0  # plain ones recur by chance
    assert len(first.images[varied].unique(dim=0)) == varied.sum() > 30


def test_the_hardest_come_first_and_the_students_mode_stays() -> None:
    student = toys.student().train()
    images = torch.randn(30, 1, 8, 8, generator=rng())
    with torch.no_grad():
        wrong = student.eval()(images)
        student.train()
        wrong[17] = wrong[17].flip(0) * 3 + 5 * torch.eye(4)[2]
        ordered = hardest_first(Batch(images, wrong), toys.cnn_teacher(), student)
    assert torch.equal(ordered.images[0], images[17])
    assert student.training


def test_mining_reads_the_live_student() -> None:
    config = StructuredNoiseConfig(batch_size=16, oversample=4, mine=True)
    batches = []
    for head in (1.0, -1.0):
        student = toys.small_cnn()
        with torch.no_grad():
            student.head.weight.mul_(head)
        synthesizer = StructuredNoise(toys.cnn_teacher(), config, rng=rng())
        batches.append(synthesizer.next_batch(student).images)
    assert not torch.equal(*batches)
    plain = replace(config, mine=False)
    synthesizers = [StructuredNoise(toys.cnn_teacher(), plain, rng=rng()) for _ in range(2)]
    unread = [s.next_batch(m).images for s, m in zip(synthesizers, (student, None), strict=True)]
    assert torch.equal(*unread)
