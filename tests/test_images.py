"""Images from an .npz or from pictures, and mistakes in either."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import toys
from dreamstill.data.images import load_images, load_unlabelled
from dreamstill.errors import DataError
from dreamstill.input_spec import InputSpec

IMAGES = np.zeros((3, 1, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, "must hold x and y"),
        ({"x": IMAGES.astype(float), "y": [0, 1, 2]}, "must be uint8; got float64"),
        ({"x": IMAGES[:, :, 1:], "y": [0, 1, 2]}, r"must be \(N, \*\(1, 8, 8\)\)"),
        ({"x": IMAGES[:0], "y": []}, "holds 0 images"),
        ({"x": IMAGES, "y": [0, 1]}, "3 images and 2 labels"),
        ({"x": IMAGES, "y": [0, 1, 4]}, "must be 0 to 3; got 0 to 4"),
        ({"x": IMAGES, "y": [0.5, 1.0, 2.0]}, "must be integers"),
    ],
)
def test_wrong_images_are_named(arrays: dict[str, object], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load_images(tmp_path / "d.npz", toys.SPEC, 4)


def test_no_file_or_not_an_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images at"):
        load_images(tmp_path / "absent.npz", toys.SPEC, 4)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"not an \.npz"):
        load_images(tmp_path / "text.npz", toys.SPEC, 4)


def test_unlabelled_images_lose_the_order_of_their_file(tmp_path: Path) -> None:
    """Sorted by class, the first half would be one class."""
    spec = InputSpec(shape=(1, 2, 2), mean=(0.5,), std=(0.25,))
    x = np.zeros((100, 1, 2, 2), np.uint8)
    x[50:] = 255
    np.savez(tmp_path / "sorted.npz", x=x, y=np.arange(100) // 50)
    images = load_unlabelled(tmp_path / "sorted.npz", spec)
    assert 15 < (images[:50] == 255).flatten(1).all(1).sum() < 35
    assert (images == 255).float().mean() == 0.5
    assert torch.equal(images, load_unlabelled(tmp_path / "sorted.npz", spec))
    labelled, labels = load_images(tmp_path / "sorted.npz", spec, 2)
    assert torch.equal((labelled == 255).flatten(1).all(1), labels == 1)


def draw(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def color_spec(channels: int = 3) -> InputSpec:
    return InputSpec(shape=(channels, 4, 6), mean=(0.5,) * channels, std=(0.25,) * channels)


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    draw(tmp_path / "dog" / "a.png", (255, 0, 0))
    draw(tmp_path / "cat" / "a.PNG", (0, 255, 0))
    draw(tmp_path / "cat" / "b.bmp", (0, 0, 255))
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    images, labels = load_images(tmp_path, color_spec(), 2)
    assert images.shape == (3, 3, 4, 6)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 0, 1]
    wanted = [[0, 255, 0], [0, 0, 255], [255, 0, 0]]
    assert images.float().mean((2, 3)).tolist() == wanted
    assert load_images(tmp_path, color_spec(), first=5)[1].tolist() == [5, 5, 6]
    assert len(load_unlabelled(tmp_path, color_spec())) == 3
    gray, _ = load_images(tmp_path, color_spec(1), 2)
    assert gray.float().mean((1, 2, 3)).tolist() == [150, 29, 76]  # ITU-R 601


def test_folders_that_are_numbered_say_their_labels(tmp_path: Path) -> None:
    for label in (10, 2):
        draw(tmp_path / str(label) / "a.png", (label, 0, 0))
    images, labels = load_images(tmp_path, color_spec(), 11)
    assert labels.tolist() == images[:, 0, 0, 0].tolist() == [10, 2]
    with pytest.raises(DataError, match="must be 0 to 9; got 2 to 10"):
        load_images(tmp_path, color_spec(), 10)


def test_pictures_are_scaled_and_cropped_around_their_center(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 30:90] = 255  # the middle 3:2, the network's own proportions
    Image.fromarray(wide).save(tmp_path / "wide.png")
    images = load_unlabelled(tmp_path, color_spec())
    assert (images[..., 1:-1] == 255).all()
    assert images.min() > 200  # the filter reaches over the edge


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold a folder of pictures for each class"):
        load_images(tmp_path, color_spec(), 1)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        load_unlabelled(tmp_path, color_spec())
    with pytest.raises(DataError, match="holds 1 classes of 4: number their folders"):
        load_images(tmp_path, color_spec(), 4)
    (tmp_path / "cat" / "torn.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(DataError, match=r"torn\.png is not a whole picture"):
        load_images(tmp_path, color_spec(), 1)
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    (tmp_path / "deep").mkdir()
    deep.save(tmp_path / "deep" / "a.png")
    with pytest.raises(DataError, match="has more than 8 bits a channel"):
        load_unlabelled(tmp_path / "deep", color_spec())
    with pytest.raises(DataError, match="the network takes 2"):
        load_unlabelled(tmp_path, color_spec(2))
