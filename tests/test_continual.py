"""New classes beside old ones, and what each recipe keeps."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import toys
from dreamstill.errors import DataError, TeacherError
from dreamstill.nets.seeded import seeded
from dreamstill.tasks.continual import (
    ContinualSettings,
    Recipe,
    _abd_loss,
    _class_weights,
    grow,
    learn,
)
from dreamstill.teacher import InputSpec, Teacher, open_teacher

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
    return open_teacher(model, SPEC)


def accuracy(network: Teacher, classes: Tensor) -> float:
    named = network(SPEC.encode(bars(classes))).argmax(1)
    return (named == classes).float().mean().item()


@pytest.mark.parametrize("recipe", Recipe)
def test_new_classes_are_learned_and_old_ones_kept_by_dreams(recipe: Recipe, old: Teacher) -> None:
    settings = ContinualSettings(recipe=recipe, steps=150, batch_size=32, lr=5e-3)
    new = 3 + torch.arange(200) % 2
    before = old.fingerprint
    dreams = bars(torch.arange(300) % 3)
    network = learn(old, dreams, bars(new), new, settings, rng=rng())
    assert network.num_classes == 5
    assert old.fingerprint == before
    assert accuracy(network, new) > 0.9
    kept = accuracy(network, torch.arange(300) % 3)
    if recipe in (Recipe.INVERSION, Recipe.ABD):
        assert kept > 0.9
    if recipe is Recipe.FINETUNE:
        assert kept < 0.6


def trained(old: Teacher, **settings: object) -> Teacher:
    new = 3 + torch.arange(200) % 2
    given: dict[str, object] = {"steps": 100, "batch_size": 32, "lr": 5e-3}
    dreams = bars(torch.arange(300) % 3)
    made = ContinualSettings(**given | settings)  # type: ignore[arg-type]
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
        network = trained(old, keep=keep)
        change = network.with_features(images)[1] - old.with_features(images)[1]
        moved.append((change @ old.last_linear.weight.T).abs().mean().item())
    assert moved[1] < 0.2 * moved[0]


def test_abd_weighs_classes_by_how_rare_they_are(old: Teacher) -> None:
    dreams, new = bars(torch.arange(300) % 3), 3 + torch.arange(200) % 2
    weights = _class_weights(old, dreams, new)
    # a third of the dreams each, half of the new images each; their mean is 0.4
    torch.testing.assert_close(weights, torch.tensor([1.2, 1.2, 1.2, 0.8, 0.8]), atol=0.05, rtol=0)
    student = open_teacher(grow(old, 5, rng()), SPEC)
    both = SPEC.encode(torch.cat([bars(new[:4]), dreams[:3]]))
    settings = ContinualSettings()
    logits = student(both)
    # features have not moved yet; with no weight on new classes only the dreams are left of (2)
    loss = _abd_loss(student, old, both, new[:4], settings, torch.tensor([1.0, 1, 1, 0, 0]))
    local = F.cross_entropy(logits[:4, 3:], new[:4] - 3)
    overall = F.cross_entropy(logits[4:], old(both[4:]).argmax(1))
    torch.testing.assert_close(loss, local + overall)


def test_growing_keeps_the_old_answers(old: Teacher) -> None:
    images = SPEC.encode(bars(torch.arange(20) % 3))
    torch.testing.assert_close(grow(old, 7, rng())(images)[:, :3], old(images))
    no_head = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    with pytest.raises(TeacherError, match="needs a last linear layer"):
        grow(open_teacher(no_head, InputSpec(shape=(1, 8, 8), mean=(0.0,), std=(1.0,))), 7, rng())


def test_wrong_data_is_named(old: Teacher) -> None:
    new = 3 + torch.arange(20) % 2
    settings = ContinualSettings(steps=1)
    with pytest.raises(DataError, match="labels of new classes must be 3 or more; got 2"):
        learn(old, bars(new), bars(new), new - 1, settings, rng=rng())
    with pytest.raises(DataError, match="needs synthetic images of the old classes; got 0"):
        learn(old, bars(new)[:0], bars(new), new, settings, rng=rng())
    with pytest.raises(DataError, match="need images and labels; got 0, 20"):
        learn(old, bars(new), bars(new)[:0], new, settings, rng=rng())
