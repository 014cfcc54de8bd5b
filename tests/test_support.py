"""The support matrix in the documentation is what runs on small networks show."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "support_matrix.py"


@pytest.mark.filterwarnings("ignore")
def test_the_support_matrix_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("support_matrix", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fresh = module.written(module.matrix())
    assert module.PAGE.read_text() == fresh, f"run python {SCRIPT.relative_to(SCRIPT.parents[1])}"
