"""The main job on the embedded teacher and real digits, shorter than the demo."""

import json
from pathlib import Path

import onnxruntime
import torch

from dreamstill.data.images import load_images
from dreamstill.evaluation import accuracy
from dreamstill.pipelines.demo import demo
from dreamstill.pipelines.summary import open_run

ASSETS = Path(__file__).parents[1] / "src" / "dreamstill" / "assets"


def test_the_demo_from_end_to_end(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    demo(run, steps=400)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["teacher"]["accuracy"] >= 0.989
    assert summary["student"]["accuracy"] >= 0.97
    assert summary["student"]["agreement"] >= 0.97
    assert summary["noise_baseline"]["accuracy"] < summary["student"]["accuracy"] - 0.05
    assert summary["seconds"] > 0
    assert summary["queries"] > 400 * 64
    page = (run / "report.html").read_text()
    assert len(page) > 100_000
    assert "inherits its most important channels" in page

    # what is on the device is what was measured
    _, teacher, _ = open_run(run)
    images, labels = load_images(ASSETS / "digits.npz", teacher.input_spec, 10)
    session = onnxruntime.InferenceSession(str(run / "student.onnx"))
    (logits,) = session.run(None, {"input": teacher.input_spec.encode(images).numpy()})
    assert abs(accuracy(torch.from_numpy(logits), labels) - summary["student"]["accuracy"]) < 1e-6
