"""Read the user's images from an .npz or .npy file or a directory of pictures.

An .npz holds x, uint8 (N, C, H, W), and y (N,). Where labels are not needed the images may be
x_train, where they are x_test and y_test; or they lie in an .npy beside it, as `synthesize` writes
large sets, and are then read from the disk as they are needed. Labeled pictures need one directory
per class. Pictures are scaled and center-cropped to the network's input size.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from dreamstill.errors import DataError
from dreamstill.files.image_store import map_array, streamed_checksums
from dreamstill.files.reading import StrPath, reading
from dreamstill.input_spec import InputSpec
from dreamstill.output_spec import UNSEEN, OutputKind, OutputSpec

__all__ = ["load_images", "load_real", "load_unlabelled", "truth_of"]

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that Pillow may open, whatever the file's name: some others start programs."""
MODES = {1: "L", 3: "RGB"}


def load_unlabelled(path: StrPath, spec: InputSpec) -> Tensor:
    """Read uint8 images (N, C, H, W) of an .npz or .npy, or all pictures under a directory.

    In an .npz they are x, else x_train, else x_test, else those of the .npy of its name. They are
    shuffled with a fixed seed: files are often sorted by class, and reports show the last images.
    Those of an .npy stay on the disk, in their order. Raises DataError if a file is wrong.
    """
    if (path := Path(path)).is_dir():
        images = _pictures(path, _picture_files(path, deep=True), spec)
    elif path.suffix == ".npy":
        return _array(path, {"x": map_array(path)}, spec)
    else:
        arrays = _read(path, "", "_train", "_test")
        if "x" not in arrays and "crc32" in arrays:
            images = _array(path, {"x": (mapped := map_array(path.with_suffix(".npy")))}, spec)
            _check(path, mapped, arrays["crc32"])
            return images
        images = _array(path, arrays, spec)
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]


