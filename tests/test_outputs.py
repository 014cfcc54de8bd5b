"""Networks of labels, of values and of classes of pixels, beside those of classes of images."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import dreamstill as ds
import toys
from dreamstill.cli import main as cli
from dreamstill.compression.config import Importance
from dreamstill.config import OutputKind
from dreamstill.data.class_coverage import missing_classes
from dreamstill.data.images import load_real
from dreamstill.distillation.distillation_losses import DistillationLoss, Networks
from dreamstill.evaluation import agreement, determinations, divergence, scores
from dreamstill.loaders.teacher_file import TeacherFile, open_from
from dreamstill.output_spec import OutputSpec, decisions
from dreamstill.synthesis.registry import METHODS, missing_capabilities
from dreamstill.synthesis.validation_set import validation_set

LABELS, VALUES, DENSE = OutputKind.LABELS, OutputKind.VALUES, OutputKind.DENSE
KINDS = (LABELS, VALUES, DENSE)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def teacher_of(kind: OutputKind) -> ds.Teacher:
    network = toys.segmenter() if kind is DENSE else toys.small_cnn()
    return ds.Teacher(network, toys.SPEC, outputs=kind)


def student_of(kind: OutputKind) -> nn.Module:
    return toys.half_segmenter() if kind is DENSE else toys.SmallCnn(width=3)


def test_decisions_are_rows_of_logits() -> None:
    labels = torch.tensor([[2.0, -1.0]])
    assert decisions(labels, LABELS).tolist() == [[0, 2], [0, -1]]
    assert decisions(labels, LABELS).softmax(1)[:, 1].tolist() == labels.sigmoid()[0].tolist()
    pixels = torch.arange(12.0).view(1, 3, 2, 2)  # (N, K, H, W)
    assert decisions(pixels, DENSE).tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]


def test_images_are_grouped_by_class_label_or_most_pixels() -> None:
    labels = OutputSpec(2, kind=LABELS)
    outputs = torch.tensor([[3.0, 1.0], [-1.0, 2.0], [-3.0, -1.0]])
    assert labels.group(outputs).tolist() == [0, 1, 2]
    assert labels.groups == ("0", "1", "none")
    assert labels.counts(outputs).tolist() == [1, 2]
    dense = OutputSpec(3, kind=DENSE, size=(1, 4))
    pixels = torch.full((1, 3, 1, 4), -50.0)
    pixels[0, [0, 1, 1, 1], 0, [0, 1, 2, 3]] = 50.0  # a quarter of class 0, the rest of class 1
    assert dense.group(pixels).tolist() == [1]
    assert dense.counts(pixels).tolist() == [1, 1, 0]
    assert dense.probabilities(pixels)[0].tolist() == pytest.approx([0.25, 0.75, 0])
    values = OutputSpec(2, kind=VALUES)
    assert values.group(outputs).tolist() == [0, 0, 0]
    assert values.probabilities(outputs).shape == (3, 0)


def test_labels_are_even_where_each_is_on_half_of_the_images() -> None:
    labels = OutputSpec(2, kind=LABELS)
    assert labels.unevenness(torch.tensor([0.5, 0.5])).item() == pytest.approx(0)
    assert labels.unevenness(torch.tensor([0.5, 1.0])).item() == pytest.approx(0.5)
    assert OutputSpec(2, kind=VALUES).unevenness(torch.zeros(0)).item() == 0


def test_warnings_name_labels_and_pixels_that_no_image_has() -> None:
    counts = torch.tensor([40, 0, 3])
    found = missing_classes(counts, kind=LABELS, num=40)  # that all have label 0 is no fault
    assert found is not None
    assert found.startswith("the teacher gives none of the 40 synthetic images label 1: nothing")
    found = missing_classes(counts, kind=DENSE, num=40)
    assert found is not None
    assert found.startswith("the teacher gives no pixel of the 40 synthetic images class 1:")
    assert missing_classes(torch.tensor([40]), kind=LABELS, num=40) is None
    assert missing_classes(torch.zeros(3), kind=VALUES, num=40) is None


def test_a_value_that_is_missed_does_not_hide_those_that_are_met() -> None:
    wanted = torch.randn(50, 2, generator=rng())
    outputs = wanted.clone()
    outputs[:, 1] = 100.0
    assert agreement(outputs, wanted, VALUES) == pytest.approx(0.5)
    assert scores(outputs, wanted, VALUES)["accuracy"] < -10


def test_scores_against_answers_by_hand() -> None:
    outputs, truth = (
        torch.tensor([[1.0, -1], [2, 1], [-1, 3]]),
        torch.tensor([[1, 0], [0, 1], [0, 1]]),
    )
    found = scores(outputs, truth, LABELS)
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert found["average_precision"] == pytest.approx((1 / 2 + 1) / 2)
    found = scores(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]]), VALUES)
    assert found == {"accuracy": 0.5, "absolute_error": 0.5}
    assert determinations(torch.full((1000, 1), 0.1), torch.full((1000, 1), 0.1)).item() == 1
    pixels = torch.zeros(1, 3, 1, 4)
    pixels[0, [0, 0, 1, 1], 0, [0, 1, 2, 3]] = 1.0  # answers 0 0 1 1
    found = scores(pixels, torch.tensor([[[0, 1, 1, 255]]]), DENSE)
    assert found["accuracy"] == pytest.approx((1 / 2 + 1 / 2) / 2)  # class 2 is nowhere
    assert found["pixel_accuracy"] == pytest.approx(2 / 3)


def test_agreement_and_divergence_against_answers_by_hand() -> None:
    one, two = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 1.0]])
    assert agreement(one, two, LABELS) == 0.5
    p, q = two.sigmoid().double(), one.sigmoid().double()
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean().item()
    assert divergence(one, two, LABELS) == pytest.approx(kl)
    values = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]])
    assert agreement(*values, VALUES) == 0  # R2 is 0
    assert divergence(*values, VALUES) == 0.5
    pixels = torch.randn(2, 3, 4, 4, generator=rng())
    assert agreement(pixels, pixels, DENSE) == 1
    assert divergence(pixels, pixels, DENSE) == pytest.approx(0, abs=1e-6)


def test_the_default_losses_are_means_over_the_decisions() -> None:
    for kind in KINDS:
        teacher, student = teacher_of(kind), student_of(kind).eval()
        images = torch.randn(4, *toys.SPEC.shape, generator=rng())
        loss = DistillationLoss(Networks(teacher, student, 2.0, rng()), ("kl", "l1"))
        with torch.no_grad():
            ours, theirs = student(images), teacher(images)
            if kind is VALUES:
                wanted = 0.5 * (ours - theirs).square().mean()
            else:
                log_ours, log_theirs = (
                    (decisions(x, kind) / 2).log_softmax(1) for x in (ours, theirs)
                )
                wanted = 4 * (log_theirs.exp() * (log_theirs - log_ours)).sum(1).mean()
            wanted = wanted + (ours - theirs).abs().mean()
            assert loss(images).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_what_outputs_say_is_told_by_their_shape_or_by_the_user() -> None:
    dense = ds.Teacher(toys.segmenter(), toys.SPEC)
    assert dense.output_spec == OutputSpec(3, kind=DENSE, size=(8, 8))
    labels, values, classes = (
        ds.Teacher(toys.small_cnn(), toys.SPEC, outputs=kind) for kind in ("labels", "values", None)
    )
    assert len({one.fingerprint for one in (labels, values, classes)}) == 3
    one = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    assert ds.Teacher(one, toys.SPEC, outputs="values").num_classes == 1
    with pytest.raises(ds.TeacherError, match="at least 2 classes; got 1; for one label or value"):
        ds.Teacher(one, toys.SPEC)
    with pytest.raises(ds.TeacherError, match="return what enters the sigmoid"):
        ds.Teacher(nn.Sequential(one, nn.Sigmoid()), toys.SPEC, outputs="labels")
    with pytest.raises(ds.TeacherError, match=r"must return \(N, K, H, W\) logits; got \(4, 1\)"):
        ds.Teacher(one, toys.SPEC, outputs="dense")
    with pytest.raises(ds.ConfigError, match="outputs must be one of classes, labels, values"):
        ds.Teacher(one, toys.SPEC, outputs="boxes")


@pytest.mark.parametrize("kind", KINDS)
def test_methods_that_need_classes_are_refused(kind: OutputKind) -> None:
    teacher = teacher_of(kind)
    able = [name for name in METHODS if not missing_capabilities(name, teacher)]
    assert able == ["image_programs", "noise", "structured_noise", "dfad"]
    with pytest.raises(ds.TeacherError, match="dafl needs classes, which the teacher lacks"):
        ds.synthesize(teacher, "dafl", num_images=4)
    with pytest.raises(ds.TeacherError, match=f"the outputs are {kind}"):
        ds.learn_classes(teacher, None, torch.zeros(1, 1, 8, 8, dtype=torch.uint8), [4])


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_comes_near_its_teacher(kind: OutputKind) -> None:
    teacher, student = teacher_of(kind), student_of(kind)
    config = ds.DistillConfig(
        steps=60, batch_size=32, num_validation=64, inherit=False, prefill=256
    )
    validation = validation_set(teacher, 64)
    inputs = toys.SPEC.encode(validation.images)

    def nearness(network: nn.Module) -> float:
        with torch.no_grad():
            return divergence(network.eval()(inputs), validation.logits, kind)

    before = nearness(student)
    result = ds.distill(teacher, student, "image_programs", config)
    assert nearness(result.model) < before / 2


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_pruned_quantized_and_packed(kind: OutputKind) -> None:
    teacher = teacher_of(kind)
    images = ds.synthesize(teacher, num_images=128)
    inputs = toys.SPEC.encode(images)
    with torch.no_grad():
        wanted = teacher(inputs)
    tune = ds.FinetuneConfig(steps=4, batch_size=16, num_validation=32)
    made = {
        "prune": ds.prune(
            teacher, images, ds.PruneConfig(keep=0.6, importance=Importance.TAYLOR, finetune=tune)
        ),
        "quantize": ds.quantize(
            teacher, images, ds.QuantizeConfig(keep=0.5, activation_bits=8, first_last_bits=None)
        ),
        "pack": ds.pack(teacher, images, ds.PackConfig(keep=0.7, finetune=tune)),
    }
    for task, result in made.items():
        with torch.no_grad():
            outputs = result.model.eval()(inputs)
        assert outputs.shape == wanted.shape, task
        assert agreement(outputs, wanted, kind) > 0.5, task


CARD: dict[str, Any] = {"shape": [1, 8, 8], "mean": [0.5], "std": [0.25]}


def written(folder: Path, kind: OutputKind) -> Path:
    """Write a teacher's file and card, and real images with what the teacher says of them."""
    network = (toys.segmenter() if kind is DENSE else toys.small_cnn()).eval()
    factory = "toys:segmenter" if kind is DENSE else "toys:small_cnn"
    save_file(network.state_dict(), folder / "teacher.safetensors")
    said = {} if kind is DENSE else {"outputs": kind}
    (folder / "teacher.json").write_text(json.dumps(CARD | said | {"factory": factory}))
    x = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=rng())
    with torch.no_grad():
        outputs = network(toys.SPEC.encode(x))
    truth: Tensor = {LABELS: outputs > 0, VALUES: outputs, DENSE: outputs.argmax(1)}[kind]
    np.savez(folder / "real.npz", x=x.numpy(), y=truth.numpy())
    return folder / "teacher.safetensors"


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_leads_from_a_file_to_an_int8_file(
    kind: OutputKind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, out = written(tmp_path, kind), tmp_path / "run"
    student = "toys:half_segmenter" if kind is DENSE else "toys:student"
    real = ["--real", str(tmp_path / "real.npz")]
    made = ["distill", str(teacher), "--student", student, "--steps", "8", "--prefill", "64"]
    made += ["--num-validation", "32", "--out", str(out), *real]
    assert cli.main(made) == 0
    text = capsys.readouterr().out
    title = {LABELS: "accuracy of labels", VALUES: "R2", DENSE: "mean IoU"}[kind]
    assert title in text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["outputs"] == kind
    assert summary["teacher"]["accuracy"] == pytest.approx(1)
    assert 0 < summary["student"]["accuracy"] <= 1
    words = {LABELS: "is right about", VALUES: "explains", DENSE: "has a mean IoU of"}[kind]
    assert f"The student {words}" in (out / "report.html").read_text()
    again = open_from(TeacherFile(weights=str(out / "student.safetensors")))
    assert again.output_spec == open_from(TeacherFile(weights=str(teacher))).output_spec
    assert cli.main(["export", str(out), "--formats", "onnx"]) == 0
    kept = open_from(TeacherFile(weights=str(out / "student.onnx")))
    assert kept.output_spec == again.output_spec  # a file that we write knows what it says
    images = ["--num-images", "64", "--out", str(tmp_path / "int8"), *real]
    assert cli.main(["int8", str(out / "student.safetensors"), "--formats", "onnx", *images]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "int8" / "network.int8.onnx"))
    with np.load(tmp_path / "real.npz") as archive:
        inputs = toys.SPEC.encode(torch.from_numpy(archive["x"]))
    (found,) = session.run(None, {"input": inputs.numpy()})
    with torch.no_grad():
        wanted = again(inputs)
    assert found.shape == tuple(wanted.shape)
    assert agreement(torch.from_numpy(found), wanted, kind) > 0.5


