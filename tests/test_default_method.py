"""Which method makes a student's images where none is asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dreamstill as ds
import toys
from dreamstill.config import read_plain
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.default_method import open_default
from dreamstill.distillation.initialization import Start
from dreamstill.loaders.config import TeacherFile
from dreamstill.pipelines.config import DistillJob
from dreamstill.pipelines.distill import distill
from dreamstill.progress import Progress
from dreamstill.synthesis.config import ImageProgramsConfig
from dreamstill.synthesis.methods.fastdfkd import FastDfkd
from dreamstill.synthesis.methods.image_programs import ImagePrograms

AT_RANDOM = Start(None, "")
DRAWN = ImageProgramsConfig(batch_size=8, memory=16)


@pytest.fixture
def small_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the generator compute less than `wide_teacher` does."""
    monkeypatch.setattr("dreamstill.distillation.default_method.WIDTHS", (2, 2))


def wide_teacher() -> ds.Teacher:
    return ds.Teacher(toys.SmallCnn(width=32), toys.SPEC)


def opened(
    config: DistillConfig,
    *,
    teacher: ds.Teacher | None = None,
    start: Start = AT_RANDOM,
    drawn: ImageProgramsConfig = DRAWN,
) -> Any:
    return open_default(
        *(teacher or wide_teacher(), toys.student(), drawn, config, start),
        rng=torch.Generator().manual_seed(0),
    )


@pytest.mark.usefixtures("small_generator")
@pytest.mark.parametrize(
    ("config", "start"),
    [
        (DistillConfig(), AT_RANDOM),
        (DistillConfig(), Start({}, "")),  # it inherits
        (DistillConfig(steps=1000), AT_RANDOM),
        (DistillConfig(visits=8 * 100 + 256 * 900), AT_RANDOM),
        (DistillConfig(minutes=60.0, num_validation=16), AT_RANDOM),
    ],
)
def test_a_student_with_steps_to_learn_has_fastdfkd_after_image_programs(
    config: DistillConfig, start: Start
) -> None:
    method = opened(config, start=start)
    assert type(method) is FastDfkd
    assert method.config.flip
    assert method.config.batch_size == 8
    assert method.programs.config == DRAWN
    rng = torch.Generator()
    rng.set_state(method.rng.get_state())
    drawn = ImagePrograms(method.teacher, DRAWN, rng=rng)
    for _ in range(2):
        assert torch.equal(method.initial_batch(toys.student()).images, drawn.next_batch().images)
    fresh = method.next_batch(toys.student()).images
    assert not torch.equal(fresh, drawn.next_batch().images)


@pytest.mark.usefixtures("small_generator")
def test_the_steps_of_a_budget_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """By the distillation, not by the choice of its method too."""
    caplog.set_level("INFO")
    assert type(opened(DistillConfig(visits=512_000))) is FastDfkd
    assert not caplog.messages


@pytest.mark.usefixtures("small_generator")
def test_its_generator_shows_no_mirrored_images_where_the_training_has_none() -> None:
    config = DistillConfig()
    method = opened(replace(config, augment=replace(config.augment, flip=False)))
    assert not method.config.flip


@pytest.mark.usefixtures("small_generator")
@pytest.mark.parametrize(
    "changes",
    [{"steps": 999}, {"visits": 200_000}, {"minutes": 0.001}, {"fresh_every": 0}],
)
def test_otherwise_image_programs_make_all_images(changes: dict[str, Any]) -> None:
    assert type(opened(DistillConfig(num_validation=16, **changes))) is ImagePrograms


@pytest.mark.usefixtures("small_generator")
def test_images_that_come_one_by_one_are_of_image_programs() -> None:
    """FastDFKD compares the images of a batch."""
    method = opened(DistillConfig(), drawn=replace(DRAWN, batch_size=1))
    assert type(method) is ImagePrograms


@pytest.mark.usefixtures("small_generator")
def test_a_teacher_that_does_not_suit_has_image_programs() -> None:
    """One without BatchNorm, or of large images."""
    plain = ds.Teacher(toys.quadrants(), toys.SPEC)
    assert type(opened(DistillConfig(), teacher=plain)) is ImagePrograms
    spec = replace(toys.SPEC, shape=(toys.SPEC.shape[0], 64, 64))
    large = ds.Teacher(toys.SmallCnn(width=32), spec)
    assert type(opened(DistillConfig(), teacher=large)) is ImagePrograms


@pytest.mark.usefixtures("small_generator")
@pytest.mark.parametrize(("least", "later"), [(12, 1000), (1000, 1)])
def test_a_run_of_minutes_goes_on_with_the_method_that_it_chose(
    least: int, later: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = wide_teacher()
    job = DistillJob(
        teacher=TeacherFile(weights="toy"),
        student="toys:seeded_student",
        synthesis=DRAWN,
        distill=DistillConfig(minutes=0.2, batch_size=8, num_validation=16, inherit=False),
        checkpoint_every=0,
    )
    monkeypatch.setattr("dreamstill.distillation.budget.seconds_per_batch", lambda *_: 0.0)
    monkeypatch.setattr("dreamstill.distillation.budget._seconds_per_step", lambda *_: 1.0)

    def stop(progress: Progress) -> None:
        if progress.stage == "distill" and progress.done == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("dreamstill.distillation.default_method.LEAST_STEPS", least)
    whole = distill(tmp_path / "whole", job, teacher)
    with pytest.raises(KeyboardInterrupt):
        distill(tmp_path / "stopped", job, teacher, on_progress=stop)
    monkeypatch.setattr("dreamstill.distillation.default_method.LEAST_STEPS", later)
    resumed = distill(tmp_path / "stopped", job, teacher, resume=True)
    method = "image_programs and fastdfkd" if least == 12 else "image_programs"
    for name in ("whole", "stopped"):
        result = read_plain(tmp_path / name / "result.json")
        assert (result["method"], result["steps"]) == (method, 12)
    same = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)


@pytest.mark.usefixtures("small_generator")
def test_the_plan_says_which_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DistillConfig(steps=2, batch_size=4, num_validation=16, prefill=16, inherit=False)

    def images(source: str | None = None) -> str:
        result = ds.distill(wide_teacher(), toys.student(), source, config=config)
        plan: list[str] = result.details["plan"]
        return plan[0]

    assert images().endswith("16 before the first step, then 256 new ones every 16 steps.")
    monkeypatch.setattr("dreamstill.distillation.default_method.LEAST_STEPS", 2)
    assert images().endswith(
        "16 before the first step, then 256 new ones every 10 steps by fastdfkd, which teach more."
    )
    assert images("image_programs").endswith("then 256 new ones every 16 steps.")


def test_a_teacher_of_fewer_macs_than_the_generator_has_image_programs() -> None:
    assert type(opened(DistillConfig())) is ImagePrograms
