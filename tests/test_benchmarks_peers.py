"""Peers run in processes of their own and are measured alike; no peer is installed here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.peers.__main__ import RECORD, Subject, last_line, run_row
from benchmarks.peers.environments import PEERS, python_of
from benchmarks.peers.page import tables
from benchmarks.peers.rows import Row, rows_of
from benchmarks.peers.task import Task

from dreamstill.evaluation import answers
from dreamstill.exporters.formats import export, load_exported
from dreamstill.profiling import count_macs
from toys import SPEC, small_cnn

ROOT = Path(__file__).parents[1]
FAKE = f"""#!{sys.executable}
import json, shutil, sys
task = json.load(open(sys.argv[3]))
assert sys.argv[1:3] == ["-m", "benchmarks.peers.fake"]
print("much ado")
if "fails" in task["options"]:
    sys.exit("ValueError: no such layer")
open(task["out"], "wb").write(open(task["onnx"], "rb").read())
answer = dict(settings=task["options"] | dict(bits=8), versions=dict(fake="1.0"))
json.dump(answer, open(task["out"][:-5] + ".answer.json", "w"))
"""


@pytest.fixture
def python(tmp_path: Path) -> str:
    """A peer that copies what it is given, or fails, in the place of an interpreter."""
    path = tmp_path / "python"
    path.write_text(FAKE)
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A small network that is its own truth."""
    path, x = tmp_path_factory.mktemp("subject") / "float.onnx", SPEC.noise(16)
    export(small_cnn(), path, SPEC)
    task = Task("", "", SPEC.shape, str(path), "", "")
    logits = answers(load_exported(path), SPEC, x)
    return Subject("toy", task, SPEC, x, logits.argmax(1), logits)


def test_a_peer_is_measured_in_its_own_process(python: str, subject: Subject) -> None:
    row = run_row(Row("fake", "fake", {"n": 1}, note="as it is"), subject, python, [], 1)
    assert row["accuracy"] == row["agreement"] == 100
    assert row["bytes"] == Path(subject.task.onnx).stat().st_size
    assert row["settings"] == {"n": 1, "bits": 8}
    assert row["versions"] == {"fake": "1.0"}
    assert row["note"] == "as it is"
    assert 0 <= row["cpu_seconds"] <= row["seconds"] + 0.1
    assert 1 < row["peak_mb"] < 60, "the process that measures is not part of it"


def test_a_pruned_network_has_its_macs(python: str, subject: Subject) -> None:
    row = run_row(Row("fake", "fake", {"task": "prune"}), subject, python, [], 1)
    assert row["macs"] == count_macs(small_cnn(), SPEC)


def test_a_peer_that_fails_has_a_row_with_its_error(python: str, subject: Subject) -> None:
    row = run_row(Row("fake", "fake", {"fails": True}), subject, python, [], 1)
    assert row["error"] == "ValueError: no such layer"
    assert row["settings"] == {"fails": True}
    assert "accuracy" not in row
    assert last_line("\n") == "no message"


def test_the_peak_is_that_of_the_command(tmp_path: Path) -> None:
    def peak(code: str) -> float:
        script = ROOT / "benchmarks" / "peers" / "measured.py"
        command = [sys.executable, "-S", str(script), str(tmp_path / "m"), sys.executable, "-c"]
        subprocess.run([*command, code], check=True)
        return float(json.loads((tmp_path / "m").read_text())["peak"])

    assert 190e6 < peak("bytearray(200_000_000)") - peak("") < 210e6


def test_rows_name_scripts_and_environments_that_there_are() -> None:
    for network in ("resnet20", "efficientnet_lite0"):
        for row in rows_of(network).values():
            assert row.peer in PEERS
            assert (ROOT / "benchmarks" / "peers" / f"{row.script}.py").is_file()
    assert python_of("dreamstill", Path("nowhere")) == sys.executable


def test_the_page_is_what_the_record_says() -> None:
    record = json.loads(RECORD.read_text())
    assert tables(record) in (ROOT / "docs" / "peers.md").read_text()
    for network in ("resnet20", "efficientnet_lite0"):
        named = {f"{network}, {name}" for name in ("floats", *rows_of(network))}
        assert {name for name in record["rows"] if name.startswith(network)} <= named
