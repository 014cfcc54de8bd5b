"""The report: what is recorded is shown, what is not is left out, nothing comes from outside."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamstill.errors import RunError
from dreamstill.report.distill import table_rows, write_report
from dreamstill.report.figures import tile, to_picture
from dreamstill.report.page import read_log

COST = {"parameters": 61706, "macs": 416520, "bytes": 246824}
HALF = {"parameters": 15738, "macs": 133740, "bytes": 62952}
SUMMARY = {
    "teacher": {**COST, "accuracy": 0.9942},
    "student": {**HALF, "accuracy": 0.98312, "agreement": 0.985},
    "noise_baseline": {"accuracy": 0.7},
    "seconds": 131.2,
    "queries": 123456,
    "images": "2,000 real digits",
    "chosen_at_step": 900,
    "validation_agreement": 0.7251,
    "exports": [
        {"path": "/x/student.onnx", "format": "onnx", "bytes": 70000, "max_abs_difference": 2e-6}
    ],
}


def make_run(folder: Path, num_classes: int = 10, shape: tuple[int, ...] = (1, 28, 28)) -> None:
    config = {
        "method": "dafl <script>",
        "student": "a.b:half",
        "teacher": {"weights": "t/lenet.safetensors"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    lines: list[dict[str, Any]] = [
        {"step": i, "loss": 3.0 / i, "seconds": 0.1 * i} for i in range(1, 61)
    ]
    lines[39] |= {"agreement": 0.8, "kl": 0.2, "best": True}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text + '{"step": 61, "lo')
    rng = np.random.default_rng(0)
    np.savez(
        folder / "pictures.npz",
        synthetic_images=rng.integers(0, 256, (3 * num_classes, *shape), np.uint8),
        synthetic_classes=np.repeat(np.arange(num_classes), 3),
        synthetic_mean=rng.random((num_classes, *shape)),
        real_mean=rng.random((num_classes, *shape)),
        class_histogram=rng.integers(1, 50, num_classes),
        teacher_filters=rng.standard_normal((6, shape[0], 5, 5)),
        student_filters=rng.standard_normal((3, shape[0], 5, 5)),
        confusion=rng.integers(0, 50, (num_classes, num_classes)),
    )


@pytest.mark.parametrize(
    ("num_classes", "shape"), [(10, (1, 28, 28)), (5, (3, 40, 24)), (200, (2, 8, 8))]
)
def test_every_record_has_its_section(
    tmp_path: Path, num_classes: int, shape: tuple[int, ...]
) -> None:
    make_run(tmp_path, num_classes, shape)
    page = write_report(tmp_path).read_text()
    for text in (
        "98.31 %",
        "99.42 %",
        "3.9 x",
        "123,456 teacher queries",
        "2.0e-06",
        "step 900",
        "72.5 %",
    ):
        assert text in page
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Exports",
        "Synthetic images",
        "Mean image of each class",
        "First-layer filters",
        "Loss and agreement",
        "Classes of the synthetic set",
        "Confusion on real images",
    ]
    assert page.count('<img src="data:image/png;base64,') == 6
    assert all(alt for alt in re.findall(r'alt="(.*?)"', page))


def test_what_is_absent_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"method": "noise", "student": "package:small"}')
    page = write_report(tmp_path).read_text()
    assert "<h2>" not in page
    assert "<img" not in page


def test_settings_are_escaped_and_nothing_comes_from_outside(tmp_path: Path) -> None:
    make_run(tmp_path)
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert "dafl &lt;script&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "url(" not in page


def test_a_missing_measure_is_a_dash() -> None:
    cells = dict(table_rows({"teacher": COST, "student": HALF}))
    assert cells["Accuracy on real images"] == ["-", "-", "", "-"]
    assert cells["Parameters"] == ["61,706", "15,738", "3.9 x", "-"]


def test_what_it_warned_of_comes_first(tmp_path: Path) -> None:
    make_run(tmp_path)
    warned = {"warnings": ["the teacher gives none"], "chosen_at_step": 0, "steps": 900}
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY | warned))
    page = write_report(tmp_path).read_text()
    assert page.index("the teacher gives none.") < page.index("Distilled without data")
    assert "The student as it started was chosen" in page


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert len(read_log(tmp_path / "log.jsonl")) == 60


@pytest.mark.parametrize("name", ["config.json", "summary.json", "pictures.npz"])
@pytest.mark.parametrize("damage", [b"{", b"", b"[3]", b"\xff"])
def test_a_damaged_file_is_named(name: str, damage: bytes, tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(RunError, match=f"{name} is damaged"):
        write_report(tmp_path)


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path)


def test_it_imports_no_torch() -> None:
    code = "import sys, dreamstill.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pictures() -> None:
    assert to_picture(np.full((2, 1, 1), 0.5)).tolist() == [[[0.5, 0.5, 0.5]]]
    color = np.array([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    assert to_picture(color).tolist() == [[[0.1, 0.2, 0.3]]]
    black = np.zeros((2, 3, 3))
    canvas = tile([[black, black], [black]], gap=1)
    assert canvas.shape == (5, 7, 3)
    assert canvas[:, 3].min() == 1  # the gap
    assert canvas[3:, 4:].min() == 1  # a short row
