"""Distillation, model selection and replay buffer; runs killed and resumed."""

import copy
import hashlib
import io
import itertools
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dreamstill as ds
import toys
from dreamstill.config import Precision, from_plain, to_plain
from dreamstill.data.augmentation import augment
from dreamstill.data.batch import Batch, answered
from dreamstill.data.config import NO_AUGMENTATION, Augmentation
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.config import DistillConfig, LossName, Optimizer
from dreamstill.distillation.distillation import Distillation
from dreamstill.distillation.model_selection import ModelSelector
from dreamstill.distillation.optimizers import optimizer_of, schedule_of
from dreamstill.distillation.trainer import Trainer
from dreamstill.errors import ConfigError, DataError, NonFiniteError
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.pipelines.config import DistillJob
from dreamstill.pipelines.distill import _distillation, distill
from dreamstill.pipelines.run_directory import environment
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import (
    DeepInversionConfig,
    DfadConfig,
    NoiseConfig,
    RdskdConfig,
    StructuredNoiseConfig,
    ZsktConfig,
)
from dreamstill.synthesis.methods.dfad import Dfad
from dreamstill.synthesis.methods.noise import Noise
from dreamstill.synthesis.methods.rdskd import Rdskd
from dreamstill.synthesis.methods.structured_noise import StructuredNoise
from dreamstill.synthesis.methods.zskt import Zskt
from dreamstill.synthesis.validation_set import ValidationSet, validation_set
from dreamstill.teacher import Teacher


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(value: int, num: int) -> Batch:
    images = toys.SPEC.encode(torch.full((num, 1, 8, 8), value, dtype=torch.uint8))
    return Batch(images, torch.zeros(num, 4))


class TestReplayBuffer:
    @pytest.mark.parametrize("name", ["shift", "rotate", "scale", "mixup", "cutmix"])
    def test_each_augmentation_changes_images(self, name: str) -> None:
        images = torch.randn(8, 1, 8, 8, generator=rng()).clamp(-2, 2)
        degree: Any = {"shift": 0.3, "rotate": 40.0, "scale": 0.4, "mixup": 1.0, "cutmix": 1.0}[
            name
        ]
        changed = augment(images, toys.SPEC, replace(NO_AUGMENTATION, **{name: degree}), rng())
        assert (changed - images).abs().mean() > 0.1

    def test_a_new_image_replaces_the_oldest(self, tmp_path: Path) -> None:
        buffer = ReplayBuffer(tmp_path, toys.SPEC, 5)
        for value in (1, 2, 3):
            buffer.add(batch_of(value, 2))
        assert len(buffer) == 5
        assert buffer.images()[:, 0, 0, 0].tolist() == [3, 1, 2, 2, 3]

    def test_more_than_it_holds_keeps_the_last(self, tmp_path: Path) -> None:
        buffer = ReplayBuffer(tmp_path, toys.SPEC, 3)
        buffer.add(batch_of(1, 2))
        buffer.add(batch_of(2, 7))
        assert buffer.images()[:, 0, 0, 0].tolist() == [2, 2, 2]

    def test_sampled_images_are_those_stored(self, tmp_path: Path) -> None:
        buffer = ReplayBuffer(tmp_path, toys.SPEC, 4)
        buffer.add(batch_of(200, 4))
        wanted = toys.SPEC.encode(torch.full((6, 1, 8, 8), 200, dtype=torch.uint8))
        torch.testing.assert_close(buffer.sample(6, rng()), wanted)

    def test_only_a_commit_changes_the_file(self, tmp_path: Path) -> None:
        buffer = ReplayBuffer(tmp_path, toys.SPEC, 4)
        buffer.add(batch_of(1, 2))
        buffer.commit()
        before = (tmp_path / "images.npy").read_bytes()
        buffer.add(batch_of(2, 2))
        assert (tmp_path / "images.npy").read_bytes() == before
        buffer.commit()
        again = ReplayBuffer.reopen(tmp_path, toys.SPEC)
        assert again.images()[:, 0, 0, 0].tolist() == [1, 1, 2, 2]

    def test_a_checkpoint_mends_a_half_done_commit(self, tmp_path: Path) -> None:
        buffer = ReplayBuffer(tmp_path, toys.SPEC, 4)
        buffer.add(batch_of(1, 4))
        buffer.commit()
        buffer.add(batch_of(2, 2))
        state = buffer.state_dict()  # the checkpoint is written; the kill falls before the commit
        again = ReplayBuffer(tmp_path, toys.SPEC, 4, create=False)
        again.load_state_dict(state)
        assert again.images()[:, 0, 0, 0].tolist() == [2, 2, 1, 1]
        assert again.added == 6


