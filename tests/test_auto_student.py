"""Students that are their teacher with a share of every width."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import dreamstill as ds
import toys
from dreamstill.config import to_plain
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.weight_inheritance import inherit
from dreamstill.errors import ConfigError, RunError, TeacherError
from dreamstill.files.checkpoints import save_weights
from dreamstill.files.writing import write_json
from dreamstill.graph.config import kept_share
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.narrower import load_narrower, narrower
from dreamstill.loaders.torchscript import TorchScript
from dreamstill.nn.lenet import lenet5, lenet5_half
from dreamstill.nn.resnet_cifar import resnet20
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.config import DistillJob
from dreamstill.pipelines.distill import open_student
from dreamstill.pipelines.jobs import distill_and_report
from dreamstill.pipelines.summary import export_run, open_run
from dreamstill.teacher import Teacher

MNIST = InputSpec(shape=(1, 28, 28), mean=(0.5,), std=(0.5,))
COLOR = InputSpec(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    "student", ["auto:0", "auto:1", "auto:1.5", "auto:-0.5", "auto:x", "auto:"]
)
def test_a_share_outside_0_and_1_is_refused_by_value(student: str) -> None:
    with pytest.raises(ConfigError, match=r"auto:0\.5, .* got 'auto:"):
        kept_share(student)


def test_every_width_is_multiplied_and_the_logits_stay() -> None:
    teacher = Teacher(lenet5(), MNIST)
    assert shapes(narrower(teacher, 0.5)) == shapes(lenet5_half())
    tenth = shapes(narrower(teacher, 0.1))
    assert tenth["features.0.weight"] == (1, 1, 5, 5)  # at least one channel
    assert tenth["classifier.2.weight"] == (10, 8)


def test_weights_are_random_and_drawn_from_the_rng() -> None:
    teacher = Teacher(lenet5(), MNIST)
    first, again, other = (open_student("auto:0.5", teacher, rng(seed)) for seed in (0, 0, 1))
    name = "features.3.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert first.state_dict()[name].abs().max() <= 75**-0.5  # torch's bound of 3 x 5 x 5 inputs
    trained = teacher.module.state_dict()[name]
    assert not torch.isin(first.state_dict()[name], trained).any()


def test_batch_norm_starts_fresh() -> None:
    network = toys.SmallCnn()
    nn.init.constant_(network.norm.weight, 3.0)
    assert network.norm.running_mean is not None
    network.norm.running_mean.fill_(2.0)
    student = narrower(Teacher(network, toys.SPEC), 0.5)
    norm = student.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert torch.equal(norm.weight, torch.ones(3))
    assert norm.running_mean is not None
    assert torch.equal(norm.running_mean, torch.zeros(3))


@pytest.mark.parametrize("network", [toys.MobileNet, toys.EfficientNet, toys.ResNeXt])
def test_layers_with_groups_and_sums_are_followed_and_inherit(network: type[nn.Module]) -> None:
    with seeded(rng()):
        teacher = Teacher(network(), COLOR)
    student = narrower(teacher, 0.5)
    layers = {name: shape for name, shape in shapes(student).items() if "head" not in name}
    whole = shapes(teacher.module)
    assert all(2 * shape[0] == whole[name][0] for name, shape in layers.items() if shape)
    assert inherit(teacher.module, student, COLOR)


def test_what_surrounds_a_shuffle_keeps_its_width_and_the_rest_is_narrower_and_inherits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dreamstill")
    with seeded(rng()):
        teacher = Teacher(toys.ShuffleNet(), COLOR)
    student = narrower(teacher, 0.5)
    assert "keep their width: stem, units.0.3, units.1.3 and 1 more" in caplog.text
    found = shapes(student)
    assert found["units.1.2.weight"] == (4, 1, 3, 3)
    assert found["top.weight"] == (8, 16, 1, 1)
    assert inherit(teacher.module, student, COLOR)


def test_a_convolution_that_makes_the_logits_keeps_its_classes() -> None:
    with seeded(rng()):
        teacher = Teacher(toys.SqueezeNet(), COLOR)
    student = narrower(teacher, 0.5)
    assert shapes(student)["head.0.weight"] == (4, 16, 1, 1)
    assert Teacher(student, COLOR, role="student").num_classes == 4
    assert inherit(teacher.module, student, COLOR)


def test_layers_that_padding_joins_keep_their_width_and_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dreamstill")
    with seeded(rng()):
        teacher = Teacher(resnet20(), COLOR)
    found = shapes(narrower(teacher, 0.5))
    assert found["layer2.1.conv1.weight"] == (16, 32, 3, 3)
    assert found["layer2.1.conv2.weight"] == (32, 16, 3, 3)
    assert "keep their width: conv1, layer1.0.conv2, layer1.1.conv2 and 7 more" in caplog.text


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_closed_network_has_no_narrower_copy() -> None:
    script = torch.jit.trace(toys.SmallCnn().eval(), torch.zeros(2, 1, 8, 8))
    with pytest.raises(TeacherError, match="TorchScript has no narrower copy"):
        narrower(Teacher(TorchScript(script), toys.SPEC), 0.5)


def run(tmp_path: Path) -> tuple[Path, DistillJob]:
    with seeded(rng()):
        save_weights(tmp_path / "teacher.safetensors", toys.SmallCnn())
    card = {"factory": "toys:SmallCnn", **to_plain(toys.SPEC)}
    write_json(tmp_path / "teacher.json", card)
    job = DistillJob(
        teacher=TeacherFile(weights=str(tmp_path / "teacher.safetensors")),
        student="auto:0.5",
        method="noise",
        distill=DistillConfig(steps=2, batch_size=8, num_validation=8, reconstruct=8),
        synthesis={"batch_size": 8},
    )
    distill_and_report(tmp_path / "run", job, on_progress=lambda step: None)
    return tmp_path / "run", job


def test_a_run_is_opened_resumed_and_exported_again(tmp_path: Path) -> None:
    folder, job = run(tmp_path)
    _, teacher, student = open_run(folder)
    assert shapes(student)["conv.weight"] == (3, 1, 3, 3)
    distill_and_report(folder, job, resume=True, on_progress=lambda step: None)
    assert export_run(folder, formats=("pt2",))[0]["max_abs_difference"] < 1e-5
    again = ds.load_teacher(folder / "student.safetensors")
    inputs = toys.SPEC.encode(toys.SPEC.noise(4))
    assert torch.equal(again.module(inputs), student(inputs))
    with pytest.raises(TeacherError, match=r"conv\.weight is \(3, .* auto:0\.9 of this teacher"):
        load_narrower(teacher, "auto:0.9", folder / "student.safetensors")


def test_a_card_of_another_student_is_refused(tmp_path: Path) -> None:
    folder, _ = run(tmp_path)
    card = json.loads((folder / "student.json").read_text())
    write_json(folder / "student.json", card | {"student": "auto:0.9"})
    with pytest.raises(RunError, match=r"another student than auto:0\.5"):
        open_run(folder)
    card["teacher"]["weights"] = str(folder / "student.safetensors")
    write_json(folder / "student.json", card)
    with pytest.raises(TeacherError, match="names the file itself as its teacher"):
        ds.load_teacher(folder / "student.safetensors")


def test_distill_in_python_starts_from_the_teachers_channels() -> None:
    with seeded(rng()):
        teacher = Teacher(toys.SmallCnn(), toys.SPEC)
    images = toys.SPEC.noise(16)
    config = DistillConfig(steps=0, reconstruct=0, num_validation=8)
    made = ds.distill(teacher, "auto:0.5", images, config).model.state_dict()["conv.weight"]
    whole = teacher.module.state_dict()["conv.weight"]
    assert made.shape == (3, 1, 3, 3)
    assert all(any(torch.equal(filters, one) for one in whole) for filters in made)
