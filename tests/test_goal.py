"""Goals of compression: what they mean, what is tried for them, and what is chosen."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import dreamstill as ds
import toys
from dreamstill.cli import main as cli
from dreamstill.compression.config import PruneConfig, Target
from dreamstill.config import to_plain
from dreamstill.distillation.config import FinetuneConfig
from dreamstill.errors import ConfigError, RunError, TeacherError
from dreamstill.evaluation import accuracy, agreement, answers
from dreamstill.exporters.formats import load_exported
from dreamstill.files.checkpoints import save_weights
from dreamstill.files.writing import write_json
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.narrower import narrower
from dreamstill.nn.lenet import lenet5
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines import candidates
from dreamstill.pipelines.candidates import Family, best_of, families, share_for
from dreamstill.pipelines.compress import Made, run_stages
from dreamstill.pipelines.config import StageConfig
from dreamstill.pipelines.goal import Goal, GoalJob, parse_goal
from dreamstill.pipelines.pursue import run_goal
from dreamstill.pipelines.search import Prepared, Search
from dreamstill.pipelines.stages import STAGES
from dreamstill.pipelines.summary import read_run
from dreamstill.profiling import count_macs
from dreamstill.report import write_goal_report
from dreamstill.report.model_card import model_card
from dreamstill.report.verdict import verdict_of_goal
from dreamstill.synthesis.validation_set import validation_set
from dreamstill.teacher import Teacher

MNIST = InputSpec(shape=(1, 28, 28), mean=(0.5,), std=(0.5,))


int8 = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None,
    reason="no torchao: pip install 'dreamstill[quantize]'",
)


class WideCnn(nn.Module):
    """Two convolutions of 96 channels: its weights are most of its file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 96, 3, padding=1)
        self.deep = nn.Conv2d(96, 96, 3, padding=1)
        self.head = nn.Linear(96, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deep(self.conv(x).relu()).relu()
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a network with a card beside it."""
    path = tmp_path_factory.mktemp("teacher") / "wide.safetensors"
    with seeded(torch.Generator().manual_seed(0)):
        save_weights(path, WideCnn())
    card = {"factory": "test_goal:WideCnn", **to_plain(toys.SPEC)}
    write_json(path.with_suffix(".json"), card)
    return path


@pytest.fixture(autouse=True)
def few_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pursue", "candidates"):
        monkeypatch.setattr(f"dreamstill.pipelines.{module}.NUM_VALIDATION", 32)


def two_families(teacher: Teacher, job: GoalJob) -> list[Family]:
    return families(teacher, job)[:2]


class Run(NamedTuple):
    """A finished search, and the real images that it was measured on."""

    folder: Path
    summary: dict[str, Any]
    x: torch.Tensor
    y: torch.Tensor


@pytest.fixture(scope="module")
def half(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a search for half of the network, among two families."""
    folder = tmp_path_factory.mktemp("half")
    x, y = toys.SPEC.noise(40), torch.arange(40) % 4
    np.savez(folder / "real.npz", x=x.numpy(), y=y.numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamstill.pipelines.search.families", two_families)
        for module in ("pursue", "candidates"):
            patch.setattr(f"dreamstill.pipelines.{module}.NUM_VALIDATION", 32)
        summary = run_goal(folder / "run", job(weights, "half"), real=folder / "real.npz")
    return Run(folder / "run", summary, x, y)


def job(weights: Path, to: str, **options: Any) -> GoalJob:
    defaults = {"method": "noise", "num_images": 64, "lose_at_most": 100.0, "format": ("pt2",)}
    made: GoalJob = GoalJob(teacher={"weights": str(weights)}, to=to, **defaults | options)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("half", {"macs": 500, "bytes": 2000}),
        ("quarter", {"macs": 250, "bytes": 1000}),
        ("10x", {"bytes": 400}),
        ("2.5x", {"bytes": 1600}),
        ("60KB", {"bytes": 60_000}),
        ("1.5 mb", {"bytes": 1_500_000}),
        ("2KiB", {"bytes": 2048}),
        ("500B", {"bytes": 500}),
        ("int8", {}),
        ("w4", {}),
        ("Half", {"macs": 500, "bytes": 2000}),
        ("INT8", {}),
    ],
)
def test_a_goal_limits_macs_and_bytes(text: str, limits: dict[str, float]) -> None:
    assert parse_goal(text).limits({"macs": 1000, "bytes": 4000}) == pytest.approx(limits)