class TestAugment:
    def test_nothing_asked_changes_nothing(self) -> None:
        images = torch.rand(3, 1, 8, 8, generator=rng()) - 0.5
        assert torch.equal(augment(images, toys.SPEC, NO_AUGMENTATION, rng()), images)

    def test_a_flip_mirrors_half(self) -> None:
        images = torch.rand(200, 1, 8, 8, generator=rng())
        changed = augment(images, toys.SPEC, replace(NO_AUGMENTATION, flip=True), rng())
        close = [torch.allclose(a, b, atol=1e-5) for a, b in zip(images, changed, strict=True)]
        mirrored = [
            torch.allclose(a.flip(2), b, atol=1e-5) for a, b in zip(images, changed, strict=True)
        ]
        assert sum(close) + sum(mirrored) == 200
        assert 70 < sum(mirrored) < 130

    def test_a_rotation_keeps_a_disc_and_its_center(self) -> None:
        ys, xs = torch.meshgrid(torch.arange(33) - 16, torch.arange(21) - 10, indexing="ij")
        disc = torch.exp(-(ys**2 + xs**2) / 18.0).expand(4, 1, 33, 21)
        spec = InputSpec(shape=(1, 33, 21), mean=(0.0,), std=(1.0,))
        turned = augment(disc, spec, replace(NO_AUGMENTATION, rotate=90.0), rng())
        torch.testing.assert_close(turned, disc, atol=0.05, rtol=0)

    def test_the_result_stays_in_the_valid_range(self) -> None:
        images = torch.full((8, 1, 8, 8), 2.0)
        changed = augment(images, toys.SPEC, replace(NO_AUGMENTATION, noise=1.0), rng())
        assert changed.max() <= 2.0
        assert changed.std() > 0.1

    def test_out_of_range_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"rotate must be at most 180; got 200"):
            Augmentation(rotate=200)


class Answer(nn.Module):
    """Says class `k` with `margin`, whatever the image."""

    def __init__(self, k: int, margin: float = 1.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(margin * torch.eye(4)[k])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), 4)


