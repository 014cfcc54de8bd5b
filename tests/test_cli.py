"""The command line as a user meets it: a network of their own, and every mistake in one line."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

import toys
from dreamstill.cli import main as cli
from dreamstill.cli.parser import parse
from dreamstill.distillation.config import DistillConfig, LossName
from dreamstill.loaders.config import TeacherFile
from dreamstill.pipelines import synthesize as synthesizing
from dreamstill.pipelines.config import DistillJob
from dreamstill.pipelines.synthesize import synthesize
from dreamstill.progress import Progress
from dreamstill.synthesis.presets import PRESETS
from dreamstill.synthesis.registry import METHODS

OWN_NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        )
        self.head = nn.Linear(width * 10 * 6, 5)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))

def big():
    return Net(8)

def small():
    return Net(4)
"""


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A teacher's file with a card beside it."""
    return toys.write_teacher(tmp_path)


def distill(teacher: Path, *more: str, out: str = "run") -> list[str]:
    return [
        *("distill", "--teacher.weights", str(teacher), "--student", "toys:student"),
        *("--out", str(teacher.parent / out), "--json"),
        *("--distill.steps", "4", "--distill.num_validation", "16", "--synthesis.batch_size", "16"),
        *("--distill.buffer_size", "64"),
        *more,
    ]