def test_networks_that_return_tables_go_from_a_file_to_an_int8_file(tmp_path: Path) -> None:
    teacher, out = written(tmp_path, DENSE), tmp_path / "run"
    card = tmp_path / "teacher.json"
    card.write_text(card.read_text().replace("toys:segmenter", "toys:table_segmenter"))
    made = ["distill", str(teacher), "--student", "toys:half_table_segmenter", "--steps", "8"]
    made += ["--prefill", "64", "--num-validation", "32", "--out", str(out)]
    assert cli.main([*made, "--real", str(tmp_path / "real.npz")]) == 0
    assert cli.main(["evaluate", str(out), "--images", str(tmp_path / "real.npz")]) == 0
    assert cli.main(["export", str(out), "--formats", "onnx,pt2"]) == 0
    student = str(out / "student.safetensors")
    images = ["--num-images", "64", "--out", str(tmp_path / "int8")]
    assert cli.main(["int8", student, "--formats", "onnx", *images]) == 0
    opened = open_from(TeacherFile(weights=student))
    assert set(opened.module.state_dict()) == set(toys.half_table_segmenter().state_dict())
    session = onnxruntime.InferenceSession(str(out / "student.onnx"))
    inputs = toys.SPEC.encode(toys.SPEC.noise(4))
    (found,) = session.run(None, {"input": inputs.numpy()})
    assert np.allclose(found, opened(inputs).detach(), atol=1e-4)


