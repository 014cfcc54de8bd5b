"""What a person sees of a command: progress that a file can hold, and numbers in words."""

import logging
import os
from pathlib import Path

import pytest

import toys
from dreamstill.cli import main as cli
from dreamstill.cli.terminal import (
    Bars,
    print_compression,
    print_rows,
    print_summary,
)
from dreamstill.progress import Progress

LATENCY = {"median": 0.51234, "low": 0.5, "high": 0.6, "runtime": "PyTorch"}
NETWORK = {"parameters": 61706, "macs": 416520, "bytes": 246824, "latency_ms": LATENCY}
SUMMARY = {
    "method": "noise",
    "images": "",
    "teacher": NETWORK,
    "student": NETWORK,
    "seconds": 61.4,
    "queries": 12345,
    "steps": 2000,
    "chosen_at_step": 0,
    "warnings": [],
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("dreamstill.cli.terminal.time.monotonic", lambda: now[0])
    return now


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_file_is_told_every_tenth_with_the_time_left(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with Bars(quiet=False) as bars:
        for done in range(1, 2001):
            clock[0] += 0.01
            bars(Progress("distill", done, 2000, {"loss": 0.5}))
        for _ in range(2):  # a stage may come again
            for done in (64, 128):
                bars(Progress("synthesize", done, 128, {}))
    told = lines(capsys)
    assert len(told) == 10 + 4
    assert told[0] == "distill  loss 0.500  200 of 2,000 (10%), 18 s left"
    assert told[9] == "distill  loss 0.500  2,000 of 2,000 (100%), took 20 s"
    assert told[11] == told[13] == "synthesize  128 of 128 (100%), took 0 s"


def test_a_file_is_told_of_a_slow_stage_every_half_minute(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with Bars(quiet=False) as bars:
        for done in range(1, 21):
            clock[0] += 10.0
            bars(Progress("synthesize", done, 10_000, {}))
    assert len(lines(capsys)) == 6
    with Bars(quiet=True) as bars:
        bars(Progress("synthesize", 1, 1, {}))
    assert not lines(capsys)


@pytest.mark.parametrize("live", [True, False])
def test_a_warning_is_one_line_also_above_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    if live:
        monkeypatch.setenv("FORCE_COLOR", "1")
    text = "the teacher gives none of the [64] images classes 1, 3: " + 200 * "x"
    with Bars(quiet=False) as bars:
        bars(Progress("synthesize", 1, 8, {}))
        logging.getLogger("dreamstill.pipelines.compress").warning("%s", text)
    assert f"dreamstill: warning: {text}" in capsys.readouterr().err
    assert bars not in logging.getLogger("dreamstill").handlers


def test_numbers_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    files = [{"path": "network.onnx", "bytes": 252493, "max_abs_difference": 8.949544280767441e-05}]
    print_rows("x", {"data_similarity": 8.949544280767441e-05, "files": files, "last": None})
    shown = capsys.readouterr().out
    assert "8.95e-05" in shown
    assert "252,493" in shown
    assert not {"{", "[", "'", "None"} & set(shown.split())
    assert "8949544" not in shown
    network = {"bytes": 252493, "file_bytes": 252493, "smaller": 1.0, "parameters": 1, "macs": 1}
    known = {"accuracy_old_before": 0.98765432, "accuracy_old": 0.5, "accuracy_new": 1.0}
    stage = network | {"task": "learn_classes", "old_classes": 4, "classes": 6, "files": files}
    summary = {"runtime": "onnxruntime", "teacher": network, "network": ["network.onnx"]}
    print_compression(summary | {"stages": [stage | known]}, Path("run"))
    shown = capsys.readouterr().out
    assert "98.77 %" in shown
    assert "2 new classes beside 4 old ones" in shown
    assert "network.onnx, 252,493 bytes" in shown
    assert "{" not in shown


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (0, "none of the 2,000 steps improved on the start, which was kept"),
        (900, "the student of step 900 of 2,000 was chosen"),
    ],
)
def test_which_student_was_chosen_is_said(
    capsys: pytest.CaptureFixture[str], step: int, wanted: str
) -> None:
    print_summary(SUMMARY | {"chosen_at_step": step}, Path("run"))
    shown = capsys.readouterr().out
    assert wanted in shown
    assert "latency in PyTorch, ms" in shown
    assert "0.512" in shown


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_of_a_run_have_the_modes_that_the_user_gives_files(
    tmp_path: Path, umask: int
) -> None:
    weights = toys.write_teacher(tmp_path)
    command = ["distill", "--teacher.weights", str(weights), "--student", "toys:student", "--json"]
    command += [
        "--distill.steps",
        "1",
        "--distill.num_validation",
        "16",
        "--out",
        str(tmp_path / "run"),
    ]
    before = os.umask(umask)
    try:
        assert cli.main(command) == 0
        assert cli.main(["export", str(tmp_path / "run"), "--json"]) == 0
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


@pytest.mark.parametrize(("width", "num_tables"), [(100, 1), (80, 2), (60, 2)])
def test_a_table_of_stages_fits_the_terminal(
    width: int, num_tables: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    network = {
        **{"bytes": 44672123, "file_bytes": 44672123, "smaller": 10.2, "latency_ms": LATENCY},
        **{"parameters": 11689512, "macs": 60814073, "agreement": 0.9831, "accuracy": 1.0},
    }
    tasks = ("distill", "factorize", "pack")
    stages = {"stages": [network | {"task": task} for task in tasks], "network": ["network.onnx"]}
    print_compression({"runtime": "onnxruntime", "teacher": network} | stages, Path("run"))
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= width
    values = "44,672,123 10.2 x 11,689,512 60,814,073 0.512 98.31 % 100.00 %"
    for task in ("teacher", *tasks):
        rows = [line.removeprefix(task) for line in printed if line.startswith(f"{task} ")]
        assert " ".join(" ".join(rows).split()) == values
        assert len(rows) == num_tables
