"""New classes beside old ones, and what each recipe keeps."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import toys
from dreamstill.continual.config import LearnClassesConfig, Recipe
from dreamstill.continual.learning import (
    _abd_loss,
    _class_weights,
    _feature_distillation,
    grow,
    learn,
)
from dreamstill.errors import DataError, TeacherError
from dreamstill.input_spec import InputSpec
from dreamstill.nn.seeded import seeded
from dreamstill.teacher import Teacher

SPEC = toys.SPEC


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def bars(classes: Tensor) -> Tensor:
    """uint8 images (N, 1, 8, 8): a bright row at the height of the class, in noise."""
    images = torch.randint(0, 80, (len(classes), 1, 8, 8), generator=rng())
    images[torch.arange(len(classes)), 0, classes] += 150
    return images.to(torch.uint8)


@pytest.fixture(scope="module")
def old() -> Teacher:
    """A network that knows the first three heights."""
    with seeded(rng()):
        model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    classes = torch.arange(300) % 3
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(SPEC.encode(bars(classes))), classes).backward()
        optimizer.step()
    return Teacher(model, SPEC)


def accuracy(network: Teacher, classes: Tensor) -> float:
    named = network(SPEC.encode(bars(classes))).argmax(1)
    return (named == classes).float().mean().item()


@pytest.mark.parametrize("recipe", Recipe)
def test_new_classes_are_learned_and_old_ones_kept_by_dreams(recipe: Recipe, old: Teacher) -> None:
    config = LearnClassesConfig(recipe=recipe, steps=150, batch_size=32, lr=5e-3)
    new = 3 + torch.arange(200) % 2
    before = old.fingerprint
    dreams = bars(torch.arange(300) % 3)
    network = learn(old, dreams, bars(new), new, config, rng=rng())
    assert network.num_classes == 5
    assert old.fingerprint == before
    assert accuracy(network, new) > 0.9
    kept = accuracy(network, torch.arange(300) % 3)
    if recipe in (Recipe.INVERSION, Recipe.ABD):
        assert kept > 0.9
    if recipe is Recipe.FINETUNE:
        assert kept < 0.6


def trained(old: Teacher, **config: object) -> Teacher:
    new = 3 + torch.arange(200) % 2
    given: dict[str, object] = {"steps": 100, "batch_size": 32, "lr": 5e-3}
    dreams = bars(torch.arange(300) % 3)
    made = LearnClassesConfig(**given | config)  # type: ignore[arg-type]
    return learn(old, dreams, bars(new), new, made, rng=rng())


def test_lwf_keeps_the_old_answers_on_new_images(old: Teacher) -> None:
    images = SPEC.encode(bars(3 + torch.arange(40) % 2))
    moved = {
        recipe: (trained(old, recipe=recipe)(images)[:, :3].softmax(1) - old(images).softmax(1))
        for recipe in (Recipe.LWF, Recipe.FINETUNE)
    }
    assert moved[Recipe.LWF].abs().mean() < 0.5 * moved[Recipe.FINETUNE].abs().mean()


def test_abd_keeps_features_where_the_old_head_looks(old: Teacher) -> None:
    images = SPEC.encode(bars(torch.arange(40) % 3))
    moved = []
    for keep in (0.0, 100.0):
        network = trained(old, old_weight=keep)
        change = network.with_features(images)[1] - old.with_features(images)[1]
        moved.append((change @ old.last_linear.weight.T).abs().mean().item())
    assert moved[1] < 0.2 * moved[0]


def abd_loss(teacher: Teacher, student: Teacher, images: Tensor, keep: float) -> Tensor:
    """Of five new images, of classes 3 and 4, then old ones."""
    return _abd_loss(student, teacher, images, 3 + torch.arange(5) % 2, keep)


def test_abd_keeps_features_by_the_mean_over_old_classes(old: Teacher) -> None:
    images = SPEC.encode(bars(torch.arange(12) % 5))
    student = trained(old, steps=20)
    change = student.with_features(images)[1] - old.with_features(images)[1]
    change = change @ old.last_linear.weight.T
    kept = abd_loss(old, student, images, 3.0) - abd_loss(old, student, images, 0.0)
    torch.testing.assert_close(kept, 3.0 * 0.1 * change.pow(2).mean())


def test_abd_keeps_features_alike_however_many_old_classes_there_are(old: Teacher) -> None:
    change, head = torch.randn(7, 32, generator=rng()), old.last_linear.weight
    kept = _feature_distillation(change, head)
    torch.testing.assert_close(_feature_distillation(change, head.repeat(4, 1)), kept)


@pytest.mark.parametrize("shown", [[0], [0, 1, 2], [1, 1, 1, 1, 2]])
def test_abd_weighs_old_and_new_classes_as_their_shares_whatever_is_drawn(
    old: Teacher, shown: list[int]
) -> None:
    torch.testing.assert_close(_class_weights(3, 5), torch.tensor([0.6, 0.6, 0.6, 0.4, 0.4]))
    student = Teacher(grow(old, 5, rng()), SPEC)
    dreams = bars(torch.tensor(shown))
    both = SPEC.encode(torch.cat([bars(3 + torch.arange(5) % 2), dreams]))
    new, logits = 3 + torch.arange(5) % 2, student(both)
    local = 0.4 * F.cross_entropy(logits[:5, 3:], new - 3)
    each = F.cross_entropy(logits, torch.cat([new, old(both[5:]).argmax(1)]), reduction="none")
    overall = (0.4 * each[:5].sum() + 0.6 * each[5:].sum()) / len(both)
    # features have not moved yet: nothing is to be kept
    torch.testing.assert_close(abd_loss(old, student, both, 1.0), local + overall)


def test_growing_keeps_the_old_answers(old: Teacher) -> None:
    images = SPEC.encode(bars(torch.arange(20) % 3))
    torch.testing.assert_close(grow(old, 7, rng())(images)[:, :3], old(images))
    no_head = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    with pytest.raises(TeacherError, match="needs a last linear layer"):
        grow(Teacher(no_head, InputSpec(shape=(1, 8, 8), mean=(0.0,), std=(1.0,))), 7, rng())


def test_wrong_data_is_named(old: Teacher) -> None:
    new = 3 + torch.arange(20) % 2
    config = LearnClassesConfig(steps=1)
    with pytest.raises(DataError, match="labels of new classes must be 3 or more; got 2"):
        learn(old, bars(new), bars(new), new - 1, config, rng=rng())
    with pytest.raises(DataError, match="needs synthetic images of the old classes; got 0"):
        learn(old, bars(new)[:0], bars(new), new, config, rng=rng())
    with pytest.raises(DataError, match="need images and labels; got 0, 20"):
        learn(old, bars(new), bars(new)[:0], new, config, rng=rng())