@pytest.mark.parametrize("text", ["", "third", "1x", "0.5x", "0KB", "-5KB", "500", "int4", "KB"])
def test_a_text_that_is_no_goal_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(ConfigError, match=f"500KB or 1.5MB; got '{text}'"):
        parse_goal(text)


def test_a_goal_in_the_words_of_others_is_answered_with_ours() -> None:
    for text, ours in (("int4", "w4"), ("20000", "20000B"), ("60", "60KB")):
        with pytest.raises(ConfigError, match=f"got '{text}' .did you mean {ours}?"):
            parse_goal(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": ()}, "format must name at least one"),
        ({"format": ("onnx", "onnx")}, "format names one twice"),
        ({"format": ("onnx", "packed")}, "format packed has no effect on half"),
        ({"lose_at_most": 101.0}, "lose_at_most"),
        ({"minutes": 0.0}, "minutes"),
        ({"student": "auto:0.5"}, "student auto:0.5 is tried anyway"),
    ],
)
def test_settings_of_a_goal_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job(Path("net.safetensors"), "half", **options)


def test_the_share_of_parameters_that_fits_leaves_the_rest_of_the_file_alone() -> None:
    network = {"bytes": 1000 + 4 * 500, "parameters": 500}
    assert share_for(2000, network, 4) == 0.5
    assert share_for(500, network, 4) == candidates.LEAST


def test_inherit_takes_the_widest_copy_within_the_share() -> None:
    teacher = Teacher(lenet5(), MNIST)
    width = candidates._width(teacher, 0.5, Target.MACS)
    costs = [count_macs(narrower(teacher, share), MNIST) for share in (width, width + 0.03)]
    assert costs[0] <= 0.5 * count_macs(teacher.module, MNIST) < costs[1]


def test_quick_candidates_are_not_trained_and_later_ones_are() -> None:
    teacher = Teacher(lenet5(), MNIST)
    made = families(teacher, job(Path("x"), "10x", format=("onnx", "packed"), student="toys:x"))
    assert [family.name for family in made if not family.trained] == [
        *("inherit", "prune", "factorize", "merge")
    ]
    for family in made[:4]:
        quick, tuned = (candidates.Candidate((family.make(0.5, n),)) for n in (0, 400))
        assert "steps" not in quick.settings
        assert "400 steps" in tuned.settings
        assert quick.task == family.name


def test_what_meets_the_goal_comes_first_then_agreement_then_kl() -> None:
    def of(agreement: float, kl: float, excess: float = 0.5) -> dict[str, Any]:
        missed = ["bytes"] * (excess > 1)
        values = {"agreement": agreement, "kl": kl, "bytes": 9}
        return values | {"missed": missed, "excess": excess}

    close, far = of(0.999, 0.1), of(0.99, 0.0)
    assert best_of([of(1.0, 0.2), close, far], 1000) is close  # 3 of 1,000 are noise, 10 are not
    assert best_of([of(1.0, 0.0, 2.0), far], 1000) is far
    assert best_of([of(1.0, 0.0, 3.0), near := of(0.5, 2.0, 1.1)], 1000) is near
    assert best_of([first := of(1.0, 0.101), of(1.0, 0.1)], 1000) is first  # the same but for noise


