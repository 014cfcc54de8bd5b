"""What `distill` does when nothing is set, and what it says beforehand."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dreamstill as ds
import toys
from dreamstill.cli.terminal import Bars
from dreamstill.config import from_plain, read_plain, to_plain
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation import budget
from dreamstill.distillation.budget import within_budget
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.distillation import Distillation
from dreamstill.distillation.initialization import initialize
from dreamstill.distillation.plan import memory_estimate, plan, with_time_left
from dreamstill.distillation.weight_inheritance import inherit
from dreamstill.errors import ConfigError
from dreamstill.loaders.config import TeacherFile
from dreamstill.pipelines.config import DistillJob
from dreamstill.pipelines.distill import distill
from dreamstill.progress import Progress
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import ImageProgramsConfig, NoiseConfig
from dreamstill.synthesis.methods.image_programs import ImagePrograms
from dreamstill.synthesis.methods.noise import Noise
from dreamstill.synthesis.presets import PRESETS, student_config
from dreamstill.synthesis.validation_set import validation_set

TEACHERS = Path(__file__).parents[1] / "benchmarks" / "teachers"


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def work_of(
    teacher: ds.Teacher, student: nn.Module, method: Method, config: DistillConfig
) -> Distillation:
    buffer = ReplayBuffer(None, teacher.input_spec, config.buffer_size)
    return Distillation(teacher, student, method, buffer, config, rng=method.rng)


class TestStart:
    def test_a_narrower_copy_inherits_unless_told_otherwise(self) -> None:
        teacher, wanted, student = toys.cnn_teacher(), toys.student(), toys.student()
        kept = inherit(teacher.module, wanted, toys.SPEC)
        start = initialize(teacher, student, DistillConfig())
        assert start.inherited is not None
        assert {name: of.tolist() for name, of in start.inherited.items()} == {
            name: of.tolist() for name, of in kept.items()
        }
        torch.testing.assert_close(student.state_dict(), wanted.state_dict())
        assert start.reason == (
            "The student, a narrower copy of the teacher, inherits its most important channels; "
            "its layers are then reconstructed on 2,048 images."
        )
        before = toys.seeded_student()
        told = initialize(teacher, student := toys.seeded_student(), DistillConfig(inherit=False))
        assert told.inherited is None
        torch.testing.assert_close(student.state_dict(), before.state_dict())

    def test_another_architecture_keeps_its_weights_and_says_why(self) -> None:
        teacher, student = toys.cnn_teacher(), toys.quadrants()
        inherited, reason = initialize(teacher, student, DistillConfig())
        assert inherited is None
        assert reason == (
            "The student starts with its own, usually random weights, for it cannot inherit: "
            "conv.bias is in one of the two networks alone, and a student that inherits has the "
            "layers of its teacher, narrower."
        )
        wide = toys.SmallCnn(width=8)
        _, reason = initialize(teacher, wide, DistillConfig())
        assert "conv has 8 channels in the student and 6 in the teacher" in reason
        for config in (DistillConfig(inherit=True), DistillConfig(steps=0)):
            with pytest.raises(ConfigError, match="a student that inherits is narrower"):
                initialize(teacher, wide, config)

    @pytest.mark.parametrize("value", ["maybe", "none", 1, None])
    def test_other_words_are_refused(self, value: object) -> None:
        with pytest.raises(ConfigError, match="inherit must be true, false or auto; got "):
            from_plain(DistillConfig, {"inherit": value})

    def test_it_survives_json(self) -> None:
        for value in (True, False, "auto"):
            config = DistillConfig(inherit=value)
            assert from_plain(DistillConfig, to_plain(config)) == config

    def test_presets_of_a_training_start_at_random_as_in_the_papers(self) -> None:
        for method, presets in PRESETS.items():
            for name, preset in presets.items():
                config = from_plain(DistillConfig, student_config(method, None, name))
                assert config.inherit is (False if preset.distill else config.inherit)
                assert preset.distill or config.inherit == "auto"
        asked = student_config("dafl", {"inherit": True}, "mnist")
        assert from_plain(DistillConfig, asked).inherit is True


@pytest.mark.parametrize(
    ("changes", "repeat", "visits"),
    [
        ({"fresh_every": 1, "prefill": 0}, 1, 20 * 8),
        ({"fresh_every": 0, "prefill": 16}, 1, 20 * 4),
        ({"fresh_every": 8, "prefill": 16}, 1, 3 * 8 + 17 * 4),
        ({"fresh_every": 3, "prefill": 16}, 2, 14 * 8 + 6 * 4),
        ({"fresh_every": 1, "prefill": 0}, 7, 20 * 8),
    ],
)
def test_visits_are_known_beforehand(changes: dict[str, Any], repeat: int, visits: int) -> None:
    teacher = toys.cnn_teacher()
    method = Noise(teacher, NoiseConfig(batch_size=8), rng=rng())
    method.repeat = repeat
    config = DistillConfig(
        steps=20, batch_size=4, buffer_size=32, num_validation=8, inherit=False, **changes
    )
    work = work_of(teacher, toys.student(), method, config)
    assert work.stream.num_visits == visits
    made = work.stream.num_images
    for _ in work.run():
        pass
    assert work.visits == visits
    assert work.stream.buffer.added == made


@pytest.mark.parametrize(
    ("changes", "repeat", "steps"),
    [
        ({"fresh_every": 1, "prefill": 0}, 1, 13),  # 8 each
        ({"fresh_every": 0, "prefill": 16}, 1, 25),  # 4 each
        ({"fresh_every": 4, "prefill": 16}, 1, 20),  # 8, 4, 4, 4
        ({"fresh_every": 3, "prefill": 16}, 2, 15),  # 8, 8, 4, of which 100 are 15
    ],
)
def test_image_visits_become_steps(changes: dict[str, Any], repeat: int, steps: int) -> None:
    teacher = toys.cnn_teacher()
    method = Noise(teacher, NoiseConfig(batch_size=8), rng=rng())
    method.repeat = repeat
    config = DistillConfig(visits=100, batch_size=4, num_validation=8, inherit=False, **changes)
    found = within_budget(teacher, toys.student(), config, method)
    assert (found.steps, found.visits) == (steps, None)
    given = within_budget(teacher, toys.student(), config)  # on images that are there
    assert given.steps == 25


def test_minutes_hold_more_steps_the_longer_they_are() -> None:
    teacher, student = toys.cnn_teacher(), toys.seeded_student()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    method = Noise(teacher, NoiseConfig(batch_size=8), rng=rng())
    short, long = (
        within_budget(teacher, student, DistillConfig(minutes=minutes, num_validation=8), method)
        for minutes in (0.05, 5.0)
    )
    assert 1 <= short.steps < long.steps
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert teacher.queries == 0


def test_a_run_of_minutes_goes_on_with_the_steps_that_it_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = toys.cnn_teacher()
    job = DistillJob(
        teacher=TeacherFile(weights="toy"),
        student="toys:student",
        method="noise",
        synthesis=NoiseConfig(batch_size=8),
        distill=DistillConfig(minutes=0.2, batch_size=8, num_validation=16, inherit=False),
        checkpoint_every=0,
    )
    monkeypatch.setattr(budget, "seconds_per_batch", lambda *_: 0.0)

    def a_step_takes(seconds: float) -> None:
        monkeypatch.setattr(budget, "_seconds_per_step", lambda *_: seconds)

    def stop(progress: Progress) -> None:
        if progress.stage == "distill" and progress.done == 5:
            raise KeyboardInterrupt

    a_step_takes(1.0)
    whole = distill(tmp_path / "whole", job, teacher)
    with pytest.raises(KeyboardInterrupt):
        distill(tmp_path / "stopped", job, teacher, on_progress=stop)
    a_step_takes(0.1)
    resumed = distill(tmp_path / "stopped", job, teacher, resume=True)
    results = [read_plain(tmp_path / name / "result.json") for name in ("whole", "stopped")]
    assert [result["steps"] for result in results] == [12, 12]
    same = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)


def test_a_plan_says_which_images_which_start_and_which_training() -> None:
    teacher = toys.cnn_teacher()
    config = DistillConfig(steps=16, num_validation=8)
    drawn = ImagePrograms(teacher, ImageProgramsConfig(batch_size=64), rng=rng())
    student = toys.student()
    start = initialize(teacher, student, config)
    work = work_of(teacher, student, drawn, config)
    assert plan(work, start, "image_programs") == [
        "The images are drawn by image_programs, the default method, to fit the teacher's classes "
        "and BatchNorm statistics: 4,096 before the first step, then 64 new ones every 16 steps.",
        start.reason,
        "It is trained for 16 steps, 3,904 image visits in batches of 256, by kl + l1 toward the "
        "teacher, with adam at 0.005, in float32.",
    ]
    method = Noise(teacher, NoiseConfig(batch_size=32), rng=rng())
    images, *_, training = plan(work_of(teacher, student, method, config), start, "noise")
    assert images == "The images are made by noise, as asked: 32 new ones for each step."
    assert " 512 image visits " in training


def test_memory_grows_with_what_is_kept() -> None:
    teacher = toys.cnn_teacher()

    def estimate(student: nn.Module, **changes: Any) -> int:
        config = DistillConfig(**({"num_validation": 8, "inherit": False} | changes))
        method = Noise(teacher, NoiseConfig(batch_size=256), rng=rng())
        return memory_estimate(work_of(teacher, student, method, config))

    small = estimate(toys.student())
    assert estimate(toys.student(), num_validation=108) == small + 100 * (64 + 4 * 4)  # logits
    parameters = sum(p.numel() for p in toys.student().parameters())
    buffers = sum(b.numel() * b.element_size() for b in toys.student().buffers())
    sgd = estimate(toys.student(), optimizer="sgd")
    assert small - sgd == 4 * parameters + buffers
    assert estimate(toys.SmallCnn(width=12)) > 1.2 * small


def test_the_time_of_a_stage_is_told_once_its_beginning_is_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr("dreamstill.distillation.plan.time.monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "dreamstill")

    def steps(stage: str, total: int, seconds: float) -> Any:
        for done in range(1, total + 1):
            now[0] += seconds
            yield Progress(stage, done, total, {})

    for stage, total, seconds in (
        ("warm up", 100, 9.0),
        ("synthesize", 4, 60.0),
        ("distill", 1000, 0.5),
        ("distill", 30, 0.5),
    ):
        passed = list(with_time_left(steps(stage, total, seconds)))
        assert [step.done for step in passed] == [*range(1, total + 1)]
    assert [record.getMessage() for record in caplog.records] == [
        "Making the images takes about 2 min more, by its start.",  # after the second batch
        "The training takes about 8 min more, by its start.",
    ]


def test_what_is_said_is_printed_unless_only_the_result_is_wanted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("dreamstill")
    level = logger.level
    for quiet in (False, True):
        with Bars(quiet=quiet):
            logging.getLogger("dreamstill.distillation.plan").info("It is %s.", "so")
        assert capsys.readouterr().err == ("" if quiet else "It is so.\n")
        assert logger.level == level


def test_progress_is_shown_while_the_validation_set_is_made() -> None:
    teacher, seen = toys.cnn_teacher(), list[tuple[str, int, int]]()

    def note(step: Progress) -> None:
        seen.append((step.stage, step.done, step.total))

    validation_set(teacher, 300, note)
    assert seen == [("validation images", 256, 300), ("validation images", 300, 300)]
    validation_set(teacher, 300, note)
    assert len(seen) == 2
    config = DistillConfig(steps=1, num_validation=32)
    ds.distill(teacher, toys.student, NoiseConfig(batch_size=8), config, progress=note)
    assert seen[2:] == [
        ("validation images", 32, 32),
        *(("synthesize", 8 * n, 2048) for n in range(1, 257)),
        ("distill", 1, 1),
    ]


@pytest.mark.parametrize(("method", "warned"), [("noise", True), ("image_programs", False)])
def test_images_unlike_the_teachers_are_warned_of(method: str, warned: bool) -> None:
    teacher = ds.load_teacher(TEACHERS / "lenet5_bn_mnist.safetensors")
    config = DistillConfig(steps=1, num_validation=256, prefill=256, fresh_every=8)
    made = ds.distill(
        teacher, "dreamstill.nn.lenet:lenet5_half_bn", method, replace(config, reconstruct=64)
    )
    unlike = [text for text in made.details["warnings"] if "unlike what the teacher was" in text]
    assert bool(unlike) is warned