class TestModelSelector:
    def make(self) -> ModelSelector:
        images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
        return ModelSelector(ValidationSet(images, torch.eye(4)[[0, 0, 0, 1]]), toys.SPEC)

    def test_agreement_is_the_share_of_equal_answers(self) -> None:
        assert self.make().validate(Answer(0), 1).agreement == 0.75
        assert self.make().validate(Answer(1), 1).agreement == 0.25

    def test_it_asks_about_inputs(self) -> None:
        images = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
        selector = ModelSelector(ValidationSet(images, torch.eye(4)), toys.SPEC)
        shown: list[torch.Tensor] = []
        student = Answer(0)
        student.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
        selector.validate(student, 1)
        torch.testing.assert_close(shown[0], toys.SPEC.encode(images))

    def test_the_better_student_stays(self) -> None:
        selector = self.make()
        assert selector.validate(Answer(1), 1).best
        assert selector.validate(Answer(0), 2).best
        assert not selector.validate(Answer(1), 3).best
        assert selector.best_step == 2

    @pytest.mark.parametrize(
        ("validations", "chosen"),
        [
            ([(0.90, 0.5), (0.95, 0.9)], 2),  # 5 points are no chance, whatever the KL
            ([(0.95, 0.5), (0.96, 0.4), (0.958, 0.3)], 3),  # two of 1,000 images can be
            ([(0.95, 0.5), (0.96, 0.4), (0.955, 0.3)], 2),
            ([(1.0, 0.030), (0.998, 0.020)], 2),
            ([(1.0, 0.020), (0.998, 0.030)], 1),
            ([(0.95, 0.3), (0.99, 0.5), (0.95, 0.1)], 2),
            ([(0.980, 0.50), (0.978, 0.45), (0.976, 0.40)], 2),  # it does not drift down
            ([(0.98, 0.5), (0.98, 0.5)], 2),  # the later of equal ones
        ],
    )
    def test_the_kl_decides_where_no_more_than_three_images_do(
        self,
        validations: list[tuple[float, float]],
        chosen: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        images = ValidationSet(torch.zeros(1000, 1, 8, 8), torch.zeros(1000, 4))
        selector, found = ModelSelector(images, toys.SPEC), iter(validations)
        monkeypatch.setattr(selector, "measure", lambda student: next(found))
        for step in range(1, len(validations) + 1):
            selector.validate(Answer(0), step)
        assert selector.best_step == chosen

    def test_the_best_student_is_a_copy(self) -> None:
        selector, student = self.make(), Answer(0)
        selector.validate(student, 1)
        nn.init.zeros_(student.logits)
        assert selector.best is not None
        assert selector.best(torch.zeros(1)).argmax() == 0
        assert selector.best(torch.zeros(1)).max() == 1


def work_in(folder: Path, *, noise: bool = False, **changes: object) -> Distillation:
    teacher, generator = toys.quadrant_teacher(), rng()
    method: Method = StructuredNoise(teacher, StructuredNoiseConfig(batch_size=64), rng=generator)
    if noise:  # no two images alike
        method = Noise(teacher, NoiseConfig(batch_size=64), rng=generator)
    config = DistillConfig(**({"num_validation": 128, "buffer_size": 500} | changes))  # type: ignore[arg-type]
    buffer = ReplayBuffer(folder, teacher.input_spec, config.buffer_size)
    return Distillation(teacher, toys.student(), method, buffer, config, rng=generator)


@pytest.mark.parametrize(
    ("losses", "precision"),
    [
        ((LossName.KL,), Precision.FLOAT32),
        ((LossName.L1,), Precision.FLOAT32),
        ((LossName.KL, LossName.L1), Precision.FLOAT32),
        ((LossName.KL, LossName.L1), Precision.BFLOAT16),
    ],
)
def test_a_student_learns_the_quadrants(
    tmp_path: Path, losses: tuple[LossName, ...], precision: Precision
) -> None:
    work = work_in(tmp_path, steps=400, lr=0.01, losses=losses)
    work.teacher.precision = precision
    low = []
    work.student.register_forward_hook(
        lambda module, args, output: low.append(torch.is_autocast_enabled("cpu"))
    )
    next(progress for progress in work.run() if progress.stage == "distill")
    assert low[0] == (precision is Precision.BFLOAT16)
    for _ in work.run():
        pass
    # real inputs of the task, which the student never saw: one bright quadrant each
    images = 0.2 * torch.randn(400, 1, 8, 8, generator=rng(7))
    for i in range(400):
        row, column = i % 4 // 2, i % 2
        images[i, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
    with torch.no_grad():
        answers = work.chosen(images).argmax(1)
    assert (answers == torch.arange(400) % 4).float().mean() > 0.9


def test_a_job_and_its_teacher_are_of_one_precision(tmp_path: Path) -> None:
    job = DistillJob(
        teacher=TeacherFile(weights="toy"),
        student="toys:student",
        method="noise",
        synthesis=NoiseConfig(),
        precision=Precision.BFLOAT16,
    )
    with pytest.raises(ConfigError, match="the job is in bfloat16 and its teacher was opened in"):
        distill(tmp_path / "run", job, toys.quadrant_teacher())
    assert not (tmp_path / "run").exists()


def test_what_competes_with_a_student_is_made_while_it_learns(tmp_path: Path) -> None:
    job = DistillJob(
        teacher=TeacherFile(weights="toy"),
        student="toys:student",
        method="deepinversion",
        synthesis=DeepInversionConfig(batch_size=4, steps=1, competition=1.0),
        distill=DistillConfig(steps=2, batch_size=4, num_validation=4, buffer_size=8),
    )
    with pytest.raises(ConfigError, match=r"before its first step: set distill\.fresh_every"):
        distill(tmp_path / "run", job, toys.cnn_teacher())
    assert not (tmp_path / "run").exists()
    never = replace(job, distill=replace(job.distill, fresh_every=0))
    with pytest.raises(ConfigError, match="before its first step"):
        distill(tmp_path / "run", never, toys.cnn_teacher())
    fresh = replace(job, distill=replace(job.distill, fresh_every=2))
    distill(tmp_path / "run", fresh, toys.cnn_teacher())


@pytest.mark.parametrize("kind", [ZsktConfig, DfadConfig])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validate_every": 7},
        {"fresh_every": 3},
        {"fresh_every": 15, "prefill": 10},
        {"steps": 0, "prefill": 10, "fresh_every": 2, "inherit": True},
    ],
)
def test_a_generator_is_told_how_many_batches_a_run_has(
    tmp_path: Path, changes: dict[str, Any], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DistillConfig(**{"steps": 40, "num_validation": 10, **changes})
    told: list[int] = []
    made: list[Batch] = []
    owner: Any = Zskt if kind is ZsktConfig else Dfad
    next_batch = owner.next_batch

    def counted(self: Any, student: nn.Module) -> Batch:
        made.append(next_batch(self, student))
        return made[-1]

    monkeypatch.setattr(owner, "next_batch", counted)
    monkeypatch.setattr(owner, "anneal_over", lambda self, batches: told.append(batches))
    job = DistillJob(
        teacher=TeacherFile(weights="toy"),
        student="toys:student",
        method=owner.__name__.lower(),
        synthesis=kind(batch_size=4, widths=(4, 4), student_steps=10),
        distill=config,
    )
    work, _ = _distillation(tmp_path, job, toys.cnn_teacher())
    for _ in work.run():
        pass
    assert told == [len(made)]


def test_a_collapse_at_the_first_validation_keeps_what_was_learned_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = itertools.cycle([0.0, 9.0])  # of the newest batch, and of all
    collapsed = lambda counts: next(answers)  # noqa: E731
    config = RdskdConfig(batch_size=64, latent=8, widths=(4, 4), generator_steps=3)
    job = DistillJob(
        teacher=TeacherFile(weights="toy"),
        student="toys:student",
        method="rdskd",
        synthesis=config,
        distill=DistillConfig(steps=2, validate_every=1, num_validation=64),
    )
    work, _ = _distillation(tmp_path, job, toys.cnn_teacher())
    monkeypatch.setattr("dreamstill.distillation.batch_stream.class_entropy", collapsed)
    for _ in work.run():
        pass
    method = work.stream.method
    assert isinstance(method, Rdskd)
    assert method.stages.step == 3
    assert not method.generator.module.training


def test_a_teacher_has_one_validation_set(tmp_path: Path) -> None:
    teacher = toys.quadrant_teacher()
    held = validation_set(teacher, 64)
    assert validation_set(teacher, 64) is held
    again = validation_set(toys.quadrant_teacher(), 64)
    assert torch.equal(again.images, held.images)
    assert held.images.shape == (64, 1, 8, 8)
    assert held.images.dtype == torch.uint8
    assert torch.bincount(held.logits.argmax(1), minlength=4).min() >= 15
    with torch.no_grad():
        torch.testing.assert_close(teacher(toys.SPEC.encode(held.images)), held.logits)
    work = work_in(tmp_path, steps=6, validate_every=2)
    for _ in work.run():
        pass
    trained = {image.numpy().tobytes() for image in work.stream.buffer.images()}
    assert not any(image.numpy().tobytes() in trained for image in work.selector.validation.images)


def test_a_replay_buffer_needs_no_posix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fallocate")
    assert len(ReplayBuffer(tmp_path / "replay_buffer", toys.SPEC, 8)) == 0


def test_prefill_and_replay(tmp_path: Path) -> None:
    work = work_in(tmp_path, steps=10, prefill=200, fresh_every=5)
    for _ in work.run():
        pass
    assert work.stream.buffer.added == 256 + 2 * 64


def weights_after(folder: Path, **changes: object) -> torch.Tensor:
    """Of the student, all in one row, after six steps."""
    torch.manual_seed(0)
    work = work_in(folder, **{"steps": 6, "lr": 0.02, **changes})  # type: ignore[arg-type]
    for _ in work.run():
        pass
    return torch.cat([p.detach().flatten() for p in work.student.parameters()])


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.03},
        {"anneal": False},
        {"warm_up": 0.5},
        {"optimizer": Optimizer.SGD, "lr": 0.02},
        {"weight_decay": 0.1},
        {"drops": (0.5,)},
        {"clip_gradient": 1e-3},
        {"temperature": 1.0},
        {"losses": (LossName.L1,)},
        {"loss_weights": (1.0, 9.0)},
        {"fresh_every": 2},
        {"fresh_every": 2, "batch_size": 7},
        {"fresh_every": 2, "augment": Augmentation(shift=0.2)},
    ],
)
def test_every_setting_reaches_the_student(tmp_path: Path, changes: dict[str, object]) -> None:
    plain = weights_after(tmp_path / "plain")
    assert torch.equal(weights_after(tmp_path / "again"), plain)
    assert not torch.allclose(weights_after(tmp_path / "other", **changes), plain, atol=1e-5)


