"""Runs that are killed, in short: `python -m benchmarks kills` has all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are of forked processes")
def test_runs_that_are_killed_end_as_those_that_are_not(tmp_path: Path) -> None:
    runs = ["distill, dafl", "synthesize, rdskd", "learn_classes"]
    command = [sys.executable, "-m", "benchmarks.kills", "--out", str(tmp_path / "kills.json")]
    ran = subprocess.run(
        [*command, "--runs", *runs], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = json.loads((tmp_path / "kills.json").read_text())["rows"]
    assert {name: row["kills"] for name, row in rows.items()} == dict(
        zip(runs, (2, 2, 4), strict=True)
    )
    assert {(row["ended"], row["second"]) for row in rows.values()} == {("the same", "refused")}
