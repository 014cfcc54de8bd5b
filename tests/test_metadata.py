"""What the teacher's owner records, and that images are fitted to it."""

import errno
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import toys
from dreamstill.data.images import load_images
from dreamstill.errors import ConfigError, DataError, RunError, TeacherError
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.nn.seeded import seeded
from dreamstill.synthesis.activation_statistics import (
    Kind,
    activations,
    graph_basis,
    load_metadata,
    record_metadata,
)
from dreamstill.synthesis.config import MetadataConfig
from dreamstill.synthesis.registry import open_synthesizer
from dreamstill.teacher import Teacher


def quadrant_images(num: int) -> torch.Tensor:
    """uint8 (num, 1, 8, 8) with one bright quadrant each, classes in turn."""
    images = torch.randint(0, 60, (num, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    for index, image in enumerate(images):
        row, column = divmod(index % 4, 2)
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 150
    return images.to(torch.uint8)


def structured_images(teacher: Teacher) -> torch.Tensor:
    """uint8 (400, 1, 8, 8), as many of every class."""
    synthesizer = open_synthesizer(
        "structured_noise",
        teacher,
        toys.structured(batch_size=400, oversample=10),
        rng=torch.Generator().manual_seed(0),
    )
    return teacher.input_spec.decode(synthesizer.next_batch().images)


def test_the_record_holds_each_classs_mean_and_covariance(tmp_path: Path) -> None:
    teacher, images = toys.quadrant_teacher(), quadrant_images(200)
    metadata = record_metadata(teacher, images, tmp_path / "m.safetensors", kind=Kind.ALL)
    (view,) = metadata.views  # what leaves the head is the logits
    assert view.layers == ("logits",)
    logits = teacher(teacher.input_spec.encode(images))
    ones = logits[torch.arange(200) % 4 == 1]
    torch.testing.assert_close(view.mean[1], ones.mean(0))
    assert view.root is not None
    torch.testing.assert_close(view.root[1] @ view.root[1].T, torch.cov(ones.T), atol=1e-4, rtol=0)
    again = load_metadata(tmp_path / "m.safetensors", teacher)
    assert again.kind is Kind.ALL
    torch.testing.assert_close(again.views[0].root, view.root)


def test_samples_have_the_recorded_moments(tmp_path: Path) -> None:
    teacher = toys.quadrant_teacher()
    metadata = record_metadata(teacher, quadrant_images(200), tmp_path / "m.safetensors")
    view = metadata.views[0]
    drawn = view.sample(torch.full((20000,), 2), torch.Generator().manual_seed(0))
    assert view.root is not None
    torch.testing.assert_close(drawn.mean(0), view.mean[2], atol=0.02, rtol=0)
    wanted = view.root[2] @ view.root[2].T
    torch.testing.assert_close(torch.cov(drawn.T), wanted, atol=0.05, rtol=0.05)


def lenet_and_digits() -> tuple[Teacher, Tensor]:
    """The embedded LeNet-5 and uint8 (2000, 1, 28, 28) digits."""
    with as_file(files("dreamstill") / "assets") as folder:
        teacher = open_from(TeacherFile(weights=str(folder / "lenet5_mnist.safetensors")))
        return teacher, load_images(folder / "digits.npz", teacher.input_spec, 10)[0]


@pytest.mark.parametrize("kind", [Kind.ALL, Kind.SPECTRAL, Kind.SPECTRAL_PAIRS])
def test_as_much_is_drawn_at_zero_as_the_relu_leaves_there(kind: Kind, tmp_path: Path) -> None:
    teacher, images = lenet_and_digits()
    views = record_metadata(teacher, images, tmp_path / "m.safetensors", kind=kind).views
    recorded, _ = activations(teacher, teacher.input_spec.encode(images))
    classes = recorded["logits"].argmax(1)
    for view in views:
        drawn = view.sample(classes, torch.Generator().manual_seed(0))[:, view.rectified]
        real = view.read(recorded)[:, view.rectified]
        assert (view.name == "logits") == (not view.rectified.any())
        if view.rectified.any():
            shares = [(values == 0).float().mean().item() for values in (drawn, real)]
            assert shares[0] == pytest.approx(shares[1], abs=0.03)


class Unit(nn.Module):
    """One activation that is N(-1, 1) on images of noise; classes go by another pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.unit, self.head = nn.Linear(63, 1), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.unit.weight.fill_(63**-0.5)
            self.unit.bias.fill_(-1.0)
            self.head.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        logits: Tensor = self.head(torch.cat([self.unit(x[:, 1:]).relu(), x[:, :1]], 1))
        return logits


@pytest.mark.parametrize("largest_root", [512, 0])
def test_a_unit_that_is_seldom_above_zero_is_drawn_as_seldom(
    largest_root: int, tmp_path: Path
) -> None:
    teacher, path = Teacher(Unit(), toys.SPEC), tmp_path / "m.safetensors"
    noise = torch.rand(20_000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    images = (255 * (0.5 + 0.25 * 12**0.5 * noise)).round().to(torch.uint8)
    record_metadata(teacher, images, path, largest_root=largest_root)
    view = next(v for v in load_metadata(path, teacher).views if v.layers == ("unit",))
    drawn = view.sample(torch.arange(20_000) % 2, torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(0.083, abs=0.01)


def test_the_top_is_the_logits(tmp_path: Path) -> None:
    teacher, images = toys.cnn_teacher(), structured_images(toys.cnn_teacher())
    (view,) = record_metadata(teacher, images, tmp_path / "m.safetensors", kind=Kind.TOP).views
    logits = teacher(teacher.input_spec.encode(images))
    assert view.layers == ("logits",)
    torch.testing.assert_close(view.mean[1], logits[logits.argmax(1) == 1].mean(0))
    assert view.sample(torch.arange(4).repeat(500), torch.Generator()).min() < 0


def test_a_file_of_what_entered_layers_is_refused(tmp_path: Path) -> None:
    teacher, path = toys.cnn_teacher(), tmp_path / "m.safetensors"
    record_metadata(teacher, structured_images(teacher), path, kind=Kind.TOP)
    with safe_open(path, "pt") as file:
        header = file.metadata() | {"format": "dreamstill-metadata-1", "rectified": ""}
    save_file(load_file(path), path, metadata=header)
    with pytest.raises(TeacherError, match=r"what entered layers.*have the .* owner record it"):
        load_metadata(path, teacher)


class Between(nn.Module):
    """Layers with something between them and their ReLU, or without one."""

    def __init__(self) -> None:
        super().__init__()
        self.pooled, self.normed = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.summed = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.clamped, self.leaky, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.in_place, self.slope = nn.ReLU(inplace=True), nn.LeakyReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.pooled(x), 2))
        x = self.in_place(self.norm(self.normed(x)))
        x = F.relu(x + self.summed(x)).mean((2, 3))
        x = self.slope(self.leaky(self.clamped(x).clamp(min=0)))
        logits: Tensor = self.head(x)
        return logits


def test_what_is_recorded_is_what_enters_the_relu_behind_a_layer() -> None:
    with seeded(torch.Generator().manual_seed(0)):
        module = Between().eval()
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    recorded, rectified = activations(Teacher(module, toys.SPEC), images)
    assert list(recorded) == ["pooled", "normed", "summed", "clamped", "leaky", "head", "logits"]
    assert rectified == {"pooled", "normed", "clamped"}
    pooled = F.max_pool2d(module.pooled(images), 2)
    normed = module.norm(module.normed(pooled.relu()))
    summed = module.summed(normed.relu())
    clamped = module.clamped((normed.relu() + summed).relu().mean((2, 3)))
    leaky = module.leaky(clamped.relu())
    wanted = [pooled, normed, summed, clamped, leaky]
    for value, own in zip(wanted, recorded.values(), strict=False):
        torch.testing.assert_close(own, value)


def test_the_graph_basis_keeps_what_varies_together() -> None:
    common = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    alone = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    basis = graph_basis(torch.cat([common, -2 * common, 3 * common, alone], 1), 1)
    assert basis.shape == (5, 1)
    torch.testing.assert_close(basis[:3].abs(), torch.full((3, 1), 3**-0.5), atol=0.05, rtol=0)
    assert basis[3:].abs().max() < 0.2


def deep_teacher() -> Teacher:
    """Three linear layers."""
    with seeded(torch.Generator().manual_seed(0)), torch.no_grad():
        hidden = [nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU()]
        module = nn.Sequential(*hidden, head := nn.Linear(8, 4))
        head.bias.sub_(module(torch.randn(256, 1, 8, 8)).mean(0))  # every class is named
    return Teacher(module, toys.SPEC)


def test_layers_of_signals_are_recorded() -> None:
    seen, rectified = activations(Teacher(toys.Sensor(), toys.SIGNAL), torch.randn(2, 1, 1, 64))
    assert list(seen) == ["first", "second", "head", "logits"]
    assert rectified == {"first", "second"}
    seen, _ = activations(Teacher(toys.Recurrent(), toys.SIGNAL), torch.randn(2, 1, 1, 64))
    assert list(seen) == ["head", "logits"]


def test_spectral_pairs_are_all_pairs(tmp_path: Path) -> None:
    teacher, path = deep_teacher(), tmp_path / "m.safetensors"
    images = structured_images(teacher)
    metadata = record_metadata(teacher, images, path, kind=Kind.SPECTRAL_PAIRS, num_vectors=3)
    pairs = [view.layers for view in metadata.views]
    assert pairs == [("1", "3"), ("1", "logits"), ("3", "logits")]


@pytest.mark.parametrize("teacher", [toys.cnn_teacher(), toys.quadrant_teacher()])
def test_pairs_of_two_layers_are_refused(teacher: Teacher, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(TeacherError, match=r"spectral-pairs needs three .* take spectral"):
        record_metadata(teacher, quadrant_images(8), path, kind=Kind.SPECTRAL_PAIRS)
    assert not path.exists()


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_makes_images_of_their_class(kind: Kind, tmp_path: Path) -> None:
    (teacher, images), path = lenet_and_digits(), tmp_path / "m.safetensors"
    metadata = record_metadata(teacher, images, path, kind=kind)
    assert (metadata.views[0].basis is not None) == kind.value.startswith("spectral")
    config = MetadataConfig(file=str(path), batch_size=40, steps=60)
    synthesizer = open_synthesizer(
        "metadata", teacher, config, rng=torch.Generator().manual_seed(0)
    )
    named = synthesizer.next_batch().logits.argmax(1)
    assert (named == torch.arange(40) % 10).float().mean() > 0.7


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    images = quadrant_images(40)[torch.arange(40) % 4 != 3]
    with pytest.raises(DataError, match=r"2 images of every class; class 3 has 0"):
        record_metadata(toys.quadrant_teacher(), images, tmp_path / "m.safetensors")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    teacher, path = toys.quadrant_teacher(), tmp_path / "m.safetensors"
    with pytest.raises(ConfigError, match=r"needs synthesis\.file"):
        open_synthesizer("metadata", teacher, MetadataConfig(), rng=torch.Generator())
    with pytest.raises(TeacherError, match="no metadata at"):
        load_metadata(path, teacher)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(TeacherError, match="not a file of metadata of format"):
        load_metadata(path, teacher)
    record_metadata(teacher, quadrant_images(40), path)
    with pytest.raises(TeacherError, match="was recorded on the teacher"):
        load_metadata(path, toys.cnn_teacher())


def test_the_folder_of_a_file_is_made_before_any_image_is_shown(tmp_path: Path) -> None:
    teacher, images = toys.quadrant_teacher(), quadrant_images(64)
    record_metadata(teacher, images, tmp_path / "new" / "m.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.safetensors"]
    (tmp_path / "file").touch()
    queries = teacher.queries
    with pytest.raises(RunError, match="cannot make"):
        record_metadata(teacher, images, tmp_path / "file" / "m.safetensors")
    assert teacher.queries == queries


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        record_metadata(toys.quadrant_teacher(), quadrant_images(64), tmp_path / "m.safetensors")