def test_networks_that_return_tables_are_compressed() -> None:
    teacher = ds.Teacher(toys.table_segmenter(), toys.SPEC)
    assert teacher.output_spec == teacher_of(DENSE).output_spec
    images = ds.synthesize(teacher, num_images=64)
    inputs = toys.SPEC.encode(images)
    tune = ds.FinetuneConfig(steps=4, batch_size=16, num_validation=32)
    made = [
        ds.prune(teacher, images, ds.PruneConfig(keep=0.6, finetune=tune)),
        ds.quantize(teacher, images),
        ds.pack(teacher, images, ds.PackConfig(keep=0.7, finetune=tune)),
        ds.distill(
            teacher, "auto:0.5", images, ds.DistillConfig(steps=2, batch_size=8, num_validation=16)
        ),
    ]
    for result in made:
        assert result.model(inputs).shape == (64, 3, 8, 8)


def test_the_goal_of_half_is_sought_for_classes_of_pixels(tmp_path: Path) -> None:
    teacher = written(tmp_path, DENSE)
    command = ["compress", str(teacher), "--to", "half", "--format", "onnx", "--num-images", "64"]
    command += ["--minutes", "2", "--out", str(tmp_path / "run")]
    assert cli.main([*command, "--real", str(tmp_path / "real.npz")]) in (0, 1)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["outputs"] == "dense"
    assert all("failed" not in record for record in summary["candidates"]), summary["candidates"]
    assert "mean IoU" in (tmp_path / "run" / "model_card.md").read_text()


