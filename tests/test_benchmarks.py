"""Recipes run, and records are whole and honest in form."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted(p.stem for p in (ROOT / "recipes").glob("*_*mnist.py"))
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("*.json"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) == 5


@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_recipe_runs_from_end_to_end(name: str) -> None:
    data = os.environ.get("DREAMSTILL_DATA")
    if not data:
        pytest.skip("set DREAMSTILL_DATA to a folder with mnist.npz and fashion_mnist.npz")
    result = subprocess.run(
        [sys.executable, "-m", f"recipes.{name}", "--data", data, "--tiny"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("accuracy") == 4


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_record_is_what_its_recipe_makes(path: Path) -> None:
    record = json.loads(path.read_text())
    recipe = importlib.import_module(f"recipes.{record['recipe']}").RECIPE
    assert record["recipe"] == path.stem == recipe.name
    assert (record["data"], record["method"]) == (recipe.data, recipe.method)
    assert {"method", "structured_noise", "noise", "real"} == record["rows"].keys()
    for row in record["rows"].values():
        values = [run["accuracy"] for run in row["runs"]]
        assert len(values) == 3, "three seeds"
        assert math.isclose(sum(values) / 3, row["accuracy_mean"], abs_tol=0.01)
        assert all(run["seconds"] > 0 and run["queries"] > 0 for run in row["runs"])
        assert all(0 <= run["agreement"] <= 100 for run in row["runs"])
    for key in ("torch", "threads", "cpu", "commit"):
        assert record["environment"][key]
