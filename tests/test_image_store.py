"""Large sets of images: written once, checked, and read from the disk as they are needed."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

import toys
from dreamstill.cli import main as cli
from dreamstill.data.images import load_unlabelled
from dreamstill.errors import ConfigError, DataError
from dreamstill.files.image_store import check_room, checksums, make_images, streamed_checksums
from dreamstill.input_spec import InputSpec
from dreamstill.pipelines import synthesize as synthesizing

NUM = 96


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return toys.write_teacher(tmp_path)


@pytest.fixture
def large(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory of images that count as many."""
    monkeypatch.setattr(synthesizing, "LARGE", NUM * 64)
    return drawn(weights, weights.parent / "large")


def drawn(weights: Path, out: Path, *more: str) -> Path:
    command = ["synthesize", str(weights), "--num-images", str(NUM), "--out", str(out), "--json"]
    assert cli.main([*command, "--synthesis.batch_size", "32", *more]) == 0
    return out


def test_a_large_set_is_the_file_it_was_drawn_into(large: Path) -> None:
    with np.load(large / "images.npz") as archive:
        assert sorted(archive.files) == ["crc32", "logits", "y"]
        sums = archive["crc32"]
    images = np.load(large / "images.npy")
    assert (checksums(images) == sums).all()
    assert not (large / "images.pt").exists()
    found = load_unlabelled(large / "images.npz", toys.SPEC)
    assert found.numpy().tobytes() == images.tobytes()  # in their order


def test_it_is_what_a_small_set_is(
    weights: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesizing, "LARGE", 2**30)
    small = drawn(weights, weights.parent / "small")
    with np.load(small / "images.npz") as archive:
        assert archive["x"].tobytes() == np.load(large / "images.npy").tobytes()
    assert not (small / "images.npy").exists()


def test_what_uses_images_takes_it_and_leaves_it(weights: Path, large: Path) -> None:
    before = (large / "images.npy").read_bytes()
    images = str(large / "images.npz")
    quantize = ["quantize", str(weights), "--images", images, "--json"]
    assert cli.main([*quantize, "--out", str(weights.parent / "quantized")]) == 0
    distill = ["distill", str(weights), "--images", images, "--student", "toys:student", "--json"]
    short = ["--distill.steps", "4", "--distill.num_validation", "16"]
    out = ["--out", str(weights.parent / "student")]
    assert cli.main([*distill, *short, *out]) == 0
    assert (large / "images.npy").read_bytes() == before


def test_a_damaged_image_is_named(large: Path) -> None:
    images = np.load(large / "images.npy", mmap_mode="r+")
    images[7, 0, 0, 0] ^= 1
    images.flush()
    with pytest.raises(DataError, match=r"image 7 in .*images\.npy is damaged"):
        load_unlabelled(large / "images.npz", toys.SPEC)


def test_images_that_were_moved_away_are_missed(large: Path) -> None:
    (large / "images.npy").unlink()
    with pytest.raises(DataError, match=r"no images at .*images\.npy"):
        load_unlabelled(large / "images.npz", toys.SPEC)


def test_another_number_of_images_is_refused(large: Path) -> None:
    np.save(large / "images.npy", np.load(large / "images.npy")[:5])
    with pytest.raises(DataError, match=r"is of 96 images; the \.npy beside it has 5"):
        load_unlabelled(large / "images.npz", toys.SPEC)


def test_a_users_npy_is_read_in_its_order(tmp_path: Path) -> None:
    images = np.arange(3 * 64, dtype=np.uint8).reshape(3, 1, 8, 8)
    np.save(tmp_path / "own.npy", images)
    assert load_unlabelled(tmp_path / "own.npy", toys.SPEC).numpy().tobytes() == images.tobytes()
    np.save(tmp_path / "own.npy", images.astype(np.float32))
    with pytest.raises(DataError, match="must be uint8; got float32"):
        load_unlabelled(tmp_path / "own.npy", toys.SPEC)
    (tmp_path / "own.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"is not an \.npy"):
        load_unlabelled(tmp_path / "own.npy", toys.SPEC)


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_reading_takes_no_memory_for_the_whole(tmp_path: Path) -> None:
    """300 MB on the disk; what is read is let go of."""
    shape = (100_000, 3, 32, 32)
    make_images(tmp_path / "images.npy", shape)
    (black,) = checksums(np.zeros((1, *shape[1:]), np.uint8))
    np.savez(tmp_path / "images.npz", crc32=np.full(shape[0], black))
    before = resident()
    spec = InputSpec(shape[1:], mean=(0.5,) * 3, std=(0.5,) * 3)
    images = load_unlabelled(tmp_path / "images.npz", spec)
    assert len(images) == shape[0]
    assert resident() - before < 60e6
    assert not images[torch.tensor([0, 99_999])].any()


def test_room_is_for_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1000
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Disk", (), {"free": free}))
    monkeypatch.setattr("dreamstill.files.image_store.free_memory", lambda: 10)
    check_room("num_images", 9, 100, folder=tmp_path, stays=True)
    with pytest.raises(ConfigError, match="on the disk: ask"):
        check_room("num_images", 11, 100, folder=tmp_path, stays=True)
    with pytest.raises(ConfigError, match="in memory"):
        check_room("num_images", 4, 100, folder=tmp_path)


def test_streamed_checksums_are_those_of_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1201, 1, 2, 2), np.uint8)
    assert (streamed_checksums(images) == checksums(images)).all()