def test_half_keeps_its_limits_and_reports_what_was_measured(weights: Path, half: Run) -> None:
    found = half.summary
    whole, tried = found["teacher"], found["candidates"]
    assert {record["task"] for record in tried} == {"inherit", "prune"}
    best = next(record for record in tried if record["folder"] == found["chosen"])
    assert found["missed"] == []
    assert best["macs"] <= whole["macs"] / 2
    assert best["bytes"] <= whole["bytes"] / 2
    (file,) = found["files"]
    path = half.folder / file["path"]
    assert path.stat().st_size == file["bytes"] == best["bytes"]
    validation = validation_set(ds.load_teacher(weights), 32)
    run = load_exported(path)
    logits = answers(run, toys.SPEC, validation.images)
    assert file["agreement"] == best["agreement"] == agreement(logits, validation.logits)
    right = accuracy(answers(run, toys.SPEC, half.x), half.y)
    assert file["accuracy"] == pytest.approx(right)


@pytest.fixture
def search(weights: Path, tmp_path: Path) -> Search:
    """A search that has made its images, and no candidate."""
    teacher, whole = ds.load_teacher(weights), {"macs": 10**9, "bytes": 10**9, "parameters": 10**6}
    made = Search(tmp_path, job(weights, "half"), teacher, whole, lambda progress: None)
    made.prepared = Prepared(toys.SPEC.noise(64), validation_set(teacher, 32), 0.0, 0.0)
    return made


def test_a_candidate_that_was_killed_is_begun_again_with_other_settings(search: Search) -> None:
    def stage(keep: float) -> StageConfig:
        made: StageConfig = StageConfig(
            task="prune", config=PruneConfig(keep=keep, rounds=1, finetune=None)
        )
        return made

    large = search.attempt(stage(0.9))
    search.records.clear()
    (search.folder / "1-prune" / "result.json").unlink()  # as if it had been killed before
    small = search.attempt(stage(0.3))
    assert large is not None
    assert small is not None
    assert small["macs"] < large["macs"] / 2


def test_a_packed_file_that_is_far_too_large_is_packed_again(search: Search) -> None:
    search.int8 = True
    search.job = replace(search.job, to="20KB", format=("pt2", "packed"))
    search.whole = {**search.whole, "parameters": 30_000}  # so that it begins with too many
    search.adapt(next(f for f in families(search.teacher, search.job) if f.name == "pack"), 4)
    assert {record["task"] for record in search.records} == {"pack"}
    assert len(search.records) > 1


def test_what_the_minutes_left_untried_is_said(half: Run, search: Search) -> None:
    assert "had been tried" not in half.summary["recommendation"]
    assert half.summary["not_tried"] == []
    stopped = half.summary | {"not_tried": ["factorize", "int8"], "images": ""}
    said = verdict_of_goal(stopped)
    assert "The minutes were over before factorize, int8 had been tried: resume with more." in said
    assert said.endswith("Accuracy on real images is unknown: none were given.")
    before = search.not_tried
    search.attempt(StageConfig(task="prune", config=PruneConfig(rounds=1, finetune=None)))
    assert search.not_tried == [name for name in before if name != "prune"]


def test_a_card_says_on_which_images_a_network_was_made(half: Run) -> None:
    assert "without any real data" in model_card(half.summary, "net.onnx")
    card = model_card(half.summary | {"given_images": "mine.npz"}, "net.onnx")
    assert "on the images of mine.npz" in card
    assert "without any real data" not in card


def test_training_that_kept_the_start_is_said(search: Search) -> None:
    tuning = FinetuneConfig(steps=1, batch_size=16, lr=1.0, num_validation=32)
    config = PruneConfig(rounds=2, finetune=tuning)
    record = search.attempt(StageConfig(task="prune", config=config))
    assert record is not None
    assert record["settings"] == "keep 0.5, 2 steps, start kept"


