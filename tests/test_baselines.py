"""A student beside itself on clipped noise and on real images, and a run on given images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dreamstill as ds
import toys
from dreamstill.cli import main as cli
from dreamstill.data.images import load_unlabelled
from dreamstill.errors import ConfigError
from dreamstill.loaders.config import TeacherFile
from dreamstill.pipelines.config import DistillJob
from dreamstill.pipelines.distill import distill
from dreamstill.synthesis.config import DaflConfig, ImageProgramsConfig, NoiseConfig

BOTH = ["noise_baseline", "real_data_bound"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a teacher, and real images of it."""
    toys.write_teacher(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "real.npz", x_train=x, x_test=255 - x, y_test=np.arange(40) % 4)
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    return [
        *("distill", "--json", "--teacher.weights", str(folder / "teacher.safetensors")),
        *("--student", "toys:student", "--out", str(folder / "run"), "--distill.steps", "6"),
        *(
            "--num_validation",
            "64",
            "--buffer_size",
            "256",
            "--prefill",
            "64",
            "--reconstruct",
            "32",
        ),
        *("--synthesis.batch_size", "32", *more),
    ]


def result_of(folder: Path, name: str = "") -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((folder / "run" / name / "result.json").read_text())
    return plain


def test_a_student_stands_between_noise_and_real_images(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = str(folder / "real.npz")
    assert cli.main(command(folder, "--baselines", "--bound", real, "--real", real)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["images"] == "real.npz"
    own = result_of(folder)
    for name in BOTH:
        result, shown = result_of(folder, name), summary[name]
        assert (
            result["image_visits"] == shown["image_visits"] == own["image_visits"] == 6 * 256 - 224
        )
        assert result["initialization"] == own["initialization"] == "inherited"
        assert shown["validation_agreement"] == result["validation_agreement"]
        assert 0 <= shown["accuracy"] <= 1
    sources = [result_of(folder, name)["plan"][0] for name in BOTH]
    assert sources[0].startswith("The images are made by noise")
    assert sources[1].startswith("The images are drawn from real.npz")
    buffer = np.load(folder / "run" / "real_data_bound" / "replay_buffer" / "images.npy")[:64]
    trained = {image.tobytes() for image in np.load(real)["x_train"]}
    assert {image.tobytes() for image in buffer} <= trained  # never the test set
    page = (folder / "run" / "report.html").read_text()
    for text in ("<th>noise baseline</th><th>real-data bound</th>", "is the same on real.npz"):
        assert text in page


def test_a_table_shows_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word for word in command(folder, "--baselines") if word != "--json"]) == 0
    printed = capsys.readouterr()
    table = printed.out[printed.out.index("the same student on other images") :].splitlines()
    assert table[1].split() == ["validation", "agreement", "image", "visits"]
    assert [line.split("  ")[0] for line in table[3:5]] == ["noise baseline", "the student"]
    assert [line.split()[-1] for line in table[3:5]] == ["1,312", "1,312"]
    assert "The noise baseline: the same student learns from noise." in printed.err
    assert "noise baseline: distill  loss" in printed.err


