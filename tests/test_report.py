"""The report: what is recorded is shown, what is not is left out, nothing comes from outside."""

import html
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import toys
from browser import Browser, browsing, find_browser
from dreamstill import report
from dreamstill.cli import main as cli
from dreamstill.config import from_plain, to_plain
from dreamstill.errors import RunError, TeacherError
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.report import write_report
from dreamstill.report.distill import table_rows
from dreamstill.report.figures import tile, to_picture
from dreamstill.report.page import read_log
from dreamstill.report.reproduce import as_toml
from dreamstill.report.verdict import (
    verdict_of_compression,
    verdict_of_continual,
    verdict_of_distill,
)
from dreamstill.synthesis.registry import METHODS

COST: dict[str, Any] = {
    **{"parameters": 61706, "macs": 416520, "bytes": 246824},
    "latency_ms": {"median": 0.4, "low": 0.38, "high": 0.45},
}
HALF: dict[str, Any] = {
    **{"parameters": 15738, "macs": 133740, "bytes": 62952},
    "latency_ms": {"median": 0.2, "low": 0.18, "high": 0.25},
}
SUMMARY = {
    "teacher": {**COST, "accuracy": 0.9942},
    "student": {**HALF, "accuracy": 0.98312, "agreement": 0.985, "validation_agreement": 0.7251},
    "noise_baseline": {"accuracy": 0.7, "validation_agreement": 0.5},
    "plan": ["The images are drawn.", "The student inherits."],
    "memory_estimate": 87_400_000,
    "seconds": 131.2,
    "queries": 123456,
    "images": "2,000 real digits",
    "chosen_at_step": 900,
    "validation_agreement": 0.7251,
    "validation_images": 1024,
    "exports": [
        {
            "path": "/x/student.onnx",
            "format": "onnx",
            "bytes": 70000,
            "max_abs_difference": 2e-6,
            "latency_ms": {"runtime": "onnxruntime", "median": 0.0412, "low": 0.04, "high": 0.05},
        }
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
        "0.041",
        "step 900",
        "72.5 ± 2.7 %",
        "50.0 ± 3.1 %",
        "The images are drawn. The student inherits.",
        "about 87 MB of memory",
    ):
        assert text in page
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Exports",
        "Synthetic images",
        "Mean image of each class",
        "First-layer filters",
        "Training loss",
        "Agreement during training",
        "Classes of the synthetic images",
        "Confusion on real images",
        "Run it again",
    ]
    assert page.count('<img src="data:image/svg+xml,') == 7
    assert all(alt for alt in re.findall(r'alt="(.*?)"', page))


def test_what_is_absent_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"method": "noise", "student": "package:small"}')
    page = write_report(tmp_path).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Run it again"]
    assert "<img" not in page
    assert "There is no result yet" in page


def test_settings_are_escaped_and_nothing_comes_from_outside(tmp_path: Path) -> None:
    make_run(tmp_path)
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert "dafl &lt;script&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert write_report(tmp_path).read_text() == page  # the same every time
    assert "url(" not in page


def test_a_missing_measure_is_a_dash() -> None:
    cells = dict(table_rows({"teacher": COST, "student": {**HALF, "accuracy": 0.9}}))
    assert cells["Accuracy on real images"] == ["-", "90.00 %", ""]
    assert "Agreement with the teacher" not in cells
    assert cells["Parameters"] == ["61,706", "15,738", "3.9 x"]


def test_what_it_warned_of_comes_first(tmp_path: Path) -> None:
    make_run(tmp_path)
    warned = {"warnings": ["the teacher gives none"], "chosen_at_step": 0, "steps": 900}
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY | warned))
    page = write_report(tmp_path).read_text()
    assert page.index("the teacher gives none.") < page.index("The images are drawn")
    assert "The student as it started was selected" in page


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
    assert canvas.shape == (5, 7, 4)
    assert canvas[:2, :3, 3].min() == 1
    assert canvas[:, 3, 3].max() == 0  # the gap
    assert canvas[3:, 4:, 3].max() == 0  # a short row
    assert tile([[black]], columns=2).shape == (2, 8, 4)


# ---- verdicts