def rates_of(folder: Path, **changes: Any) -> list[float]:
    """The learning rate after each step, as a share of the highest."""
    work, rates = work_in(folder, lr=0.02, **changes), []
    for progress in work.run():
        if progress.stage == "distill":
            rates.append(work.optimizer.param_groups[0]["lr"] / 0.02)
    return rates


def test_the_learning_rate_falls_to_zero_by_a_cosine(tmp_path: Path) -> None:
    assert rates_of(tmp_path, steps=4, warm_up=0) == pytest.approx(
        [0.5 + 0.5 * 2**-0.5, 0.5, 0.5 - 0.5 * 2**-0.5, 0.0]
    )


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"drops": (0.25, 0.5)}, [0.1, 0.01, 0.01, 0.01]),
        ({"anneal": False}, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_learning_rate_falls_in_steps_or_stays(
    tmp_path: Path, changes: dict[str, Any], wanted: list[float]
) -> None:
    assert rates_of(tmp_path, steps=4, warm_up=0, **changes) == pytest.approx(wanted)


def test_the_learning_rate_rises_first(tmp_path: Path) -> None:
    rates = rates_of(tmp_path / "cosine", steps=8, warm_up=0.5)
    assert rates == pytest.approx(
        [0.5, 0.75, 1.0, 1.0, 0.5 + 0.5 * 2**-0.5, 0.5, 0.5 - 0.5 * 2**-0.5, 0.0]
    )
    stays = rates_of(tmp_path / "stays", steps=4, warm_up=0.5, anneal=False)
    assert stays == pytest.approx([1.0, 1.0, 1.0, 1.0])
    config = DistillConfig(steps=10)
    optimizer = optimizer_of([nn.Parameter(torch.zeros(1))], config)
    schedule_of(optimizer, replace(config, warm_up=0.4))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(config.lr / 4)


def test_sgd_steps_by_gradient_momentum_and_decay() -> None:
    config = DistillConfig(optimizer=Optimizer.SGD, lr=0.1, momentum=0.5, weight_decay=0.2)
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = optimizer_of([weight], config)
    for _ in range(2):
        weight.grad = torch.tensor([3.0])
        optimizer.step()
    # v = 3 + 0.2 w; then v = 0.5 v + 3 + 0.2 w
    first = 1.0 - 0.1 * 3.2
    assert weight.item() == pytest.approx(first - 0.1 * (0.5 * 3.2 + 3 + 0.2 * first))


def test_the_last_step_is_always_validated(tmp_path: Path) -> None:
    work = work_in(tmp_path, steps=7, validate_every=5)
    validated = [progress.done for progress in work.run() if "agreement" in progress.record]
    assert validated == [5, 7]


def test_a_trainer_takes_any_batches_and_names_where_they_end() -> None:
    teacher = toys.quadrant_teacher()
    images = torch.randn(16, 1, 8, 8, generator=rng())
    selector = ModelSelector(
        ValidationSet(toys.SPEC.decode(images), answered(teacher, images).logits), toys.SPEC
    )
    batches = [(images, None), (images[:4], teacher(images[:4]))]
    trainer = Trainer(teacher, toys.student(), batches, selector, DistillConfig(steps=2), rng=rng())
    assert [progress.done for progress in trainer.run()] == [1, 2]
    assert trainer.selector.best_step == 2
    trainer = Trainer(teacher, toys.student(), batches, selector, DistillConfig(steps=3), rng=rng())
    with pytest.raises(DataError, match="the batches ended after 2 of 3 steps"):
        list(trainer.run())


def start_of(folder: Path, **changes: Any) -> Distillation:
    """A copy of the teacher, which no step of such a size can improve, to be distilled."""
    teacher, generator = toys.quadrant_teacher(), rng()
    student = copy.deepcopy(teacher.module).requires_grad_(True)
    method = StructuredNoise(teacher, StructuredNoiseConfig(batch_size=32), rng=generator)
    config: dict[str, Any] = {"steps": 6, "validate_every": 2, "lr": 50.0, "num_validation": 64}
    distill = DistillConfig(**config | changes)
    buffer = ReplayBuffer(folder, teacher.input_spec, 256)
    return Distillation(teacher, student, method, buffer, distill, rng=generator, pretrained=True)


@pytest.mark.parametrize("fresh", [{}, {"prefill": 128, "fresh_every": 0}])
def test_a_start_that_no_step_improves_on_is_selected_and_said(
    tmp_path: Path, fresh: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    work = start_of(tmp_path, **fresh)
    start = copy.deepcopy(work.student.state_dict())
    for progress in work.run():
        end = progress
    assert end.record["chosen_at_step"] == work.selector.best_step == 0
    for name, value in work.chosen.state_dict().items():
        assert torch.equal(value, start[name])
    assert "none of the 6 steps improved on the start, which was kept" in caplog.text


@pytest.mark.parametrize("cut", [1, 3, 5, 8])
def test_a_start_is_validated_once_however_often_a_run_is_taken_up(
    tmp_path: Path, cut: int
) -> None:
    whole = start_of(tmp_path / "whole", lr=0.05)
    for _ in whole.run():
        pass
    first = start_of(tmp_path / "cut", lr=0.05)
    for _ in itertools.islice(first.run(), cut):
        pass
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = start_of(tmp_path / "again", lr=0.05)
    again.load_state_dict(torch.load(file, weights_only=True))
    for _ in again.run():
        pass
    assert again.selector.best_step == whole.selector.best_step
    for one, other in zip(
        [*again.student.parameters(), *again.chosen.parameters()],
        [*whole.student.parameters(), *whole.chosen.parameters()],
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("reconstruct", [0, 64])
def test_a_student_that_inherits_is_validated_at_its_start(
    tmp_path: Path, reconstruct: int
) -> None:
    job = DistillJob(
        teacher=TeacherFile(weights="toy"),
        student="toys:student",
        method="structured_noise",
        synthesis=StructuredNoiseConfig(batch_size=64),
        distill=DistillConfig(
            steps=4,
            validate_every=2,
            num_validation=64,
            buffer_size=64,
            lr=50.0,
            inherit=True,
            reconstruct=reconstruct,
        ),
    )
    work, _ = _distillation(tmp_path, job, toys.cnn_teacher())
    for _ in work.run():
        pass
    assert work.selector.best_step == 0


def test_a_random_student_has_no_start_to_keep(tmp_path: Path) -> None:
    work = work_in(tmp_path, steps=4, validate_every=2, lr=50.0)
    for progress in work.run():
        if progress.stage == "synthesize":
            assert work.selector.best is None
    assert work.selector.best_step > 0


def nameless(teacher: Teacher, *classes: int) -> Teacher:
    """A teacher that names some of its classes never."""
    with torch.no_grad():
        teacher.last_linear.bias[list(classes)] = -100.0
    return teacher


@pytest.mark.parametrize("fresh", [{}, {"prefill": 128, "fresh_every": 0}])
def test_a_class_that_no_image_has_is_said_once(
    tmp_path: Path, fresh: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    work = work_in(tmp_path, steps=6, validate_every=3, **fresh)
    nameless(work.teacher, 1, 3)
    for _ in work.run():
        pass
    (text,) = [r.getMessage() for r in caplog.records if r.name.startswith("dreamstill")]
    num = 128 if fresh else 6 * 64
    assert text.startswith(f"the teacher gives none of the {num} synthetic images classes 1, 3: ")
    assert work.warnings == [text]


def test_a_run_keeps_what_it_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = DistillJob(
        teacher=TeacherFile(weights="toy"),
        student="toys:student",
        method="structured_noise",
        synthesis=StructuredNoiseConfig(batch_size=64),
        distill=DistillConfig(steps=2, num_validation=64, buffer_size=64),
    )
    distill(tmp_path / "run", job, nameless(toys.quadrant_teacher(), 0, 1, 2))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (text,) = result["warnings"]
    assert text.startswith("the teacher gives 100.0% of the 128 synthetic images class 3: check")
    assert text in caplog.text
    assert result["steps"] == 2


def test_a_batch_is_trained_on_as_often_as_its_method_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, seen = work_in(tmp_path, steps=7, augment=NO_AUGMENTATION), []
    monkeypatch.setattr(work.stream.method, "repeat", 3, raising=False)
    work.student.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0]) if module.training else None
    )
    for _ in work.run():
        pass
    same = [torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert same == [True, True, False, True, True, False]


def test_a_boundary_stage_trains_the_connectors_for_its_share(tmp_path: Path) -> None:
    teacher, generator = toys.cnn_teacher(), rng()
    student = toys.SmallCnn(width=4)  # of other channels: connected
    config = DistillConfig(
        steps=8,
        num_validation=16,
        buffer_size=64,
        losses=(LossName.KL, LossName.BOUNDARY),
        boundary_share=0.5,
    )
    method = Noise(teacher, NoiseConfig(batch_size=16), rng=generator)
    buffer = ReplayBuffer(tmp_path, teacher.input_spec, 64)
    work = Distillation(teacher, student, method, buffer, config, rng=generator)
    head, connectors = [], []
    for progress in work.run():
        if progress.stage == "distill":
            head.append(student.head.weight.detach().clone())
            connectors.append(next(work.loss.connectors.parameters()).detach().clone())
    moved = [
        [not torch.equal(a, b) for a, b in itertools.pairwise(values)]
        for values in (head, connectors)
    ]
    assert moved[0][:3] == [False] * 3  # nothing beyond the last convolution is initialized
    assert all(moved[0][3:])
    assert all(moved[1][:3])


def test_a_boundary_stage_in_bfloat16_numbers_the_relus_of_its_own_pass() -> None:
    losses = (LossName.BOUNDARY, LossName.KL)
    config = DistillConfig(steps=4, batch_size=16, num_validation=16, losses=losses)
    teacher = Teacher(toys.SmallCnn(width=8), toys.SPEC, precision=Precision.BFLOAT16)
    result = ds.distill(teacher, toys.SmallCnn(width=4), toys.SPEC.noise(32), config)
    assert len(result.history) == 4


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    work = work_in(tmp_path, steps=2)
    nn.init.constant_(work.student.head.bias, torch.inf)  # type: ignore[arg-type, union-attr]
    before = work.student.head.weight.clone()  # type: ignore[operator, union-attr]
    with pytest.raises(NonFiniteError, match=r"at step 0; lower its lr"):
        list(work.run())
    assert torch.equal(before, work.student.head.weight)  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps must be at least 0; got -1"),
        ({"temperature": -1.0}, "temperature must be above 0; got -1.0"),
        ({"temperature": float("nan")}, "temperature must be a finite number; got nan"),
        ({"losses": ()}, "at least one of kl"),
        ({"prefill": 0, "fresh_every": 0}, "nothing to learn from"),
        ({"num_validation": 1}, "num_validation must be at least 2"),
        ({"momentum": 0.5}, "momentum 0.5 has no effect without sgd"),
        ({"drops": (0.5,), "anneal": False}, "anneal False has no effect beside drops"),
        ({"minutes": 5.0, "steps": 9}, "steps 9 has no effect beside 5 minutes"),
        ({"minutes": 5.0, "visits": 9}, "visits 9 has no effect beside 5 minutes"),
        ({"visits": 9000, "steps": 9}, "steps 9 has no effect beside 9,000 visits"),
        ({"drops": (1.5,)}, "drops must be at most 1; got 1.5"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillConfig(**changes)  # type: ignore[arg-type]


def test_settings_survive_json() -> None:
    config = DistillConfig(augment=Augmentation(shift=0.1), losses=(LossName.L1,))
    plain = json.loads(json.dumps(to_plain(config)))
    assert from_plain(DistillConfig, plain) == config
    with pytest.raises(ConfigError, match=r"unknown setting augment.tilt; known: "):
        from_plain(DistillConfig, {"augment": {"tilt": 1}})
    with pytest.raises(ConfigError, match=r"steps must be an integer; got 'many'"):
        from_plain(DistillConfig, {"steps": "many"})
    with pytest.raises(ConfigError, match=r"losses must be one of kl, .*; got 'l3'"):
        from_plain(DistillConfig, {"losses": ["l3"]})


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def command(folder: Path, weights: Path, *, resume: bool) -> list[str]:
    start = [sys.executable, "-m", "dreamstill.cli.main", "distill", "--json"]
    if resume:
        return [*start, "--resume", str(folder)]
    return [
        *start,
        *(
            "--out",
            str(folder),
            "--teacher.weights",
            str(weights),
            "--student",
            "toys:forgetful_student",
        ),
        *("--method", "dafl", "--synthesis.batch_size", "32", "--synthesis.widths", "16,8"),
        *("--distill.steps", "300", "--distill.fresh_every", "3", "--distill.prefill", "200"),
        *(
            "--distill.num_validation",
            "64",
            "--distill.validate_every",
            "50",
            "--distill.buffer_size",
            "400",
        ),
        *("--distill.augment.shift", "0.1", "--checkpoint-every", "0.05"),
    ]


def test_a_killed_run_resumes_to_the_bit(tmp_path: Path) -> None:
    weights = toys.write_teacher(tmp_path)
    environment = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(
        command(whole, weights, resume=False), env=environment, check=True, capture_output=True
    )
    kills = 0
    for target in (1, 60, 200):
        process = subprocess.Popen(
            command(killed, weights, resume=kills > 0),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and steps_logged(killed) < target:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        assert (killed / "config.json").is_file()
    assert kills >= 2
    subprocess.run(
        command(killed, weights, resume=True), env=environment, check=True, capture_output=True
    )
    for name in ("student.safetensors", "replay_buffer/images.npy", "student.json"):
        assert digest(whole / name) == digest(killed / name), name
    results = [json.loads((f / "result.json").read_text()) for f in (whole, killed)]
    for result in results:
        result.pop("seconds")
    assert results[0] == results[1]
    losses = [
        [json.loads(line)["loss"] for line in (f / "log.jsonl").read_text().splitlines()]
        for f in (whole, killed)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 300


def steps_logged(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_text().count("\n") if log.is_file() else 0


class Collapsing(StructuredNoise):
    """Gives one image over and over after some batches, until it is rolled back."""

    batches, rolled_back = 0, 0

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        batch = super().next_batch(student)
        self.batches += 1
        if self.batches < 30 or self.rolled_back:
            return batch
        same = [part[:1].expand_as(part).clone() for part in (batch.images, batch.logits)]
        return Batch(*same)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.batches = state["batches"]
        self.rolled_back += 1


def test_a_collapsed_method_is_rolled_back(tmp_path: Path) -> None:
    generator, teacher = rng(), toys.quadrant_teacher()
    config = StructuredNoiseConfig(batch_size=32)
    source = Collapsing(teacher, config, rng=generator)
    distill = DistillConfig(
        steps=60, batch_size=32, num_validation=256, buffer_size=256, validate_every=5
    )
    buffer = ReplayBuffer(tmp_path, toys.SPEC, 256)
    work = Distillation(teacher, toys.student(), source, buffer, distill, rng=generator)
    collapsed = [p.record["collapsed"] for p in work.run() if "collapsed" in p.record]
    assert sum(collapsed) == source.rolled_back == 1


def test_a_commit_of_another_project_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*command: str) -> None:
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "run_directory.py").touch()
    (tmp_path / "theirs.txt").touch()
    git("init", "-q")
    git("add", "theirs.txt")
    git("-c", "user.name=x", "-c", "user.email=x@y", "commit", "-q", "-m", "theirs")
    monkeypatch.setattr(
        "dreamstill.pipelines.run_directory.__file__", str(tmp_path / "run_directory.py")
    )
    assert environment("cpu")["commit"] == "not a checkout"