def test_baselines_go_on_where_they_were(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command(folder, "--baselines", "--bound", str(folder / "real.npz"))
    assert cli.main(words) == 0
    whole = {name: result_of(folder, name) for name in ("", *BOTH)}
    (folder / "run").rename(folder / "whole")
    done = list[str]()

    def stopped(path: Path, *args: Any, **options: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(Path(path).name)
        return distill(path, *args, **options)

    monkeypatch.setattr("dreamstill.pipelines.jobs.distill", stopped)
    assert cli.main(words) == 130
    monkeypatch.undo()
    assert not (folder / "run" / "real_data_bound").exists()
    assert cli.main(["distill", "--json", "--resume", str(folder / "run")]) == 0
    for name, wanted in whole.items():
        found = result_of(folder, name)
        assert found | {"seconds": 0} == wanted | {"seconds": 0}, name


def test_minutes_are_timed_once_for_a_run_and_its_baseline(folder: Path) -> None:
    words = command(folder, "--baselines", "--minutes", "0.005")
    at = words.index("--distill.steps")
    del words[at : at + 2]
    assert cli.main(words) == 0
    steps = result_of(folder)["steps"]
    assert steps == result_of(folder, "noise_baseline")["steps"] >= 1
    record = json.loads((folder / "run" / "budget.json").read_text())
    assert record == {"steps": steps, "fastdfkd": False}
    (folder / "run").rename(folder / "timed")
    words = command(folder)
    words[words.index("--distill.steps") + 1] = str(steps)
    assert cli.main(words) == 0  # that it was timed leaves no trace
    timed, told = (load_file(folder / name / "student.safetensors") for name in ("timed", "run"))
    assert all(torch.equal(timed[name], value) for name, value in told.items())


def test_a_run_on_given_images(folder: Path) -> None:
    real = str(folder / "real.npz")
    words = command(folder, "--images", real, "--fresh_every", "2")
    assert cli.main(words) == 0
    result = result_of(folder)
    assert result["plan"][0] == (
        "The images are drawn from real.npz, as asked: 64 before the first step, then 32 new ones "
        "every 2 steps."
    )
    assert json.loads((folder / "run" / "summary.json").read_text())["method"] == "real.npz"
    np.savez(real, x=np.zeros((40, 1, 8, 8), np.uint8))
    assert cli.main(["distill", "--json", "--resume", str(folder / "run")]) == 2


def test_training_images_are_taken_before_a_test_set(folder: Path) -> None:
    path, (x, y) = folder / "some.npz", np.zeros((2, 3, 1, 8, 8), np.uint8)
    sets: list[tuple[dict[str, Any], int]] = [
        ({"x": x, "x_train": x + 1, "x_test": y + 2}, 0),
        ({"x_train": x + 1, "x_test": y + 2}, 1),
        ({"x_test": y + 2}, 2),
    ]
    for arrays, value in sets:
        np.savez(path, **arrays)
        assert load_unlabelled(path, toys.SPEC).unique().tolist() == [value]


def job(**changes: Any) -> DistillJob:
    return DistillJob(teacher=TeacherFile(weights="t"), student="a:b", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bound": "real.npz"}, "bound real.npz has no effect without baselines"),
        ({"images": "a.npz", "method": "noise"}, "method noise has no effect beside images"),
        (
            {"images": "a.npz", "synthesis": ImageProgramsConfig(fit=False)},
            "beside images synthesis has no effect, except its batch_size",
        ),
    ],
)
def test_what_has_no_effect_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job(**changes)


def test_the_baselines_differ_in_their_images_alone() -> None:
    assert job().baseline_jobs() == {}
    dafl = job(method="dafl", synthesis=DaflConfig(batch_size=64), baselines=True, bound="r.npz")
    noise, real = dafl.baseline_jobs().values()
    assert noise.synthesis == NoiseConfig(batch_size=64)
    assert (noise.method, noise.images, real.images) == ("noise", None, "r.npz")
    assert noise.distill == real.distill
    assert (noise.distill.fresh_every, noise.distill.prefill) == (1, 0)
    assert not noise.baselines
    slow = job(method="deepinversion", baselines=True).baseline_jobs()["noise_baseline"]
    assert (slow.distill.fresh_every, slow.distill.prefill) == (0, 20_000)


@pytest.mark.parametrize("source", ["method", "images"])
def test_they_are_there_in_python(source: str) -> None:
    x = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8)
    images: Any = x if source == "images" else ImageProgramsConfig(batch_size=32)
    config = ds.DistillConfig(steps=2, prefill=None, num_validation=32, buffer_size=64)
    made = ds.distill(
        toys.cnn_teacher(), toys.student, images, config, baselines=True, bound=255 - x
    )
    for name in BOTH:
        other = made.details[name]
        assert 0 <= other.details["validation_agreement"] <= 1
        assert "inherits" in other.details["plan"][1]
        assert len(other.history) == len(made.history) == 2
        assert other.history != made.history
    assert "warnings" in made.details
    with pytest.raises(ConfigError, match="bound has no effect without baselines"):
        ds.distill(toys.cnn_teacher(), toys.student, images, config, bound=x)
