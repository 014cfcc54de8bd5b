"""The one contract, run over every method of the table."""

import dataclasses
from typing import Any

import pytest
import torch

import toys
from dreamstill.errors import NonFiniteError, SettingsError, TeacherError
from dreamstill.synthesis import METHODS, Batch, Synthesizer, open_synthesizer
from dreamstill.teacher import Teacher

FAST: dict[str, dict[str, Any]] = {
    "noise": {"batch_size": 16},
    "structured_noise": {"batch_size": 16},
    "dafl": {"batch_size": 16, "widths": (8, 4), "latent": 5, "lr": 0.02},
    "deepinversion": {"batch_size": 16, "steps": 12},
    "zskd": {"batch_size": 16, "steps": 12},
}
OPTIMIZED = ("dafl", "deepinversion", "zskd")
methods = pytest.mark.parametrize("name", METHODS)


def make(name: str, teacher: Teacher, seed: int = 0, **changes: Any) -> Synthesizer:
    settings = METHODS[name].settings(**(FAST[name] | changes))
    return open_synthesizer(name, teacher, settings, rng=torch.Generator().manual_seed(seed))


def test_every_method_has_fast_settings() -> None:
    assert FAST.keys() == METHODS.keys()


@methods
def test_a_batch_is_detached_in_range_and_answered_by_the_teacher(name: str) -> None:
    teacher = toys.cnn_teacher()
    batch = make(name, teacher).next_batch()
    assert batch.images.shape == (16, 1, 8, 8)
    assert batch.images.dtype == torch.float32
    assert not batch.images.requires_grad
    assert not batch.logits.requires_grad
    assert batch.images.min() >= -2
    assert batch.images.max() <= 2
    torch.testing.assert_close(batch.logits, teacher.module(batch.images))


@methods
def test_images_fill_the_range(name: str) -> None:
    images = make(name, toys.cnn_teacher()).next_batch().images
    assert images.std() > 0.3


@methods
def test_the_same_rng_makes_the_same_batches_and_another_does_not(name: str) -> None:
    first, again, other = (make(name, toys.cnn_teacher(), seed=s) for s in (0, 0, 1))
    for _ in range(2):
        wanted = first.next_batch().images
        assert torch.equal(wanted, again.next_batch().images)
        assert not torch.equal(wanted, other.next_batch().images)


@methods
def test_a_batch_is_new_each_time(name: str) -> None:
    synthesizer = make(name, toys.cnn_teacher())
    assert not torch.equal(synthesizer.next_batch().images, synthesizer.next_batch().images)


@methods
def test_resume_equals_no_interruption(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    settings = METHODS[name].settings(**FAST[name])
    one = METHODS[name].synthesizer(toys.cnn_teacher(), settings, rng=rng)
    one.next_batch()
    state, rng_state = one.state_dict(), rng.get_state()
    state = torch.load(_saved(state), weights_only=True)
    wanted = [one.next_batch().images for _ in range(2)]

    rng = torch.Generator().manual_seed(9)
    two = METHODS[name].synthesizer(toys.cnn_teacher(), settings, rng=rng)
    two.load_state_dict(state)
    rng.set_state(rng_state)
    for images in wanted:
        assert torch.equal(two.next_batch().images, images)


def _saved(state: dict[str, Any]):  # type: ignore[no-untyped-def]
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@methods
def test_the_teacher_is_left_as_it_was(name: str) -> None:
    teacher = toys.cnn_teacher()
    before = teacher.fingerprint
    make(name, teacher).next_batch()
    assert teacher.fingerprint == before
    assert_untouched(teacher)


def assert_untouched(teacher: Teacher) -> None:
    for part in teacher.module.modules():
        assert not part.training
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    assert all(p.grad is None and not p.requires_grad for p in teacher.module.parameters())


@methods
def test_the_teacher_is_left_as_it_was_after_an_exception(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = toys.cnn_teacher()
    synthesizer = make(name, teacher)

    def broken(inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    monkeypatch.setattr(teacher.module.head, "forward", broken)
    with pytest.raises(RuntimeError, match="broken"):
        synthesizer.next_batch()
    assert_untouched(teacher)


@methods
def test_the_global_rng_is_not_touched(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    make(name, toys.cnn_teacher()).next_batch()
    assert torch.equal(torch.get_rng_state(), before)


@methods
def test_queries_are_counted(name: str) -> None:
    teacher = toys.cnn_teacher()
    make(name, teacher).next_batch()
    shown = {"noise": 16, "structured_noise": 32, "dafl": 16}.get(name, 16 * 13)
    assert teacher.queries == shown


def objective(name: str, batch: Batch, teacher: Teacher) -> float:
    """What each optimized method is for, lower is better, measured from outside."""
    logits = batch.logits
    if name == "dafl":
        return torch.nn.functional.cross_entropy(logits, logits.argmax(1)).item()
    if name == "zskd":  # peaked targets: the mean confidence
        return -logits.softmax(1).amax(1).mean().item()
    norm = teacher.module.get_submodule("norm")
    seen = teacher.module.get_submodule("conv")(batch.images)
    return float((seen.mean((0, 2, 3)) - norm.running_mean).norm())


@pytest.mark.parametrize("name", OPTIMIZED)
def test_an_optimized_method_is_better_than_noise_at_its_own_objective(name: str) -> None:
    teacher = toys.cnn_teacher()
    noise = objective(name, make("noise", teacher, batch_size=64).next_batch(), teacher)
    more: dict[str, dict[str, Any]] = {
        "dafl": {},
        "deepinversion": {"steps": 60},
        "zskd": {"steps": 60, "temperature": 1.0, "betas": (0.1,)},
    }
    synthesizer = make(name, teacher, batch_size=64, **more[name])
    for _ in range(40 if name == "dafl" else 1):
        batch = synthesizer.next_batch()
    assert objective(name, batch, teacher) < noise - 0.01


@pytest.mark.parametrize("name", OPTIMIZED)
def test_a_loss_that_is_not_finite_stops_before_the_update(name: str) -> None:
    teacher = toys.cnn_teacher()
    synthesizer = make(name, teacher)
    teacher.module.head.bias.fill_(torch.nan)  # type: ignore[operator, union-attr]
    with pytest.raises(NonFiniteError, match="nan"):
        synthesizer.next_batch()


@methods
def test_settings_out_of_range_are_named(name: str) -> None:
    kind = METHODS[name].settings
    for field in dataclasses.fields(kind):
        for bad in (-1, (-1,), (-1, -1)):
            is_number = isinstance(field.default, int | float) and not isinstance(
                field.default, bool
            )
            if is_number == isinstance(bad, tuple) or isinstance(field.default, bool):
                continue
            with pytest.raises(SettingsError, match=str(-1)):
                kind(**{field.name: bad})


def test_deepinversion_says_when_there_is_no_batch_norm() -> None:
    with pytest.raises(TeacherError, match="deepinversion needs batch_norm"):
        make("deepinversion", toys.quadrant_teacher())
