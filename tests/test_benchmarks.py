"""Recipes run, and records are whole and honest in form."""

import importlib
import json
import math
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from benchmarks import compress, protocol
from benchmarks.table import NOTES, lines_of, mean_and_spread, page, plain_lines, tables

from dreamstill.config import from_plain, to_plain
from dreamstill.distillation.config import DistillConfig
from dreamstill.synthesis.config import RandomShapes
from dreamstill.synthesis.presets import method_config, student_config

ROOT = Path(__file__).parents[1]
RECIPES = sorted(p.stem for p in (ROOT / "recipes").glob("*_*mnist.py"))
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("*.json"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) == 7


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded digits in the place of every data set: enough to see a recipe run."""
    folder = tmp_path_factory.mktemp("data")
    with np.load(str(files("dreamstill") / "assets" / "digits.npz")) as digits:
        x, y = digits["x"], digits["y"]
    for name in ("mnist", "fashion_mnist", "usps"):
        np.savez(folder / f"{name}.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_recipe_runs_from_end_to_end(name: str, data: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"recipes.{name}", "--data", str(data), "--tiny"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = re.findall(rf"{name} (.+) seed 0 .*'accuracy': [\d.]+", result.stdout)
    assert rows == list(importlib.import_module(f"recipes.{name}").BENCHMARK.rows)
    assert {"structured_noise", "noise", "real"} < set(rows)


def test_data_that_is_absent_is_named_before_any_row_is_run(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mnist.npz").write_bytes((data / "mnist.npz").read_bytes())
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path), "--tiny"])
    with pytest.raises(SystemExit):
        protocol.main(importlib.import_module("recipes.dafl_mnist").BENCHMARK)
    assert f"no data at {tmp_path / 'usps.npz'}" in capsys.readouterr().err


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_record_is_named_as_its_file_and_says_where_it_was_made(path: Path) -> None:
    record = json.loads(path.read_text())
    assert record["name"] == path.stem
    assert record["rows"]
    for key in ("torch", "threads", "cpu", "commit"):
        assert record["environment"][key]


@pytest.mark.parametrize("path", [p for p in RECORDS if "student" in json.loads(p.read_text())])
def test_a_record_of_the_protocol_is_what_its_benchmark_makes(path: Path) -> None:
    record = json.loads(path.read_text())
    room = "recipes" if path.stem in RECIPES else "benchmarks"
    benchmark = importlib.import_module(f"{room}.{record['name']}").BENCHMARK
    assert (record["data"], record["student"]) == (benchmark.data, benchmark.student)
    assert record["published"] == benchmark.published
    assert {"structured_noise", "noise", "real"} <= record["rows"].keys() <= benchmark.rows.keys()
    for name, row in record["rows"].items():
        assert row["settings"] == to_plain(benchmark.rows[name]), f"{name} was run with others"
        values = [run["accuracy"] for run in row["runs"]]
        assert len(values) == 3 or (len(values) == 1 and room == "benchmarks"), "three seeds"
        assert math.isclose(sum(values) / len(values), row["accuracy_mean"], abs_tol=0.01)
        assert all(run["seconds"] > 0 and run["queries"] > 0 for run in row["runs"])
        assert all(0 <= run["agreement"] <= 100 for run in row["runs"])


def test_our_preset_of_dafl_is_the_recipes() -> None:
    row = importlib.import_module("recipes.dafl_mnist").BENCHMARK.rows["dafl"]
    assert row.synthesis == method_config("dafl", preset="ours")
    student = from_plain(DistillConfig, student_config("dafl", preset="ours"))
    assert row.distill == student


def test_the_table_is_what_the_records_say() -> None:
    assert page() == (ROOT / "benchmarks" / "README.md").read_text()


def test_a_note_is_beneath_the_table_of_its_record() -> None:
    names = {path.stem for path in RECORDS}
    assert set(NOTES) <= names
    sections = {part.partition("\n")[0]: part for part in tables().split("### ")}
    for name, note in NOTES.items():
        assert sections[name].rstrip().endswith(note)


def test_table_lines_carry_mean_and_spread() -> None:
    row = {
        "accuracy_mean": 98.125,
        "accuracy_std": 0.1,
        "agreement_mean": 98.4,
        "seconds_mean": 61.2,
        "queries": 1234,
    }
    better = row | {"accuracy_mean": 98.9}
    older = row | {"accuracy_mean": 97.0, "outdated": True}
    rows = {"dafl": row, "real": better, "zskt": older}
    record = {"rows": rows, "published": {"DAFL": 98.2}}
    assert lines_of(record) == [
        "| real-data bound | 98.90 ± 0.10 | 98.40 | 61 | 1,234 |",
        "| dafl | 98.12 ± 0.10 | 98.40 | 61 | 1,234 |",
        "| zskt † | 97.00 ± 0.10 | 98.40 | 61 | 1,234 |",
        "| published: DAFL | 98.20 | | | |",
    ]
    assert mean_and_spread(row | {"accuracy_std": None}) == "98.12 (1 seed)"


def test_what_ran_in_its_own_runtime_has_a_latency() -> None:
    def source(*latencies: float) -> dict[str, object]:
        runs = [{"latency_ms": latency} for latency in latencies]
        return {"accuracy_mean": 99.0, "accuracy_std": 0.1, "smaller": 3.2, "runs": runs}

    rows = {
        "FP32, onnxruntime": {"ours": source(0.3)},
        "int8, onnxruntime": {"ours": source(0.1, 0.2), "real": source(0.4)},
        "W4A4": {"ours": source(5.0), "real": source(5.0)},  # simulated
    }
    cell = "99.00 ± 0.10, 3.2x"
    assert plain_lines(rows) == [
        "| | ours | real | latency ms |",
        "|---|---|---|---|",
        f"| FP32, onnxruntime | {cell} |  | 0.3 |",
        f"| int8, onnxruntime | {cell} | {cell} | 0.2 |",
        f"| W4A4 | {cell} | {cell} |  |",
    ]


@pytest.mark.parametrize("name", ["lenet5_mnist", "lenet5_bn_mnist"])
def test_whole_networks_stand_beside_their_int8_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    out = tmp_path / "record.json"
    made = {"ours": {"runs": [{"accuracy": 9.0, "smaller": 3.0, "latency_ms": 0.1}]}}
    sources = (*compress.SOURCES, *(compress.WITHIN if "bn" in name else ()))
    config = compress.settings_of(sources, RandomShapes())
    old = {"settings": config, "rows": {"int8, onnxruntime": made}}
    out.write_text(json.dumps(old | {"environment": {"commit": "then"}}))
    options = ["--data", str(data), "--out", str(out), "--rows", "FP32, onnxruntime"]
    monkeypatch.setattr(sys, "argv", ["x", name, *options, "--seeds", "1", "--resume"])
    compress.main()
    record = json.loads(out.read_text())
    rows = record["rows"]
    assert list(rows) == ["FP32, onnxruntime", "int8, onnxruntime"]
    (run,) = rows["FP32, onnxruntime"]["ours"]["runs"]
    assert run["accuracy"] > 98
    assert run["smaller"] == pytest.approx(1.0, abs=0.1)
    assert run["latency_ms"] > 0
    assert run["commit"] != record["environment"]["commit"] == "then"
    assert rows["int8, onnxruntime"] == made


def test_a_benchmark_adds_the_runs_its_record_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    made: list[tuple[str, int]] = []

    def measure(
        benchmark: object, name: str, weights: Path, data: Path, seed: int, num_test: int | None
    ) -> object:
        assert num_test is None
        made.append((name, seed))
        return {"accuracy": 90.0 + seed, "agreement": 91.0, "seconds": 1.0, "queries": 5}

    monkeypatch.setattr(protocol, "measure", measure)
    out = tmp_path / "record.json"
    for seeds, resume in (("1", []), ("3", ["--resume"])):
        options = ["--data", str(data), "--out", str(out), "--rows", "noise", "real"]
        monkeypatch.setattr(sys, "argv", ["x", *options, "--seeds", seeds, *resume])
        protocol.main(importlib.import_module("recipes.dafl_mnist").BENCHMARK)
    assert made == [(n, s) for ss in ((0,), (1, 2)) for n in ("noise", "real") for s in ss]
    rows = json.loads(out.read_text())["rows"]
    assert [row["accuracy_mean"] for row in rows.values()] == [91.0, 91.0]
    assert [run["accuracy"] for run in rows["real"]["runs"]] == [90.0, 91.0, 92.0]
