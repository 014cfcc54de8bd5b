"""Benchmarks run from their TOML files, and records are whole and honest in form."""

import json
import math
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.__main__ import listing, main, names
from benchmarks.kinds import KINDS, open_kind
from benchmarks.kinds.distill import Distill
from benchmarks.runner import Record, merged, read_config, rows_of, with_new_rows
from benchmarks.score import ranking
from benchmarks.table import NOTES, lines_of, mean_and_spread, page, plain_lines, tables
from safetensors.torch import save_file

from dreamstill.config import from_plain
from dreamstill.distillation.config import DistillConfig
from dreamstill.loaders.factory import build
from dreamstill.nn.seeded import seeded
from dreamstill.synthesis.presets import method_config, student_config

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("*.json"))
DESCRIBED = [path for path in RECORDS if path.stem in names()]
STUDENTS = [path for path in DESCRIBED if "student" in json.loads(path.read_text())]
TINY: dict[str, tuple[str, ...]] = {
    "dafl_mnist": (),
    "inherit_mnist": ("structured_noise", "zskd, inherited", "dafl, inherited"),
    "zskd_curve": ("500 impressions", "noise"),
    "reference_mnist": ("metadata (all)", "dfad after structured noise", "adaptive deepinversion"),
    "compress_lenet5_mnist": ("W8A8, no input", "half the MACs by merging"),
    "pipeline_lenet5": ("teacher",),
    "continual_mnist": ("inversion", "lwf", "joint"),
    "continual_mnist_bn": ("abd on generated",),
    "quantize_resnet20": ("FP32", "W8A8, no input", "W4A4 fine-tuned"),
    "prune_resnet56": ("ResNet-56", "50 % of MACs off, cut"),
    "int8_resnet20": ("int8, onnxruntime",),
    "merge_mlp": ("0.50",),
    "any_mnist_bn": ("inherited", "W4A4"),
}
"""Benchmarks of every kind, with the rows to run."""
SOURCE = {
    "any_teacher": "image_programs",
    "compress": "ours",
    "compress_in_memory": "default",
    "pipeline": "noise",
}
"""The one source of images to run a kind on, beside the cells that have none."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded digits in the place of every data set: enough to see a benchmark run."""
    folder = tmp_path_factory.mktemp("data")
    with np.load(str(files("dreamstill") / "assets" / "digits.npz")) as digits:
        x, y = digits["x"], digits["y"]
    for name in ("mnist", "fashion_mnist", "usps"):
        np.savez(folder / f"{name}.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    x = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2))).repeat(3, axis=1)
    np.savez(folder / "cifar10.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return folder


@pytest.fixture(scope="module")
def resnets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ResNets with random weights, in the place of the independent ones."""
    folder = tmp_path_factory.mktemp("teachers")
    for depth in (20, 56):
        card: dict[str, Any] = {"factory": f"dreamstill.nn.resnet_cifar:resnet{depth}"}
        with seeded(torch.Generator().manual_seed(0)):
            save_file(build(card["factory"]).state_dict(), folder / f"resnet{depth}.safetensors")
        card |= {"shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
        (folder / f"resnet{depth}.json").write_text(json.dumps(card))
    return folder


BUDGETS = ("minutes_cifar10_cnn", "minutes_cifar10_resnet56", "dense_camvid", "attribute_celeba")
"""Benchmarks of students with a budget of their own, and the default's settings."""


def test_every_kind_of_benchmark_is_run_below() -> None:
    assert {read_config(name)["kind"] for name in TINY} == KINDS.keys()


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_benchmark_runs_from_end_to_end(
    name: str, data: Path, resnets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = ROOT / "benchmarks" / "records" / f"{name}.json"
    before, rows = record.read_bytes(), TINY[name]
    options = ["--rows", *rows] if rows else []
    options += ["--teachers", str(resnets)] if "resnet" in name else []
    source = SOURCE.get(read_config(name)["kind"])
    options += ["--sources", source] if source else []
    main([name, "--data", str(data), "--tiny", *options])
    ran = re.findall(rf"^{name} (.+) seed 0 \{{", capsys.readouterr().out, flags=re.M)
    cells = [cell for cell in open_kind(name).cells() if cell.source in (None, source)]
    assert ran == [str(cell) for cell in cells if not rows or cell.row in rows]
    assert record.read_bytes() == before


def test_a_configuration_is_laid_upon_its_bases() -> None:
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": "none"}}) == {"a": {"b": None, "c": 2}}
    config = {
        "defaults": {"steps": 3},
        "templates": {"far": {"steps": 9}, "x": {"lr": 1}},
        "rows": {"x": {"from": "x"}, "y": {"from": "far", "lr": 2}, "z": {"from": "y"}},
        "variants": {"{}, twice": {"of": ["x", "fa*"], "lr": 5}},
    }
    rows = {
        "x": {"steps": 3, "lr": 1},
        "y": {"steps": 9, "lr": 2},
        "z": {"steps": 9, "lr": 2},
        "far, twice": {"steps": 9, "lr": 5},
        "x, twice": {"steps": 3, "lr": 5},
    }
    assert rows_of(config) == rows
    assert rows_of(config | {"only": ["z"]}) == {"z": rows["z"]}


def test_the_list_has_a_sentence_of_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == listing().splitlines()
    assert {path.stem for path in RECORDS} <= {line.split()[0] for line in lines}
    assert all(re.match(r"\w+ +[A-Z\d].+[.?]$|int8|DAFL", line) for line in lines), lines


def test_names_and_files_that_are_absent_are_named_before_any_row_is_run(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mnist.npz").write_bytes((data / "mnist.npz").read_bytes())
    for arguments, message in (
        (["dafl_mnist"], f"there is no {tmp_path / 'usps.npz'}: give --data FOLDER"),
        (["dafl_mnist", "--rows", "dfal"], "unknown row 'dfal'; known: structured_noise; "),
        (["dafl_hinton_mnist"], "hinton_mnist.safetensors: give --teachers FOLDER"),
        (["merge_mlp", "--sources", "x"], "unknown source 'x'"),
        (["compress_lenet5_mnist", "--rows", "W8A8, no input", "--sources", "real"], "none of"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, "--data", str(tmp_path), "--tiny"])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_record_is_named_as_its_file_and_says_where_it_was_made(path: Path) -> None:
    record = json.loads(path.read_text())
    assert record["name"] == path.stem
    assert record["rows"]
    for key in ("torch", "threads", "cpu", "commit"):
        assert record["environment"][key]


@pytest.mark.parametrize("path", DESCRIBED, ids=lambda p: p.stem)
def test_a_record_is_what_its_benchmark_makes(path: Path) -> None:
    record, kind = json.loads(path.read_text()), open_kind(path.stem)
    described = json.loads(json.dumps(kind.described()))
    if "rows" in (settings := record.get("settings", {})):  # it may be older than some of ours
        rows = described["settings"]["rows"]
        described["settings"]["rows"] = {name: rows[name] for name in settings["rows"]}
    assert described == {key: record.get(key, described[key]) for key in described}
    places = {kind.place(cell): cell for cell in kind.cells()}
    for name, row in record["rows"].items():
        cells = [cell for place, cell in places.items() if place[0] == name]
        assert cells, f"{name} is a row of none"
        assert row.get("settings") == kind.settings(cells[0]), f"{name} was run with others"


@pytest.mark.parametrize("path", STUDENTS, ids=lambda p: p.stem)
def test_a_record_of_students_has_baselines_and_whole_runs(path: Path) -> None:
    record = json.loads(path.read_text())
    named = {name.partition(",")[0] for name in record["rows"]}
    assert {"noise", "real"} <= named
    assert "structured_noise" in named or record["name"] in BUDGETS
    for row in record["rows"].values():
        values = [run["accuracy"] for run in row["runs"]]
        assert len(values) in (1, 3)
        assert math.isclose(sum(values) / len(values), row["accuracy_mean"], abs_tol=0.01)
        assert all(run["seconds"] > 0 and run["queries"] > 0 for run in row["runs"])
        assert all(0 <= run["agreement"] <= 100 for run in row["runs"])


def test_baselines_and_bound_have_the_schedule_of_the_benchmark() -> None:
    for kind in (kind for kind in map(open_kind, names()) if isinstance(kind, Distill)):
        schedule = kind.config["defaults"]["distill"]
        if not schedule.get("steps"):
            continue  # see the next test
        plain = from_plain(DistillConfig, schedule | {"prefill": 0, "fresh_every": 1})
        for name in ("structured_noise", "noise", "real"):
            row = kind.rows[name]
            assert row.distill == plain
            assert row.synthesis is None or row.synthesis.batch_size == plain.batch_size


@pytest.mark.parametrize("name", BUDGETS)
def test_baselines_and_bound_have_the_budget_of_the_default(name: str) -> None:
    rows = Distill(read_config(name)).rows
    named = [(row, *row.partition(",")) for row in rows]
    drawn = "default" if "default" in rows else "image_programs"
    compared = [
        (rows[row], rows[f"{drawn}{comma}{rest}"])
        for row, source, comma, rest in named
        if source in ("noise", "real")
    ]
    assert len(compared) >= 2
    for row, default in compared:
        wanted = default.distill
        made = replace(row.distill, prefill=wanted.prefill, fresh_every=wanted.fresh_every)
        assert made == wanted


def test_our_preset_of_dafl_is_the_benchmarks() -> None:
    row = Distill(read_config("dafl_mnist")).rows["dafl"]
    assert row.synthesis == method_config("dafl", preset="ours")
    student = from_plain(DistillConfig, student_config("dafl", preset="ours"))
    assert replace(row.distill, num_validation=student.num_validation) == student


def test_the_default_that_is_timed_is_the_default() -> None:
    rows = Distill(read_config("time_to_dafl")).rows
    defaults = {name: row for name, row in rows.items() if name.startswith("default")}
    assert len(defaults) == 7
    for name, row in defaults.items():
        steps = int(name.split()[-2].replace(",", ""))
        assert row.distill == DistillConfig(steps=steps, inherit="inherited" in name)
        assert row.synthesis == method_config("image_programs")


def test_the_table_is_what_the_records_say() -> None:
    assert page() == (ROOT / "benchmarks" / "README.md").read_text()


def test_a_note_is_beneath_the_table_of_its_record() -> None:
    names = {path.stem for path in RECORDS}
    assert set(NOTES) <= names
    sections = {part.partition("\n")[0]: part for part in tables().split("### ")}
    for name, note in NOTES.items():
        assert sections[name].rstrip().endswith(note)


def test_networks_are_ranked_by_agreement_and_by_accuracy() -> None:
    def cell(*runs: tuple[float, float]) -> dict[str, Any]:
        return {"runs": [{"validation": v, "accuracy": a} for v, a in runs]}

    rows = {
        "inherited": {"real": cell((70, 97)), "noise": cell((50, 40), (60, 45))},
        "pruned": {"noise": cell((80, 95))},
    }
    found = ranking({"rows": rows})
    assert found.networks == 4
    assert math.isclose(found.correlation, 1)
    assert math.isclose(found.with_real, 0.8)  # 1 - 6 * 2 / (4 * 15)
    assert found.first == ["pruned, noise"]
    assert found.worst_first == 95
    assert found.best == 97
    rows["pruned"]["noise"] = cell((80, 95), (80, 90))  # as the user sees it: no accuracy decides
    assert ranking({"rows": rows}).worst_first == 90


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
    name: str, tmp_path: Path, data: Path
) -> None:
    out, name = tmp_path / "record.json", f"compress_{name}"
    made = {"ours": {"runs": [{"accuracy": 9.0, "smaller": 3.0, "latency_ms": 0.1}]}}
    old = {"settings": open_kind(name).described()["settings"]}
    old |= {"rows": {"int8, onnxruntime": made}, "environment": {"commit": "then"}}
    out.write_text(json.dumps(old))
    options = ["--data", str(data), "--out", str(out), "--rows", "FP32, onnxruntime"]
    main([name, *options, "--seeds", "1", "--resume"])
    record = json.loads(out.read_text())
    rows = record["rows"]
    assert list(rows) == ["FP32, onnxruntime", "int8, onnxruntime"]
    (run,) = rows["FP32, onnxruntime"]["ours"]["runs"]
    assert run["accuracy"] > 98
    assert run["smaller"] == pytest.approx(1.0, abs=0.1)
    assert run["latency_ms"] > 0
    assert run["commit"] != record["environment"]["commit"] == "then"
    assert rows["int8, onnxruntime"] == made


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Rows and seeds, in the place of any training."""
    cells: list[tuple[str, int]] = []

    def measure(kind: Distill, cell: Any, seed: int) -> dict[str, float]:
        cells.append((cell.row, seed))
        return {"accuracy": 90.0 + seed, "agreement": 91.0, "seconds": 1.0, "queries": 5}

    monkeypatch.setattr(Distill, "measure", measure)
    return cells


def test_a_benchmark_adds_the_runs_its_record_lacks(
    tmp_path: Path, data: Path, measured: list[tuple[str, int]]
) -> None:
    out = tmp_path / "record.json"
    command = ["dafl_mnist", "--data", str(data), "--out", str(out), "--rows", "noise", "real"]
    main([*command, "--seeds", "1"])
    main([*command, "--seeds", "3", "--resume"])
    assert measured == [(name, seed) for seed in range(3) for name in ("noise", "real")]
    rows = json.loads(out.read_text())["rows"]
    assert [row["accuracy_mean"] for row in rows.values()] == [91.0, 91.0]
    assert [run["accuracy"] for run in rows["real"]["runs"]] == [90.0, 91.0, 92.0]


def test_rows_that_are_outdated_or_of_other_settings_begin_anew(
    tmp_path: Path, data: Path, measured: list[tuple[str, int]]
) -> None:
    out = tmp_path / "record.json"
    command = ["dafl_mnist", "--data", str(data), "--out", str(out), "--seeds", "1"]
    main(command)
    record = json.loads(out.read_text())
    record["rows"]["noise"]["outdated"] = True
    record["rows"]["real"]["settings"]["after"] = 7
    out.write_text(json.dumps(record))
    measured.clear()
    main([*command, "--resume"])
    assert measured == [("noise", 0), ("real", 0)]
    assert "outdated" not in json.loads(out.read_text())["rows"]["noise"]
    out.write_text(json.dumps(record | {"student": "another"}))
    with pytest.raises(SystemExit, match="has another student: give --out FILE"):
        main([*command, "--resume"])


def test_a_record_that_is_older_than_some_rows_goes_on_with_them() -> None:
    kind = open_kind("any_mnist")
    head, old = (json.loads(json.dumps(kind.described())) for _ in range(2))
    del old["settings"]["rows"]["pruned, trained"]
    assert with_new_rows(old, head) == head
    old["settings"]["rows"]["pruned"]["rounds"] = 2  # a setting that has changed stays seen
    assert with_new_rows(old, head)["settings"]["rows"]["pruned"]["rounds"] == 2
    assert with_new_rows({}, head) == {}


def test_rows_of_the_same_settings_are_taken_from_another_record(
    tmp_path: Path, data: Path, measured: list[tuple[str, int]]
) -> None:
    reference, out = ROOT / "benchmarks" / "records" / "reference_mnist.json", tmp_path / "r.json"
    command = ["deepinversion_mnist", "--data", str(data), "--out", str(out)]
    main([*command, "--reuse", str(reference)])
    assert not measured
    rows = json.loads(reference.read_text())["rows"]
    kind = open_kind("deepinversion_mnist")
    wanted = {cell.row: rows[cell.row] for cell in kind.cells()}
    assert json.loads(out.read_text())["rows"] == wanted
    assert Record(out, kind, {}, resume=True).made(kind.cells()[0]) == rows["deepinversion"]