def test_a_verdict_on_a_student_says_what_was_measured() -> None:
    assert verdict_of_distill(SUMMARY) == (
        "The student is right on 98.31 % of the real images, the teacher on 99.42 %; it has 3.9 "
        "times fewer parameters and answers 2.0 times faster. Trained on noise, the same student "
        "is right on 70.00 %."
    )
    alike = {"median": 0.42, "low": 0.39, "high": 0.5}  # within the teacher's spread
    unmeasured = {"teacher": COST, "student": {**COST, "latency_ms": alike}}
    measured = {"validation_agreement": 0.7, "validation_images": 100}
    assert verdict_of_distill({**unmeasured, **measured}) == (
        "The student answers with the teacher's class on 70.0 ± 9.0 % of the validation "
        "images; it has as many parameters and is not measurably faster or slower. Accuracy on "
        "real images is unknown: none were given."
    )
    floor = {"noise_baseline": {"validation_agreement": 0.5}}
    bound = {"real_data_bound": {"validation_agreement": 0.9}}
    assert " Trained on real images, the same student agrees on 90.00 %. Accuracy" in (
        verdict_of_distill({**unmeasured, **measured, **floor, **bound})
    )
    assert verdict_of_distill({}) == "There is no result yet: the run is not finished."


def test_a_verdict_on_a_compression_says_what_was_measured() -> None:
    stage = {"task": "pack", "smaller": 38.76}
    assert verdict_of_compression(
        {"teacher": {"accuracy": 0.99}, "stages": [stage | {"accuracy": 0.98}]}
    ) == (
        "After 1 stage the network is 38.8 times smaller; it is right on 98.00 % of the real "
        "images, the teacher on 99.00 %."
    )
    agreed = verdict_of_compression({"teacher": {}, "stages": [{}, stage | {"agreement": 0.9}]})
    assert agreed.startswith("After 2 stages")
    assert agreed.endswith("Accuracy on real images is unknown: none were given.")
    nothing = verdict_of_compression({"teacher": {}, "stages": [{"smaller": None}]})
    assert nothing == "After 1 stage the network: how well it answers was not measured."


def test_a_verdict_on_new_classes_says_what_was_measured() -> None:
    both = {"old_classes": 10, "classes": 11, "accuracy_new": 0.8}
    assert verdict_of_continual(both | {"accuracy_old": 0.9, "accuracy_old_before": 0.95}) == (
        "The network learned 1 new class and is right on 80.00 % of its images; on the images of "
        "the 10 old classes it is right on 90.00 %, before it was on 95.00 %."
    )
    assert verdict_of_continual({"old_classes": 10, "classes": 12}) == (
        "The network learned 2 new classes. How well it still knows the 10 old ones is unknown: "
        "no test image of theirs was given."
    )


# ---- class names