def test_a_users_own_network_from_file_to_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_network  # type: ignore[import-not-found]

    save_file(own_network.big().state_dict(), tmp_path / "big.safetensors")
    options = [
        *(str(tmp_path / "big.safetensors"), "--factory", "own_network:big"),
        *("--shape", "1,40,24", "--range", "-1,1", "--json"),
    ]
    assert cli.main(["inspect", *options]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["num_classes"] == 5
    assert seen["batch_norm_layers"] == 2
    assert seen["last_linear"] == "head"
    assert "deepinversion" in seen["methods"]
    assert seen["tasks"] == ["distill", "prune", "merge", "factorize", "quantize", "int8", "pack"]

    run = tmp_path / "run"
    settings = tmp_path / "settings.toml"
    settings.write_text("[distill]\nsteps = 999\nnum_validation = 64\nbuffer_size = 100\n")
    arguments = ["--student", "own_network:small", "--out", str(run), "--config", str(settings)]
    arguments += ["--distill.steps", "30", "--synthesis.batch_size", "32"]
    assert cli.main(["distill", *options, *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["student"]["parameters"] < seen["parameters"]
    assert 0 <= result["validation_agreement"] <= 1
    assert result["validation_images"] == 64
    assert 30 * 256 >= result["image_visits"] > 30 * 32  # fresh batches have 32 images
    assert result["precision"] == "float32"
    assert json.loads((run / "config.json").read_text())["distill"]["steps"] == 30
    assert json.loads((run / "config.json").read_text())["distill"]["num_validation"] == 64

    assert cli.main(["export", str(run), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [r["format"] for r in records] == ["onnx", "pt2"]
    session = onnxruntime.InferenceSession(records[0]["path"])
    (logits,) = session.run(None, {"input": np.zeros((3, 1, 40, 24), np.float32)})
    assert logits.shape == (3, 5)

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 1, 40, 24), np.uint8)
    np.savez(tmp_path / "real.npz", x=images, y=np.arange(20) % 5)
    assert cli.main(["evaluate", str(run), "--images", str(tmp_path / "real.npz"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert 0 <= summary["student"]["accuracy"] <= 1
    assert [e["format"] for e in summary["exports"]] == ["onnx", "pt2"]
    runtimes = [e["latency_ms"]["runtime"] for e in summary["exports"]]
    assert runtimes == ["onnxruntime", "PyTorch's torch.export"]
    assert "real.npz" in (run / "report.html").read_text()


def test_a_network_is_measured_and_exported_without_a_run(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, out = teacher.parent / "real.npz", teacher.parent / "files"
    x = np.random.default_rng(0).integers(0, 256, (400, 1, 8, 8), np.uint8)
    known = toys.small_cnn().eval()(toys.SPEC.encode(torch.from_numpy(x))).argmax(1)
    truth = torch.where(torch.arange(400) % 4 == 0, (known + 1) % 4, known)
    np.savez(real, x=x, y=truth.numpy())
    assert cli.main(["export", str(teacher), "--formats", "pt2", "--out", str(out), "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["path"] == str(out / "network.pt2")
    for network in ([str(teacher)], [record["path"], "--mean", "0.5", "--std", "0.25"]):
        assert cli.main(["evaluate", *network, "--images", str(real), "--json"]) == 0
        measured = json.loads(capsys.readouterr().out)
        assert measured["accuracy"] == 0.75
        assert measured["num_images"] == 400
    assert cli.main(["evaluate", str(teacher), "--images", str(real)]) == 0
    assert "75.00 %" in capsys.readouterr().out
    assert cli.main(["export", str(teacher), "--formats", "pt2", "--out", str(out)]) == 2
    assert "network.pt2 exists: choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize("goal", [False, True])
def test_the_run_of_any_command_is_measured_afterwards(
    goal: bool, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, out = teacher.parent / "real.npz", teacher.parent / "run"
    x = np.random.default_rng(0).integers(0, 256, (400, 1, 8, 8), np.uint8)
    np.savez(real, x=x, y=np.arange(400) % 4)
    command = ["compress", "--to", "w4"] if goal else ["quantize"]
    told = [*command, str(teacher), "--num-images", "64", "--out", str(out), "--json"]
    assert cli.main(told) == 0
    before = json.loads(capsys.readouterr().out)
    evaluate = ["evaluate", str(out), "--images", str(real)]
    assert cli.main([*evaluate, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["images"] == "real.npz"
    for one in (measured["teacher"], measured["files" if goal else "stages"][0]):
        assert 0 < one["accuracy"] < 1
    assert measured["stages"][0]["agreement"] == before["stages"][0]["agreement"]
    assert "real.npz" in (out / "report.html").read_text()
    for more, message in (
        (["--mean", "0.5"], "is a run, which knows its network: leave --mean out"),
        (["--baseline", str(out)], "baseline has no effect"),
        (["--device", "cuda"], "device cuda has no effect"),
    ):
        assert cli.main([*evaluate, *more]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["export", str(out)]) == 2
    assert "trained no student: give its network" in capsys.readouterr().err
    (out / "summary.json").unlink()
    assert cli.main(evaluate) == 2
    assert "is not finished: resume the run first" in capsys.readouterr().err


def test_metadata_and_evaluate_take_a_device(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(distill(teacher)) == 0
    real, out = teacher.parent / "real.npz", teacher.parent / "m.safetensors"
    x = np.random.default_rng(0).integers(0, 256, (400, 1, 8, 8), np.uint8)
    np.savez(real, x=x, y=np.arange(400) % 4)
    record = ["metadata", "--teacher.weights", str(teacher), "--kind", "top", "--out", str(out)]
    for command in (record, ["evaluate", str(teacher.parent / "run")]):
        command += ["--images", str(real), "--json", "--device"]
        capsys.readouterr()
        assert cli.main([*command, "abacus"]) == 2
        assert "device 'abacus' is not available" in capsys.readouterr().err
        assert cli.main([*command, "cpu"]) == 0


def test_inspect_warns_of_an_input_that_makes_all_images_one_class(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(teacher)]) == 0
    assert "warning" not in capsys.readouterr().err
    assert cli.main(["inspect", str(teacher), "--std", "9"]) == 0
    assert "check the mean and std of its input" in capsys.readouterr().err


def test_synthesize_writes_images_that_the_teacher_answers(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = teacher.parent / "images"
    arguments = ["synthesize", "--teacher.weights", str(teacher), "--out", str(out), "--json"]
    assert cli.main([*arguments, "--num-images", "50", "--method", "noise"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (out / "images.png").read_bytes().startswith(b"\x89PNG")
    with np.load(out / "images.npz") as archive:
        assert archive["x"].shape == (50, 1, 8, 8)
        assert archive["x"].dtype == np.uint8
        assert np.bincount(archive["y"], minlength=4).tolist() == result["images_per_class"]


def test_metadata_from_the_owner_to_a_student(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = teacher.parent / "images", teacher.parent / "statistics.safetensors"
    weights = ["--teacher.weights", str(teacher), "--json"]
    assert cli.main(["synthesize", *weights, "--out", str(out), "--num-images", "400"]) == 0
    images = str(out / "images.npz")
    assert cli.main(["metadata", *weights, "--images", images, "--out", str(file)]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", *weights, "--images", images]) == 0
    assert json.loads(capsys.readouterr().out)["data_similarity"] > 0
    options = ["--method", "metadata", "--synthesis.file", str(file), "--synthesis.steps", "5"]
    assert cli.main(distill(teacher, *options)) == 0


def test_a_preset_is_the_papers_settings_and_flags_win(teacher: Path) -> None:
    options = ["--method", "dfad", "--preset", "cifar10", "--synthesis.latent", "7"]
    assert cli.main(distill(teacher, *options, "--synthesis.widths", "4,4")) == 0
    settings = json.loads((teacher.parent / "run" / "config.json").read_text())
    assert settings["synthesis"]["latent"] == 7
    assert settings["synthesis"]["lr"] == 1e-3


def job_of(*options: str) -> DistillJob:
    known = ["--teacher.weights", "net.safetensors", "--student", "toys:student"]
    job: DistillJob = parse(["distill", *known, *options]).job
    return job


def test_images_that_are_written_stay_when_their_picture_fails(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthesizing, "draw_classes", stop)
    out = teacher.parent / "stopped"
    arguments = ["synthesize", "--teacher.weights", str(teacher), "--out", str(out)]
    assert cli.main([*arguments, "--num-images", "50"]) == 130
    stopped = "dreamstill: stopped; the same command with --resume goes on\n"
    assert capsys.readouterr().err.endswith(stopped)
    with np.load(out / "images.npz") as made:
        assert made["x"].shape == (50, 1, 8, 8)


@pytest.mark.parametrize(
    ("method", "preset"), [(name, p) for name, presets in PRESETS.items() for p in presets]
)
def test_every_preset_is_a_job(method: str, preset: str) -> None:
    job = job_of("--method", method, "--preset", preset)
    assert job.synthesis == PRESETS[method][preset].synthesis


def test_a_preset_is_of_the_student_too_and_flags_win() -> None:
    options = ["--method", "zskt", "--preset", "svhn", "--distill.lr", "0.5"]
    student = job_of(*options).distill
    assert student.losses == (LossName.KL, LossName.ATTENTION)
    assert student.loss_weights == (0.1, 250.0)  # theirs, whose KL is over classes too
    assert (student.temperature, student.clip_gradient, student.lr) == (1.0, 5.0, 0.5)
    assert student.steps == 500_000
    of_ones_own = job_of(*options, "--losses", "mse").distill
    assert (of_ones_own.loss_weights, of_ones_own.temperature) == (None, 4.0)
    assert of_ones_own.clip_gradient == 5.0
    rdskd = job_of("--method", "rdskd", "--preset", "mnist").distill
    assert (rdskd.losses, rdskd.temperature) == ((LossName.KL,), 10.0)


@pytest.mark.parametrize(
    ("method", "preset", "optimizer", "lr", "course"),
    [
        ("dafl", "mnist", "adam", 2e-3, "constant"),
        ("dafl", "cifar10", "sgd", 0.1, (0.4, 0.8)),
        ("deepinversion", "cifar10", "sgd", 0.1, (0.4, 0.8)),
        ("deepinversion", "adaptive", "sgd", 0.1, (0.4, 0.8)),
        ("zskd", "cifar10", "adam", 1e-3, "constant"),
        ("zskt", "cifar10", "adam", 2e-3, "cosine"),
        ("zskt", "svhn", "adam", 2e-3, "cosine"),
        ("dfad", "mnist", "sgd", 0.01, "constant"),
        ("dfad", "cifar10", "sgd", 0.1, (0.2, 0.4)),
        ("rdskd", "mnist", "adam", 2e-3, "constant"),
        ("rdskd", "svhn", "adam", 2e-3, "constant"),
        ("rdskd", "cifar10", "adam", 2e-3, (0.8,)),
        ("fastdfkd", "cifar10", "sgd", 0.2, "cosine"),
        ("nayer", "cifar10", "sgd", 0.2, "cosine"),
        ("metadata", "mnist", "adam", 2e-3, "constant"),
    ],
)
def test_a_presets_student_has_the_papers_course(
    method: str, preset: str, optimizer: str, lr: float, course: str | tuple[float, ...]
) -> None:
    student = job_of("--method", method, "--preset", preset).distill
    assert (student.optimizer, student.lr, student.warm_up) == (optimizer, lr, 0)
    assert (student.drops or ("cosine" if student.anneal else "constant")) == course


def test_flags_take_the_place_of_what_a_preset_says_beside_them() -> None:
    def student(*flags: str, method: str = "dafl", preset: str = "cifar10") -> DistillConfig:
        return job_of("--method", method, "--preset", preset, *flags).distill

    assert student().drops == (0.4, 0.8)
    assert student("--distill.drops", "").drops == ()
    assert student("--distill.drops", "0.5").drops == (0.5,)
    cosine = student("--distill.anneal", "true")
    assert (cosine.anneal, cosine.drops) == (True, ())
    adam = student("--distill.optimizer", "adam")
    default = DistillConfig()
    assert (adam.lr, adam.weight_decay) == (default.lr, default.weight_decay)
    assert (adam.warm_up, student().warm_up) == (default.warm_up, 0)
    assert student("--distill.drops", "0.5", method="dfad", preset="mnist").anneal
    job = job_of("--method", "dfad", "--preset", "cifar10", "--synthesis.drops", "")
    assert job.synthesis.drops == ()


def test_help_names_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["distill", "--method", "zskt", "--help"])
    assert "flags win: cifar10, svhn" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("flag", ["--losses", "--distill.losses"])
def test_the_transfer_losses_have_a_short_flag(teacher: Path, flag: str) -> None:
    assert cli.main(distill(teacher, flag, "reverse-kl,mse")) == 0
    settings = json.loads((teacher.parent / "run" / "config.json").read_text())
    assert settings["distill"]["losses"] == ["reverse-kl", "mse"]


@pytest.mark.parametrize("method", ["structured_noise", "rdskd", "deepinversion"])
def test_images_that_were_stopped_are_taken_up(teacher: Path, method: str) -> None:
    sizes = {"batch_size": 16, "steps": 3, "generator_steps": 5, "widths": (8, 4), "memory": 40}
    kind = METHODS[method].config
    known = {field.name for field in dataclasses.fields(kind)}
    job = DistillJob(
        teacher=TeacherFile(weights=str(teacher)),
        student="none:none",
        method=method,
        synthesis=kind(**{k: v for k, v in sizes.items() if k in known}),
        checkpoint_every=0.0,
    )
    whole, stopped = teacher.parent / "whole", teacher.parent / "stopped"
    synthesize(whole, toys.images_job(job, 60))
    done = 0

    def stop(progress: Progress) -> None:
        nonlocal done
        done += 1
        if done in (3, 7):
            raise KeyboardInterrupt

    for resume in (False, True):
        with contextlib.suppress(KeyboardInterrupt):
            synthesize(stopped, toys.images_job(job, 60), resume=resume, on_progress=stop)
    assert done == 7 or method != "rdskd"
    if not (stopped / "images.npz").is_file():
        synthesize(stopped, toys.images_job(job, 60), resume=True)
    arrays = [np.load(folder / "images.npz") for folder in (whole, stopped)]
    for name in ("x", "y", "logits"):
        assert np.array_equal(arrays[0][name], arrays[1][name])
    assert not (stopped / "images.pt").exists()


def test_a_preset_may_stand_in_the_file(teacher: Path) -> None:
    config = teacher.parent / "run.toml"
    config.write_text('method = "structured_noise"\npreset = "scenes"\n')
    assert cli.main(distill(teacher, "--config", str(config))) == 0
    settings = json.loads((teacher.parent / "run" / "config.json").read_text())
    assert settings["synthesis"]["shapes"]["scene_share"] == 1.0


def test_help_shows_the_settings_of_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["distill", "--method", "zskd", "--help-all"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--synthesis.betas" in text
    assert "--distill.augment.rotate" in text
    assert "Temperature of the teacher's" in text


def test_help_shows_the_defaults_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["prune", "--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Optimizer steps; at least 0. 0 leaves the student as it starts. [500]" in text


def test_json_is_alone_on_stdout(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys.write_card(teacher.parent, factory="test_cli:chatty")
    assert cli.main(["inspect", "--json", "--teacher.weights", str(teacher)]) == 0
    assert json.loads(capsys.readouterr().out)["num_classes"] == 4


def chatty() -> torch.nn.Module:
    print("building")
    return toys.SmallCnn()


def test_a_run_is_measured_with_its_own_teacher_and_floor(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, real = teacher.parent, teacher.parent / "real.npz"
    np.savez(real, x=np.zeros((8, 1, 8, 8), np.uint8), y=np.arange(8) % 4)
    noise = ["--method", "noise"]
    assert cli.main(distill(teacher)) == 0
    assert cli.main(distill(teacher, *noise, out="floor")) == 0
    assert cli.main(distill(teacher, *noise, "--distill.steps", "3", out="short")) == 0
    evaluate = ["evaluate", str(folder / "run"), "--images", str(real), "--baseline"]
    assert cli.main(distill(teacher, *noise, "--distill.lr", "1e-9", out="slow")) == 0
    assert cli.main(distill(teacher, *noise, "--distill.optimizer", "sgd", out="sgd")) == 0
    for wrong, why in (
        ("run", "is a run of image_programs"),
        ("short", "has another steps: 3"),
        ("slow", "has another lr: 1e-09"),
        ("sgd", "has another optimizer: sgd"),
    ):
        assert cli.main([*evaluate, str(folder / wrong)]) == 2
        assert why in capsys.readouterr().err
    assert cli.main([*evaluate, str(folder / "floor")]) == 0
    measured = json.loads((folder / "run" / "summary.json").read_text())
    assert "accuracy" in measured["noise_baseline"]
    assert cli.main(["distill", "--resume", str(folder / "run")]) == 0  # there is nothing to do
    assert json.loads((folder / "run" / "summary.json").read_text()) == measured
    state = toys.small_cnn().state_dict()
    save_file({name: value + 1 for name, value in state.items()}, teacher)
    assert cli.main(evaluate[:-1]) == 2
    assert "was started with another teacher" in capsys.readouterr().err


def test_a_folder_that_was_there_is_empty_again_after_a_mistake(teacher: Path) -> None:
    folder = teacher.parent / "mine"
    folder.mkdir()
    weights = quadrants(teacher)  # without BatchNorm
    common = ["--teacher.weights", str(weights), "--method", "deepinversion", "--out", str(folder)]
    for command in (["distill", "--student", "toys:quadrants"], ["synthesize"]):
        assert cli.main([*command, *common]) == 2
        assert folder.is_dir()
        assert not any(folder.iterdir())


def test_unknown_formats_are_met_before_a_file_is_written(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(distill(teacher)) == 0
    folder = teacher.parent / "run"
    assert cli.main(["export", str(folder), "--formats", "onnx, pb"]) == 2
    assert "unknown format 'pb'; known: onnx, pt2, pte" in capsys.readouterr().err
    assert not list(folder.glob("student.onnx"))


@pytest.mark.parametrize("name", ["config", "result", "summary", "student", "replay_buffer/buffer"])
@pytest.mark.parametrize("damage", ["{", "[]"])
def test_a_damaged_file_of_a_run_is_named(
    name: str, damage: str, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(distill(teacher)) == 0
    run = teacher.parent / "run"
    (run / f"{name}.json").write_text(damage)
    np.savez(teacher.parent / "real.npz", x=np.zeros((4, 1, 8, 8), np.uint8), y=np.arange(4))
    assert cli.main(["evaluate", str(run), "--images", str(teacher.parent / "real.npz")]) == 2
    assert f"{name}.json is damaged" in capsys.readouterr().err


class Tied(toys.SmallCnn):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__(width=4)
        self.same = self.conv


def test_a_student_whose_layers_share_weights_is_kept(teacher: Path) -> None:
    assert cli.main(distill(teacher, "--student", "test_cli:Tied")) == 0
    assert cli.main(["export", str(teacher.parent / "run"), "--formats", "pt2"]) == 0


def test_a_report_shows_the_classes_that_there_are(tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    save_file(thirty().state_dict(), weights)
    toys.write_card(tmp_path, factory="test_cli:thirty")
    assert cli.main(distill(weights, "--student", "test_cli:thirty")) == 0
    with np.load(tmp_path / "run" / "pictures.npz") as pictures:
        assert set(pictures["synthetic_classes"]) <= set(range(25, 30))


def thirty() -> torch.nn.Module:
    """A network of thirty classes that names the last five alone."""
    network = toys.SmallCnn(num_classes=30)
    with torch.no_grad():
        network.head.bias[:25] = -99
    return network


Break = Callable[[Path], list[str]]


def flags(*more: str) -> Break:
    return lambda teacher: distill(teacher, *more)


def with_card(**changes: object) -> Break:
    def prepare(teacher: Path) -> list[str]:
        toys.write_card(teacher.parent, **changes)
        return distill(teacher)

    return prepare


def with_weights(change: Callable[[Path], object]) -> Break:
    def prepare(teacher: Path) -> list[str]:
        change(teacher)
        return distill(teacher)

    return prepare


def with_state(**changes: torch.Tensor) -> Break:
    return with_weights(lambda path: save_file(toys.small_cnn().state_dict() | changes, path))


def with_toml(text: str) -> Break:
    def prepare(teacher: Path) -> list[str]:
        config = teacher.parent / "settings.toml"
        config.write_text(text)
        return distill(teacher, "--config", str(config))

    return prepare


def occupied(teacher: Path) -> list[str]:
    (teacher.parent / "run").mkdir()
    (teacher.parent / "run" / "mine.txt").write_text("keep me")
    return distill(teacher)


def under_a_file(teacher: Path) -> list[str]:
    (teacher.parent / "file").write_text("")
    return distill(teacher, out="file/run")


BAD: dict[str, tuple[Break, str]] = {
    "no command": (lambda t: [], "no command; known: inspect"),
    "unknown command": (lambda t: ["dream"], "dream"),
    "unknown flag": (flags("--distill.speed", "9"), "--distill.speed"),
    "unknown method": (flags("--method", "magic"), "unknown method 'magic'"),
    "a flag of another method": (flags("--synthesis.betas", "1"), "--synthesis.betas"),
    "adversarial without a student": (
        lambda t: ["synthesize", *distill(t)[1:3], "--out", f"{t}.d", "--method", "dfad"],
        "dfad plays against a student",
    ),
    "mining without a student": (
        lambda t: ["synthesize", *distill(t)[1:3], "--out", f"{t}.d", "--synthesis.mine", "true"],
        "image_programs plays against a student",
    ),
    "a size of replayed batches without replay": (
        flags("--method", "noise", "--distill.batch_size", "9"),
        "set synthesis.batch_size, or distill.fresh_every",
    ),
    "images to replay without replay": (
        flags("--method", "noise", "--distill.prefill", "9"),
        "distill.prefill 9 makes images to replay",
    ),
    "reconstruct on one image": (
        flags("--inherit", "--reconstruct", "1"),
        "reconstruct must be 0 or at least 2; got 1",
    ),
    "reconstruct without inherit": (
        flags("--reconstruct", "7", "--inherit", "false"),
        "7 has no effect without inherit",
    ),
    "images and how many to synthesize": (
        lambda t: [
            *("merge", *distill(t)[1:3], "--out", f"{t}.d"),
            *("--images", "x.npz", "--num-images", "9"),
        ],
        "num_images 9 has no effect beside images: leave it out",
    ),
    "no device of that name": (flags("--device", "meta"), "device 'meta' is not available"),
    "a number that is a text in the card": (with_card(num_classes="4"), "num_classes must be of"),
    "a factory that is a number": (with_card(factory=5), "factory must be of type str; got 5"),
    "unknown preset": (
        flags("--method", "structured_noise", "--preset", "mars"),
        "no preset 'mars'; known: clothes, scenes",
    ),
    "weights of another number": (
        flags("--distill.loss_weights", "1,2,3"),
        "loss_weights must have 2 values",
    ),
    "boundary alone": (flags("--distill.losses", "boundary"), "name a loss beside it"),
    "metadata without a file": (flags("--method", "metadata"), "metadata needs synthesis.file"),
    "metadata of an unknown kind": (
        lambda t: ["metadata", *distill(t)[1:3], "--images", "x.npz", "--kind", "odd"],
        "unknown kind 'odd'",
    ),
    "metadata without images": (
        lambda t: ["metadata", *distill(t)[1:3], "--images", "x.npz", "--out", f"{t}.md"],
        "no images at x.npz",
    ),
    "no teacher": (lambda t: ["inspect"], "give MODEL, a file or a name"),
    "two networks to compress": (
        lambda t: ["compress", str(t), "--to", "int8", "--weights", "a.pt"],
        "--weights 'a.pt': give one",
    ),
    "a switch before the network": (
        lambda t: ["distill", "--baselines", str(t)],
        "--baselines takes true or false: put",
    ),
    "two teachers": (
        lambda t: ["inspect", str(t), "--weights", "a.pt"],
        "--weights 'a.pt': give one",
    ),
    "no student": (lambda t: [*distill(t)[:3], "--out", str(t.parent / "run")], "--student"),
    "no out": (lambda t: [*distill(t)[:5]], "--out"),
    "missing weights": (with_weights(Path.unlink), "no weights at"),
    "an empty path": (flags("--teacher.weights", ""), "no weights at ''"),
    "truncated weights": (
        with_weights(lambda p: p.write_bytes(p.read_bytes()[:200])),
        "not a whole safetensors file",
    ),
    "empty weights": (with_weights(lambda p: p.write_bytes(b"")), "not a whole safetensors"),
    "NaN weights": (
        with_state(**{"head.bias": torch.full((4,), torch.nan)}),
        "head.bias in",
    ),
    "wrong shape": (with_state(**{"head.bias": torch.zeros(7)}), "head.bias is (7,)"),
    "wrong key": (with_state(extra=torch.zeros(1)), "'extra'"),
    "wrong factory": (with_card(factory="toys:absent"), "cannot import"),
    "factory without a colon": (with_card(factory="toys"), "module:function"),
    "factory of something else": (with_card(factory="builtins:dict"), "torch.nn.Module"),
    "0 classes": (with_card(num_classes=0), "at least 2; got 0"),
    "wrong classes": (with_card(num_classes=7), "has 4 classes, not 7"),
    "wrong channels": (with_card(shape=[3, 8, 8], mean=[0.5] * 3, std=[1] * 3), "(3, 8, 8)"),
    "mean of another length": (with_card(mean=[0.5, 0.5]), "one value for each"),
    "zero std": (with_card(std=[0.0]), "std must be above 0"),
    "no shape": (with_card(shape=None), "shape"),
    "empty range": (flags("--teacher.range", "1,1"), "low < high"),
    "card that is not JSON": (
        with_weights(lambda p: p.with_suffix(".json").write_text("{")),
        "not valid json",
    ),
    "missing card": (flags("--teacher.card", "absent.json"), "absent.json"),
    "student of other classes": (flags("--student", "own:net"), "cannot import"),
    "student that does not fit": (
        flags("--student", "dreamstill.nn.lenet:lenet5_half"),
        "does not run on inputs",
    ),
    "negative temperature": (flags("--distill.temperature", "-1"), "above 0; got -1"),
    "NaN temperature": (flags("--distill.temperature", "nan"), "a finite number; got nan"),
    "negative steps": (flags("--distill.steps", "-1"), "steps must be at least 0; got -1"),
    "no steps from a random start": (
        flags("--distill.steps", "0", "--inherit", "false"),
        "or let it inherit",
    ),
    "a word for how to start": (
        flags("--inherit", "maybe"),
        "inherit must be true, false or auto; got 'maybe'",
    ),
    "no steps of a student that cannot inherit": (
        flags("--distill.steps", "0", "--student", "toys:forgetful_student"),
        "is in one of the two networks alone",
    ),
    "words for a number": (flags("--distill.steps", "many"), "'many'"),
    "a fraction for a count": (flags("--distill.steps", "1.5"), "an integer; got '1.5'"),
    "unknown loss": (flags("--distill.losses", "l7"), "relational, similarity; got 'l7'"),
    "a word for a switch": (flags("--distill.anneal", "maybe"), "true or false"),
    "batch of zero": (flags("--synthesis.batch_size", "0"), "batch_size must be at least 1"),
    "negative seed": (flags("--seed", "-1"), "seed must be at least 0"),
    "absent device": (flags("--device", "cuda:77"), "cuda:77"),
    "unknown device": (flags("--device", "abacus"), "abacus"),
    "unknown precision": (
        flags("--precision", "half"),
        "one of auto, float32, bfloat16; got 'half'",
    ),
    "missing TOML": (flags("--config", "absent.toml"), "cannot read absent.toml"),
    "broken TOML": (with_toml("[distill"), "not valid TOML"),
    "unknown setting in TOML": (with_toml("[distill]\nstepz = 1\n"), "distill.stepz"),
    "unknown table in TOML": (
        with_toml("[distil]\nsteps = 1\n"),
        "setting distil (did you mean distill?)",
    ),
    "wrong type in TOML": (with_toml('[distill]\nlr = "fast"\n'), "distill.lr"),
    "a setting of the method in place of a table": (
        lambda t: [
            *("synthesize", *distill(t)[1:3], "--out", f"{t}.d"),
            *with_toml('synthesis = 3\npreset = "clothes"\n')(t)[-2:],
        ],
        "synthesis must be a table of settings; got 3",
    ),
    "a training in place of a table": (
        with_toml('distill = 3\npreset = "clothes"\n'),
        "distill must be a table of settings; got 3",
    ),
    "a device that is no text": (
        lambda t: [
            "inspect",
            *with_toml("device = [1]\n")(t)[1:3],
            "--config",
            f"{t.parent}/settings.toml",
        ],
        "device must be a string",
    ),
    "one image at a time for a student with BatchNorm": (
        flags("--student", "toys:small_cnn", "--synthesis.batch_size", "1"),
        "needs two images or more at once",
    ),
    "an infinite temperature": (
        flags("--distill.temperature", "inf"),
        "temperature must be a finite number; got inf",
    ),
    "one format twice": (
        lambda t: ["int8", *distill(t)[1:3], "--out", f"{t}.d", "--int8.formats", "onnx,onnx"],
        "formats names one twice: onnx, onnx",
    ),
    "a temperature without a use": (
        flags("--losses", "l1", "--distill.temperature", "2"),
        "temperature 2.0 has no effect without kl, reverse-kl or js",
    ),
    "more images than any machine holds": (
        lambda t: [
            *("synthesize", *distill(t)[1:3], "--out", f"{t}.d", "--method", "noise"),
            *("--synthesis.batch_size", "1000000000"),
        ],
        "out of memory",
    ),
    "a method for a recipe that looks at no image": (
        lambda t: [
            *("learn_classes", *distill(t)[1:3], "--out", f"{t}.d", "--new", "x.npz"),
            *("--learn_classes.recipe", "lwf", "--method", "noise"),
        ],
        "method noise has no effect on tasks that look at no image",
    ),
    "deepinversion without BatchNorm": (
        lambda t: [
            *("distill", "--method", "deepinversion", "--student", "toys:quadrants"),
            *("--teacher.weights", str(quadrants(t)), "--out", str(t.parent / "run")),
        ],
        "needs batch_norm",
    ),
    "a flag cut short": (
        lambda t: ["distill", "--meth", "zskd"],
        "--meth (did you mean --method?)",
    ),
    "folder in use": (occupied, "is not empty"),
    "folder under a file": (under_a_file, "cannot make"),
    "resume of nothing": (lambda t: ["distill", "--resume", str(t.parent / "no")], "holds no run"),
    "another setting beside resume": (
        flags("--resume", "run", "--distill.lr", "9"),
        "leave --teacher.weights out",
    ),
    "a method beside resume": (
        lambda t: ["distill", "--resume", "run", "--method", "zskd"],
        "leave --method out",
    ),
    "a setting of the method beside resume": (
        lambda t: ["distill", "--resume", "run", "--synthesis.batch_size", "8"],
        "leave --synthesis.batch_size out",
    ),
    "an unknown format": (
        lambda t: ["int8", *distill(t)[1:3], "--out", f"{t}.d", "--int8.formats", "pb"],
        "unknown format 'pb'; known: onnx, pt2, pte",
    ),
    "fine-tuning that synthesizes": (
        lambda t: ["prune", *distill(t)[1:3], "--out", f"{t}.d", "--prune.finetune.prefill", "9"],
        "unknown argument --prune.finetune.prefill",
    ),
    "a size without inputs": (
        lambda t: [
            *("quantize", *distill(t)[1:3], "--out", f"{t}.d", "--quantize.keep", "0.5"),
            *("--quantize.without_inputs", "true"),
        ],
        "keep and finetune need images",
    ),
    "report of nothing": (lambda t: ["report", str(t.parent / "no")], "holds no run"),
    "export of nothing": (
        lambda t: ["export", str(t.parent / "no")],
        "there is no run and no network at",
    ),
    "export of a network to nowhere": (lambda t: ["export", str(t)], "give --out DIR"),
    "a baseline of a network": (
        lambda t: ["evaluate", str(t), "--images", "x.npz", "--baseline", "no"],
        "baseline has no effect on a network",
    ),
}


def quadrants(teacher: Path) -> Path:
    path = teacher.parent / "quadrants.safetensors"
    save_file(toys.quadrants().state_dict(), path)
    shutil.copy(teacher.with_suffix(".json"), path.with_suffix(".json"))
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | {"factory": "toys:quadrants"}))
    return path


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_clear_line_and_exit_code_2(
    name: str, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, message = BAD[name]
    arguments = prepare(teacher)
    before = sorted(teacher.parent.rglob("*"))
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("dreamstill: ")
    assert message in captured.err
    assert captured.out == ""
    assert sorted(teacher.parent.rglob("*")) == before


def test_a_network_beside_the_user_is_found(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(OWN_NETWORK)
    torch.save({}, tmp_path / "empty.pt")
    command = [
        *(
            sys.executable,
            "-c",
            "import sys; sys.path.remove(''); from dreamstill.cli import main as cli; ",
        ),
        *("inspect", "--teacher.weights", "empty.pt", "--teacher.factory", "beside:big"),
        *("--teacher.shape", "1,40,24", "--teacher.range", "0,1"),
    ]
    command[2] += "sys.exit(cli.main())"  # a console script has no '' on its path
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "which beside:big has" in ran.stderr


def run_as_command(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dreamstill.cli.main", *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a 96 KB file system of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_the_folder_goes(teacher: Path, tiny_disk: Path) -> None:
    arguments = distill(teacher, out="disk/run")
    arguments[arguments.index("--distill.buffer_size") + 1] = "100000"
    result = run_as_command(arguments)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "No space left" in result.stderr
    assert not list(tiny_disk.iterdir())


def test_a_disk_that_fills_up_later_leaves_no_half_written_file(
    teacher: Path, tiny_disk: Path
) -> None:
    result = run_as_command(distill(teacher, "--checkpoint-every", "0", out="disk/run"))
    (tiny_disk / "filler").write_bytes(b"")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert not list(tiny_disk.rglob(".*.tmp"))


def test_a_read_only_folder_is_one_line(teacher: Path, tmp_path: Path) -> None:
    result = run_as_command(distill(teacher, out="/proc/nowhere/run"))
    assert result.returncode == 2
    assert "cannot make" in result.stderr


def test_the_main_job_needs_no_data_set_and_no_network(teacher: Path) -> None:
    """Any socket, and any opened array file that is not the run's own, ends the process."""
    guard = teacher.parent / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'):\n"
        "        raise SystemExit('the network was asked: %r' % (arguments,))\n"
        "    name = str(arguments[0]) if event == 'open' else ''\n"
        "    if name.endswith(('.npz', '.csv', '.gz', '.parquet')) and '/run/' not in name:\n"
        "        raise SystemExit('data was opened: ' + name)\n"
        "sys.addaudithook(watch)\n"
    )
    path = os.pathsep.join([str(guard), str(Path(__file__).parent)])
    result = run_as_command(distill(teacher), PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert (teacher.parent / "run" / "student.safetensors").is_file()
    probe = "import numpy; numpy.load('x.npz')"
    caught = subprocess.run(
        [sys.executable, "-c", probe],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "data was opened" in caught.stderr