def load_images(
    path: StrPath, spec: InputSpec, num_classes: int | None = None, *, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Read uint8 images (N, C, H, W) and labels (N,).

    Args:
        path: .npz with x and y, or x_test and y_test; or a directory with one directory per class,
            whose names are the labels if all are numbers, else sorted and numbered.
        spec: input spec that the images must match.
        num_classes: exclusive upper bound of the labels; None for no bound.
        first: label of the first class in a directory of named classes.

    Raises:
        DataError: a file, an image or a label is wrong.

    """
    if (path := Path(path)).is_dir():
        x, y = _labelled_pictures(path, spec, num_classes, first)
    else:
        x, y = _labelled_array(path, spec)
    if num_classes is not None and (y.min() < 0 or y.max() >= num_classes):
        raise DataError(
            f"labels in {path} must be 0 to {num_classes - 1}; got {y.min()} to {y.max()}"
        )
    return x, y


def load_real(path: StrPath, spec: InputSpec, outputs: OutputSpec) -> tuple[Tensor, Tensor]:
    """Read uint8 images (N, C, H, W) and the truth of what a network outputs.

    Args:
        path: of classes see `load_images`; else an .npz with x and y, or x_test and y_test, whose
            y are labels (N, K) of 0 and 1, values (N, K), or classes of pixels (N, H, W), 255 or
            -1 where there is none.
        spec: input spec that the images must match.
        outputs: what the network outputs.

    Raises DataError if a file, an image or a label is wrong.

    """
    if outputs.kind is OutputKind.CLASSES:
        return load_images(path, spec, outputs.num_classes)
    path = Path(path)
    arrays = _pair(path)
    x = _array(path, arrays, spec)
    return x, truth_of(arrays["y"], len(x), outputs, f"in {path}")


NO_CLASS = 255
"""Class number of pixels that have no class."""
TRUTH = {
    OutputKind.CLASSES: "classes",
    OutputKind.LABELS: "labels",
    OutputKind.VALUES: "values",
    OutputKind.DENSE: "classes of pixels",
}
"""Words for the truth, by the meaning of the outputs."""


def truth_of(y: NDArray[Any], num: int, outputs: OutputSpec, where: str) -> Tensor:
    """Return the truth of what a network outputs for `num` images, int64 or of values float64.

    Args:
        y: see `load_real`; classes (N,).
        num: N.
        outputs: what the network outputs.
        where: names the file in messages, as in "in real.npz".

    Raises DataError if shape, type or a number does not fit.

    """
    kind, what = outputs.kind, TRUTH[outputs.kind]
    sizes = () if kind is OutputKind.CLASSES else outputs.size or (outputs.num_classes,)
    if kind is OutputKind.VALUES and y.ndim == 1 and outputs.num_classes == 1:
        y = y[:, None]
    of = "biuf" if kind in UNSEEN else "iu"
    if y.shape != (num, *sizes) or y.dtype.kind not in of:
        numbers = "numbers" if kind in UNSEEN else "integers"
        raise DataError(
            f"the {what} {where} must be {numbers} {(num, *sizes)}; got {y.dtype} {y.shape}"
        )
    if kind is OutputKind.VALUES:
        if not np.isfinite(y).all():
            raise DataError(f"the values {where} are not all finite")
        return torch.from_numpy(y.astype(np.float64))
    most = 1 if kind is OutputKind.LABELS else outputs.num_classes - 1
    odd = y[~np.isin(y, (0, 1))] if kind is OutputKind.LABELS else y[(y < 0) | (y > most)]
    if kind is OutputKind.DENSE:
        odd = odd[(odd != NO_CLASS) & (odd != -1)]
    if len(odd):
        none = f", or {NO_CLASS} for none" * (kind is OutputKind.DENSE)
        raise DataError(f"the {what} {where} must be 0 to {most}{none}; got {odd[0]}")
    return torch.from_numpy(y.astype(np.int64))


def _labelled_array(path: Path, spec: InputSpec) -> tuple[Tensor, Tensor]:
    arrays = _pair(path)
    x, y = _array(path, arrays, spec), arrays["y"]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"labels in {path} must be integers (N,); got {y.dtype} {y.shape}")
    if len(x) != len(y):
        raise DataError(f"{path} holds {len(x)} images and {len(y)} labels")
    return x, torch.from_numpy(y.astype(np.int64))


def _pair(path: Path) -> dict[str, NDArray[Any]]:
    """Read x and y of an .npz, or x_test and y_test; raise DataError if one is missing."""
    arrays = _read(path, "", "_test")
    if not {"x", "y"} <= set(arrays):
        raise DataError(f"{path} must hold x and y, or x_test and y_test")
    return arrays


def _labelled_pictures(
    path: Path, spec: InputSpec, num_classes: int | None, first: int
) -> tuple[Tensor, Tensor]:
    folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    if not folders:
        raise DataError(f"{path} must hold a folder of pictures for each class")
    numbered = all(folder.name.isdecimal() for folder in folders)
    if not numbered and num_classes is not None and len(folders) != num_classes:
        raise DataError(
            f"{path} holds {len(folders)} classes of {num_classes}: number their folders from 0"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders, first):
        own = _picture_files(folder)
        files += own
        labels += [min(int(folder.name), 2**62) if numbered else label] * len(own)
    return _pictures(path, files, spec), torch.tensor(labels)


def _picture_files(folder: Path, *, deep: bool = False) -> list[Path]:
    return sorted(f for f in folder.glob("**/*" if deep else "*") if f.suffix.lower() in PICTURES)


def _pictures(path: Path, files: list[Path], spec: InputSpec) -> Tensor:
    channels, height, width = spec.shape
    if channels not in MODES:
        raise DataError(f"pictures have 1 or 3 channels, the network takes {channels}: use an .npz")
    if not files:
        raise DataError(f"{path} holds no pictures ({', '.join(PICTURES)})")
    images = np.empty((len(files), height, width, channels), np.uint8)
    for image, file in zip(images, files, strict=True):
        with reading(file, DataError, "is not a whole picture"):
            image[:] = _fitted(file, MODES[channels], (width, height))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _fitted(file: Path, mode: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a picture, rotated as its EXIF data says, as uint8 (height, width, channels)."""
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # within `reading`
    with Image.open(file, formats=FORMATS) as picture:
        if picture.mode.startswith(("I", "F")):
            raise DataError(f"{file} has more than 8 bits a channel: save it with 8")
        upright = ImageOps.exif_transpose(picture).convert(mode)
    fitted = ImageOps.fit(upright, size, Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(size[1], size[0], len(mode))


def _read(path: Path, *suffixes: str) -> dict[str, NDArray[Any]]:
    """Read x and y of an .npz, with the first of the suffixes that its x has."""
    with (
        reading(path, DataError, "is not an .npz of plain arrays", what="images"),
        path.open("rb") as file,  # NumPy leaves a file open that it cannot read
        np.load(file, allow_pickle=False) as archive,
    ):
        suffix = next((end for end in suffixes if f"x{end}" in archive.files), "")
        # an entry that is not an array is read as bytes
        return {
            name: np.asarray(archive[name + suffix])
            for name in ("x", "y", "crc32")
            if name + suffix in archive.files
        }


def _check(path: Path, images: NDArray[np.uint8], wanted: NDArray[Any]) -> None:
    """Raise DataError unless the images that lie beside a file have the checksums in it."""
    if wanted.shape != (len(images),):
        raise DataError(f"{path} is of {len(wanted)} images; the .npy beside it has {len(images)}")
    if (wrong := (streamed_checksums(images) != wanted).nonzero()[0]).size:
        raise DataError(
            f"image {wrong[0]} in {path.with_suffix('.npy')} is damaged: its checksum in "
            f"{path.name} is another"
        )


def _array(path: Path, arrays: dict[str, NDArray[Any]], spec: InputSpec) -> Tensor:
    if "x" not in arrays:
        raise DataError(f"{path} must hold x, x_train or x_test")
    x = arrays["x"]
    if x.dtype != np.uint8:
        raise DataError(f"images in {path} must be uint8; got {x.dtype}")
    if x.ndim != 4 or x.shape[1:] != spec.shape:
        raise DataError(f"images in {path} must be (N, *{spec.shape}); got {x.shape}")
    if len(x) == 0:
        raise DataError(f"{path} holds 0 images")
    return torch.from_numpy(x)