def test_what_was_measured_on_real_images_stays_on_resuming(weights: Path, half: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamstill.pipelines.search.families", two_families)
        assert run_goal(half.folder, job(weights, "half"), resume=True) == half.summary


def test_the_page_and_the_card_say_the_same(half: Run) -> None:
    found, page = half.summary, write_goal_report(half.folder).read_text()
    best = next(c for c in found["candidates"] if c["folder"] == found["chosen"])
    (file,) = found["files"]
    assert "Recommended for half" in page
    assert f"{file['path']} answers" in page or f"{file['path']} is not measurably" in page
    assert all(
        f"<td>{c['bytes']:,}</td><td>{c['macs']:,}</td>" in page for c in found["candidates"]
    )
    card = (half.folder / "model_card.md").read_text()
    assert f"| parameters | {best['parameters']:,} |" in card
    assert f"`{file['path']}` | {file['bytes']:,} |" in card
    assert f'torch.export.load("{file["path"]}")' in card


def test_a_finished_candidate_is_not_run_again(
    weights: Path, half: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_in_the_second(*arguments: Any) -> list[Made]:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_stages(*arguments)

    def facts(summary: dict[str, Any]) -> list[Any]:
        names = ("task", "settings", "bytes", "agreement", "kl")
        return [[record[name] for name in names] for record in summary["candidates"]]

    calls: list[Any] = []
    run, wanted = tmp_path / "run", job(weights, "half")
    monkeypatch.setattr("dreamstill.pipelines.search.families", two_families)
    monkeypatch.setattr("dreamstill.pipelines.search.run_stages", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_goal(run, wanted)
    (first,) = run.glob("candidates/*/result.json")
    before = first.read_bytes()
    found = run_goal(run, replace(wanted, minutes=60.0), resume=True)
    assert first.read_bytes() == before
    assert facts(found) == facts(half.summary)


@int8
def test_int8_is_written_and_measured_in_its_runtime(weights: Path, tmp_path: Path) -> None:
    found = run_goal(tmp_path / "run", job(weights, "int8"))
    assert [record["task"] for record in found["candidates"]] == ["int8", "int8"]
    (file,) = found["files"]
    assert file["path"] == "network.int8.pt2"
    assert file["runtime"] == "PyTorch's torch.export"
    assert file["bytes"] < found["teacher"]["bytes"] / 2


@int8
def test_stages_that_an_earlier_candidate_finished_are_read_back(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(*arguments: Any) -> Any:
        pruned.append(arguments)
        return prune(*arguments)

    def only_prune(teacher: Teacher, job: GoalJob) -> list[Family]:
        return families(teacher, job)[1:2]

    prune, pruned = STAGES["prune"].run, list[Any]()
    monkeypatch.setitem(STAGES, "prune", STAGES["prune"]._replace(run=counted))
    monkeypatch.setattr("dreamstill.pipelines.search.families", only_prune)
    for name, value in (("FAR", 0.0), ("TRIES", 2), ("MOST_STEPS", 0)):
        monkeypatch.setattr(f"dreamstill.pipelines.search.{name}", value)
    monkeypatch.setattr(Goal, "limits", lambda goal, teacher: {"macs": teacher["macs"], "bytes": 1})
    found = run_goal(tmp_path / "run", job(weights, "half"))
    assert [record["task"] for record in found["candidates"]] == ["prune", "prune + int8"]
    assert len(pruned) == 1


def test_a_missed_goal_is_loud(
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dreamstill.pipelines.search.families", lambda *of: families(*of)[:1])
    small = ("--method", "noise", "--num-images", "64", "--lose-at-most", "100", "--format", "pt2")
    out = tmp_path / "run"
    status = cli.main(
        ["compress", str(weights), "--to", "100B", *small, "--minutes", "0.2", "--out", str(out)]
    )
    shown = capsys.readouterr().out
    assert status == 1
    assert "The goal was missed: it has " in shown
    assert "and 100 are allowed" in shown
    assert list(out.glob("network*.pt2"))
    assert "The goal was missed" in (out / "report.html").read_text()


def test_the_command_names_what_is_missing(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ([], "no goal: give --to, such as int8, w4, half, 10x or 500KB"),
        (["--to", "tiny"], "500KB or 1.5MB; got 'tiny'"),
        (["--to", "half", "--format", "exe"], "unknown format 'exe'"),
        (["--to", "int8", "--student", "toys:student"], "has no effect on int8"),
    ):
        out = ["--out", str(tmp_path / "run")]
        assert cli.main(["compress", str(weights), *arguments, *out]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_toml_may_have_the_goal_and_four_bits_are_of_weights(weights: Path, tmp_path: Path) -> None:
    settings = 'to = "w4"\nmethod = "noise"\nnum_images = 64\nlose_at_most = 100\nformat = ["pt2"]'
    (tmp_path / "run.toml").write_text(f'{settings}\n[teacher]\nweights = "{weights}"\n')
    out = tmp_path / "run"
    assert cli.main(["compress", str(tmp_path / "run.toml"), "--out", str(out)]) == 0
    found = json.loads((out / "summary.json").read_text())
    assert found["goal"] == "w4"
    (record,), (file,) = found["candidates"], found["files"]
    assert record["task"] == "quantize"
    assert record["bytes"] < found["teacher"]["bytes"] / 2 < file["bytes"]
    assert file["agreement"] == record["agreement"]  # the file computes with them


@int8
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_closed_network_says_that_only_a_student_of_ones_own_applies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamstill.pipelines.search.MOST_STEPS", 100)
    script = torch.jit.trace(WideCnn().eval(), torch.zeros(2, 1, 8, 8))
    script.save(str(tmp_path / "net.pt"))
    of: dict[str, Any] = {"weights": str(tmp_path / "net.pt"), **to_plain(toys.SPEC)}
    closed: GoalJob = GoalJob(teacher=of, to="half", method="noise", num_images=64)  # type: ignore[arg-type]
    with pytest.raises(TeacherError, match="no task for half applies") as refused:
        run_goal(tmp_path / "run", closed)
    assert "give student module:function" in str(refused.value)
    assert "int8 does not apply: it is TorchScript: open it as .onnx" in str(refused.value)
    assert not (tmp_path / "run").exists()
    own: GoalJob = replace(closed, to="2x", student="toys:SmallCnn", lose_at_most=100.0)
    found = run_goal(tmp_path / "own", own)
    assert {record["task"] for record in found["candidates"]} == {"distill + int8"}
    assert found["missed"] == []


def test_a_black_box_is_refused_before_any_question(tmp_path: Path) -> None:
    asked: list[int] = []

    def answer(images: Any) -> Any:
        asked.append(len(images))
        return images.reshape(len(images), -1)[:, :4]

    box = ds.BlackBox(answer, toys.SPEC, ds.BlackBoxConfig(budget=100))
    before = len(asked)
    with pytest.raises(TeacherError, match=r"a black box has no layers .* distill a student"):
        ds.compress(box, to="half", folder=tmp_path / "run")
    assert len(asked) == before
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_goal_is_no_run_of_distill(half: Run) -> None:
    with pytest.raises(RunError, match="holds no run of distill"):
        read_run(half.folder)


def test_python_writes_the_same_and_refuses_what_has_no_effect(
    weights: Path, tmp_path: Path
) -> None:
    teacher = ds.load_teacher(weights)
    with pytest.raises(ConfigError, match="minutes has no effect without a goal"):
        ds.compress(teacher, "noise", [ds.PruneConfig()], minutes=5)
    with pytest.raises(ConfigError, match="give compress a folder"):
        ds.compress(teacher, to="half")
    with pytest.raises(ConfigError, match="leave stages out"):
        ds.compress(teacher, "noise", [ds.PruneConfig()], to="half", folder=tmp_path / "run")
    np.savez(tmp_path / "x.npz", x=toys.SPEC.noise(64).numpy())
    images, folder = tmp_path / "x.npz", tmp_path / "run"
    made = ds.compress(teacher, images, to="w4", format=["pt2"], lose_at_most=100, folder=folder)
    assert made.details["goal"] == "w4"
    assert made.details["missed"] == []
    assert (tmp_path / "run" / "report.html").is_file()
    with pytest.raises(RunError, match="is not empty"):
        ds.compress(teacher, images, to="w4", folder=folder)


def test_minutes_that_are_over_before_a_candidate_are_refused(
    weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="minutes 1e-06 were over before a candidate was begun"):
        run_goal(tmp_path / "run", job(weights, "half", minutes=1e-6))
