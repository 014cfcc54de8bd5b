"""What the teacher's owner records, and that images are fitted to it."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import toys
from dreamstill.errors import DataError, RunError, SettingsError, TeacherError
from dreamstill.metadata import Kind, activations, graph_basis, load_metadata, record_metadata
from dreamstill.nets.seeded import seeded
from dreamstill.synthesis import open_synthesizer
from dreamstill.synthesis.metadata import MetadataSettings
from dreamstill.teacher import Teacher, open_teacher


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
    return teacher.spec.decode(synthesizer.next_batch().images)


def test_the_record_holds_each_classs_mean_and_covariance(tmp_path: Path) -> None:
    teacher, images = toys.quadrant_teacher(), quadrant_images(200)
    metadata = record_metadata(teacher, images, tmp_path / "m.safetensors", kind=Kind.ALL)
    entering, view = metadata.views  # the means of the quadrants are no image
    assert (entering.layers, view.layers) == (("head",), ("logits",))
    logits = teacher(teacher.spec.encode(images))
    ones = logits[torch.arange(200) % 4 == 1]
    torch.testing.assert_close(view.mean[1], ones.mean(0))
    assert view.root is not None
    torch.testing.assert_close(view.root[1] @ view.root[1].T, torch.cov(ones.T), atol=1e-4, rtol=0)
    again = load_metadata(tmp_path / "m.safetensors", teacher)
    assert again.kind is Kind.ALL
    torch.testing.assert_close(again.views[1].root, view.root)


def test_samples_have_the_recorded_moments(tmp_path: Path) -> None:
    teacher = toys.quadrant_teacher()
    metadata = record_metadata(teacher, quadrant_images(200), tmp_path / "m.safetensors")
    view = metadata.views[0]
    drawn = view.sample(torch.full((20000,), 2), torch.Generator().manual_seed(0))
    assert view.root is not None
    torch.testing.assert_close(drawn.mean(0), view.mean[2], atol=0.02, rtol=0)
    wanted = view.root[2] @ view.root[2].T
    torch.testing.assert_close(torch.cov(drawn.T), wanted, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("largest_root", [512, 1])
def test_what_was_recorded_behind_a_relu_is_not_drawn_below_zero(
    largest_root: int, tmp_path: Path
) -> None:
    teacher, path = toys.cnn_teacher(), tmp_path / "m.safetensors"
    record_metadata(teacher, structured_images(teacher), path, largest_root=largest_root)
    for view in load_metadata(path, teacher).views:
        drawn = view.sample(torch.arange(4).repeat(500), torch.Generator().manual_seed(0))
        assert (drawn.min() < 0) == (view.layers == ("logits",))
        assert (drawn == 0).any() == (view.layers != ("logits",))


def test_a_file_that_does_not_say_what_is_behind_a_relu_is_drawn_from_as_it_is(
    tmp_path: Path,
) -> None:
    teacher, path = toys.cnn_teacher(), tmp_path / "m.safetensors"
    record_metadata(teacher, structured_images(teacher), path, kind=Kind.TOP)
    with safe_open(path, "pt") as file:
        header = {k: v for k, v in file.metadata().items() if k != "rectified"}
    save_file(load_file(path), path, metadata=header)
    (view,) = load_metadata(path, teacher).views
    assert view.sample(torch.arange(4).repeat(500), torch.Generator()).min() < 0


def test_the_graph_basis_keeps_what_varies_together() -> None:
    common = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    alone = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    basis = graph_basis(torch.cat([common, -2 * common, 3 * common, alone], 1), 1)
    assert basis.shape == (5, 1)
    torch.testing.assert_close(basis[:3].abs(), torch.full((3, 1), 3**-0.5), atol=0.05, rtol=0)
    assert basis[3:].abs().max() < 0.2


def deep_teacher() -> Teacher:
    """Three linear layers, of which all but the first are recorded."""
    with seeded(torch.Generator().manual_seed(0)), torch.no_grad():
        hidden = [nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU()]
        module = nn.Sequential(*hidden, head := nn.Linear(8, 4))
        head.bias.sub_(module(torch.randn(256, 1, 8, 8)).mean(0))  # every class is named
    return open_teacher(module, toys.SPEC)


def test_layers_of_signals_are_recorded_and_the_image_is_not() -> None:
    seen = activations(open_teacher(toys.Sensor(), toys.SIGNAL), torch.randn(2, 1, 1, 64))
    assert list(seen) == ["second", "head", "logits"]
    seen = activations(open_teacher(toys.Recurrent(), toys.SIGNAL), torch.randn(2, 1, 1, 64))
    assert list(seen) == ["head", "logits"]


def test_spectral_pairs_are_all_pairs(tmp_path: Path) -> None:
    teacher, path = deep_teacher(), tmp_path / "m.safetensors"
    images = structured_images(teacher)
    metadata = record_metadata(teacher, images, path, kind=Kind.SPECTRAL_PAIRS, num_vectors=3)
    pairs = [view.layers for view in metadata.views]
    assert pairs == [("3", "5"), ("3", "logits"), ("5", "logits")]


@pytest.mark.parametrize("teacher", [toys.cnn_teacher(), toys.quadrant_teacher()])
def test_pairs_of_two_layers_are_refused(teacher: Teacher, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(TeacherError, match=r"spectral-pairs needs three .* take spectral"):
        record_metadata(teacher, quadrant_images(8), path, kind=Kind.SPECTRAL_PAIRS)
    assert not path.exists()


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_makes_images_of_their_class(kind: Kind, tmp_path: Path) -> None:
    pairs = kind is Kind.SPECTRAL_PAIRS
    teacher, path = deep_teacher() if pairs else toys.cnn_teacher(), tmp_path / "m.safetensors"
    images = structured_images(teacher)
    metadata = record_metadata(teacher, images, path, kind=kind, num_vectors=8)
    assert (metadata.views[0].basis is not None) == kind.value.startswith("spectral")
    settings = MetadataSettings(file=str(path), batch_size=40, steps=200)
    synthesizer = open_synthesizer(
        "metadata", teacher, settings, rng=torch.Generator().manual_seed(0)
    )
    named = synthesizer.next_batch().logits.argmax(1)
    assert (named == torch.arange(40) % 4).float().mean() > 0.7


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    images = quadrant_images(40)[torch.arange(40) % 4 != 3]
    with pytest.raises(DataError, match=r"2 images of every class; class 3 has 0"):
        record_metadata(toys.quadrant_teacher(), images, tmp_path / "m.safetensors")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    teacher, path = toys.quadrant_teacher(), tmp_path / "m.safetensors"
    with pytest.raises(SettingsError, match=r"needs synthesis\.file"):
        open_synthesizer("metadata", teacher, MetadataSettings(), rng=torch.Generator())
    with pytest.raises(TeacherError, match="not a file of metadata"):
        load_metadata(path, teacher)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(TeacherError, match="not a file of metadata of format"):
        load_metadata(path, teacher)
    record_metadata(teacher, quadrant_images(40), path)
    with pytest.raises(TeacherError, match="was recorded on the teacher"):
        load_metadata(path, toys.cnn_teacher())


def test_the_top_of_a_network_of_one_layer_is_refused(tmp_path: Path) -> None:
    flat = open_teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), toys.SPEC)
    with pytest.raises(TeacherError, match="needs a last linear layer behind another"):
        record_metadata(flat, quadrant_images(64), tmp_path / "m.safetensors", kind=Kind.TOP)


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
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("dreamstill.metadata.save_file", full)
    with pytest.raises(RunError, match="No space left"):
        record_metadata(toys.quadrant_teacher(), quadrant_images(64), tmp_path / "m.safetensors")
