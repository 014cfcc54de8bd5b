"""A part of what `python -m benchmarks bad_inputs` runs in full."""

from pathlib import Path

from benchmarks.bad_cases import make_good
from benchmarks.bad_inputs import all_cases, check


def test_bad_inputs_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    good = make_good(tmp_path, exports=False)
    names = [case.name for case in all_cases(good)]
    assert len(set(names)) == len(names) > 3000
    counts, short = check(good, every=31, damaged=400)
    assert short == []
    assert counts["bad inputs"] > 100