def test_classes_have_their_names(tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    save_file(toys.small_cnn().state_dict(), weights)
    card = {"factory": "toys:small_cnn", "shape": [1, 8, 8], "range": [0, 1]}
    names = ["bee", "cat", "<dog>", "elk"]
    (tmp_path / "teacher.json").write_text(json.dumps(card | {"class_names": names}))
    run = ["--teacher.weights", str(weights), "--student", "toys:student", *SHORT]
    assert cli.main(["distill", *run, "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["class_names"] == names
    assert "bee, cat, &lt;dog&gt;, elk" in (tmp_path / "run" / "report.html").read_text()
    student = TeacherFile(weights=str(tmp_path / "run" / "student.safetensors"))
    assert open_from(student).class_names == tuple(names)
    given = TeacherFile(weights=str(weights), class_names=("a", "b", "c", "d"))
    assert open_from(given).class_names == ("a", "b", "c", "d")
    for odd, message in (
        (names[:3], "one name for each of 4 classes; got 3"),
        ("bee", "a list of strings; got 'bee'"),
        ([1, 2, 3, 4], "a list of strings"),
    ):
        (tmp_path / "teacher.json").write_text(json.dumps(card | {"class_names": odd}))
        with pytest.raises(TeacherError, match=message):
            open_from(TeacherFile(weights=str(weights)))


# ---- the command that repeats a run

SHORT = ["--distill.steps", "4", "--distill.num_validation", "16", "--distill.fresh_every", "2"]


def again(page: Path, out: Path) -> list[str]:
    """Save a page's settings as run.toml and return its command for another folder."""
    text = page.read_text()
    for name in ("command", "settings"):
        assert f'<pre id="{name}">' in text
    command, settings = (
        html.unescape(re.findall(rf'<pre id="{name}">(.*?)</pre>', text, re.DOTALL)[0])
        for name in ("command", "settings")
    )
    Path("run.toml").write_text(settings)
    typed = shlex.split(command.replace("\\\n", ""))
    assert typed[0] == "dreamstill"
    return [word.replace("runs/again", str(out)) for word in typed[1:]]


def make_pages(folder: Path) -> dict[str, Path]:
    """Run each kind of task for a few steps, with real images; return the runs' folders."""
    save_file(toys.small_cnn().state_dict(), folder / "teacher.safetensors")
    card: dict[str, Any] = {"factory": "toys:small_cnn", "shape": [1, 8, 8], "range": [0, 1]}
    card["class_names"] = ["bee", "cat", "a dog of a long name", "elk"]
    (folder / "teacher.json").write_text(json.dumps(card))
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)
    np.savez(folder / "new.npz", x=x, y=4 + np.arange(40) % 2)
    np.savez(folder / "real.npz", x=x, y=np.arange(40) % 4)
    np.savez(folder / "more.npz", x=x, y=np.arange(40) % 6)
    finetune = {"steps": 4, "batch_size": 16, "num_validation": 8}
    stages = [
        {"task": "prune", "keep": 0.7, "rounds": 1, "finetune": None},
        {"task": "quantize", "first_last_bits": None, "finetune": finetune},
        {"task": "int8"},
    ]
    tables = {"num_images": 64, "teacher": {"weights": str(folder / "teacher.safetensors")}}
    (folder / "stages.toml").write_text(as_toml(tables | {"stage": stages}))
    teacher = ["--teacher.weights", str(folder / "teacher.safetensors")]
    real = {name: str(folder / f"{name}.npz") for name in ("new", "real", "more")}
    runs = {name: folder / name for name in ("distill", "compress", "learn_classes")}
    student = ["--student", "toys:student", *SHORT, "--seed", "3"]
    for name, arguments in {
        "distill": [*teacher, *student],
        "compress": [str(folder / "stages.toml"), "--real", real["real"]],
        "learn_classes": [
            *(*teacher, "--new", real["new"], "--real", real["more"], "--num-images", "64"),
            *("--learn_classes.steps", "3"),
        ],
    }.items():
        assert cli.main([name, *arguments, "--out", str(runs[name])]) == 0
    assert cli.main(["evaluate", str(runs["distill"]), "--images", real["real"]]) == 0
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_pages(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("task", ["distill", "compress", "learn_classes"])
def test_the_command_on_a_page_repeats_its_run(
    runs: dict[str, Path], task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, other = runs[task], tmp_path / "other"
    assert cli.main(again(run / "report.html", other)) == 0
    for name in ("config.json", "weights.json", "student.safetensors", "network.safetensors"):
        if (run / name).is_file():
            assert (other / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_every_method_can_be_read_back(method: str) -> None:
    kind = METHODS[method].config
    read = tomllib.loads(as_toml({"synthesis": to_plain(kind())}))
    assert from_plain(kind, read["synthesis"]) == kind()


# ---- what a reader sees


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here: install Debian's chromium, or name one in CHROMIUM")
    with browsing(program, tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
@pytest.mark.parametrize("task", ["distill", "compress", "learn_classes"])
def test_a_page_fits_its_window(
    runs: dict[str, Path], browser: Browser, task: str, width: int, height: int, *, dark: bool
) -> None:
    shown = browser.show(runs[task] / "report.html", width, height, dark=dark)
    assert shown.width <= width
    assert not shown.requests
    assert not shown.errors
    ground = np.asarray(Image.open(BytesIO(shown.picture)).convert("L"))[1, 1]
    assert (ground < 40) if dark else (ground == 255)


def test_figures_follow_the_scheme_of_the_page(
    runs: dict[str, Path], browser: Browser, tmp_path: Path
) -> None:
    (first, *_) = re.findall(r'<img src="(.*?)"', (runs["distill"] / "report.html").read_text())
    page = tmp_path / "figure.html"
    style = ":root { color-scheme: light dark; background: grey }"
    page.write_text(f'<style>{style}</style><img src="{first}">')
    light, dark = (browser.show(page, 800, 400, dark=d).picture for d in (False, True))
    assert light != dark


PRIVATE = r"\b(pools?|judges?|links?|floors?|dreams?|prices?|worth|offers?|chains?)\b"


def test_no_private_word_is_left(runs: dict[str, Path]) -> None:
    for source in Path(report.__file__).parent.glob("*.[ph]*"):
        assert not re.search(PRIVATE, source.read_text(), re.IGNORECASE), source
    for run in runs.values():
        text = re.sub(r'src="data:.*?"', "", (run / "report.html").read_text())
        assert not re.search(PRIVATE, text, re.IGNORECASE)
