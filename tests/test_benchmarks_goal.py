"""Networks are written as their holders have them, and a row says what a goal made of them."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from benchmarks.goal import CASES, Case, measured, written

from dreamstill.cli.parser import parse
from dreamstill.config import from_plain
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from

TEACHERS = Path(__file__).parents[1] / "benchmarks" / "teachers"
WEIGHTS = TEACHERS / "lenet5_bn_mnist.safetensors"
DIGITS = Path(str(files("dreamstill") / "assets" / "digits.npz"))
KINDS = sorted({case.kind for of_network in CASES.values() for case in of_network})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_file_of_each_kind_answers_like_its_network(kind: str, tmp_path: Path) -> None:
    teacher = open_from(TeacherFile(weights=str(WEIGHTS)))
    named = written(Case("lenet5_bn_mnist", "mnist", kind, "half"), teacher, WEIGHTS, tmp_path)
    settings = parse(["inspect", *named]).plain["teacher"]
    opened = open_from(from_plain(TeacherFile, settings))
    assert opened.input_spec == teacher.input_spec
    x = torch.randn(3, *teacher.input_spec.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(opened(x), teacher(x), rtol=1e-3, atol=1e-3)


def test_a_row_has_the_figures_of_the_file_that_was_written() -> None:
    case = Case("lenet5_bn_mnist", "mnist", "safetensors", "int8", ("--num_images=64",))
    row = measured(case, WEIGHTS, DIGITS, 1)
    assert row["recommended"].startswith("int8")
    assert row["goal"] == "kept"
    assert row["bytes"] < row["of the teacher"] / 2
    assert row["lost"] == pytest.approx(row["teacher"] - row["accuracy"], abs=0.011)
    assert row["accuracy"] > 90