@pytest.mark.parametrize(
    ("kind", "y", "text"),
    [
        (LABELS, np.zeros(2), r"the labels in .* must be numbers \(2, 3\); got float64 \(2,\)"),
        (LABELS, np.full((2, 3), 2), "must be 0 to 1; got 2"),
        (VALUES, np.full((2, 3), np.nan), "are not all finite"),
        (VALUES, np.array([["a"] * 3] * 2), "must be numbers"),
    ],
)
def test_truth_that_does_not_fit_is_refused(
    kind: OutputKind, y: Any, text: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "real.npz", x=np.zeros((2, 1, 8, 8), np.uint8), y=y)
    with pytest.raises(ds.DataError, match=text):
        load_real(tmp_path / "real.npz", toys.SPEC, OutputSpec(3, kind=kind))


def test_classes_of_pixels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    outputs = OutputSpec(3, kind=DENSE, size=(8, 8))
    for most, text in ((3, "must be 0 to 2, or 255 for none; got 3"), (2, "")):
        y = np.zeros((2, 8, 8), np.uint8)
        y[0, 0, :2] = most, 255
        np.savez(tmp_path / "real.npz", x=np.zeros((2, 1, 8, 8), np.uint8), y=y)
        if text:
            with pytest.raises(ds.DataError, match=text):
                load_real(tmp_path / "real.npz", toys.SPEC, outputs)
    assert load_real(tmp_path / "real.npz", toys.SPEC, outputs)[1].shape == (2, 8, 8)


def test_evaluate_knows_every_kind() -> None:
    x = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=rng())
    for kind in KINDS:
        teacher = teacher_of(kind)
        with torch.no_grad():
            outputs = teacher(toys.SPEC.encode(x))
        truth = {LABELS: outputs > 0, VALUES: outputs, DENSE: outputs.argmax(1)}[kind]
        found = ds.evaluate(teacher.module, x, truth, toys.SPEC, outputs=kind)
        title = {LABELS: "accuracy", VALUES: "r2", DENSE: "mean_iou"}[kind]
        assert found[title] == pytest.approx(1)
        with pytest.raises(ds.DataError, match="given must be"):
            ds.evaluate(teacher.module, x, truth[:, :1], toys.SPEC, outputs=kind)
    assert math.isfinite(found["iou"].nansum())
