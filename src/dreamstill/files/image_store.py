"""Create files of uint8 images at full size, and memory-map them."""

import math
import mmap
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dreamstill.errors import ConfigError, DataError, RunError, first_line
from dreamstill.files.reading import reading

__all__ = [
    "Images",
    "check_room",
    "checksums",
    "make_images",
    "map_array",
    "map_images",
    "release_pages",
    "streamed_checksums",
]

Images = NDArray[np.uint8]
TOGETHER = 500
"""Images on the disk that are read at once."""


def check_room(name: str, num: int, size: int, *, folder: Path | None, stays: bool = False) -> None:
    """Raise ConfigError if `num` images do not fit in memory, or twice on the disk.

    Args:
        name: setting that gives the number of images, for the message.
        num: number of images.
        size: bytes per image.
        folder: directory of the images and later of their archive; it need not exist yet. None
            checks memory only.
        stays: the images stay in the file that they are drawn into: they lie on the disk once, and
            memory need not hold them.

    """
    need, rooms = num * size, list[str]()
    memory, enough = None if stays else free_memory(), True
    if memory is not None:
        rooms.append(f"{memory:,} in memory")
        enough = need <= memory
    if folder is not None:
        folder = folder.absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        disk = shutil.disk_usage(there).free
        rooms.append(f"{disk:,} on the disk" + (", where they lie twice" if not stays else ""))
        enough = enough and (1 if stays else 2) * need <= disk
    if not enough:
        raise ConfigError(
            f"{name} {num} needs {need:,} bytes, and free are {' and '.join(rooms)}: ask for fewer"
        )


def free_memory() -> int | None:
    """Return the bytes of free memory, or None if the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(ln.split()[1]) for ln in lines if ln.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def make_images(path: Path, shape: tuple[int, ...]) -> None:
    """Create an .npy file of black images (N, C, H, W) with all its disk space allocated.

    In a sparse file, a write through a memory map kills the process when the disk is full. Raises
    RunError, and leaves no file, if it cannot be created.
    """
    size = math.prod(shape)
    try:
        with path.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            start = file.tell()
            file.flush()
            if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
                os.posix_fallocate(file.fileno(), 0, start + size)
            else:
                for at in range(0, size, 2**20):
                    file.write(bytes(min(2**20, size - at)))
    except (OSError, OverflowError) as error:
        path.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or first_line(error)
        raise RunError(f"cannot make {path} of {size:,} bytes: {reason}") from error


def map_images(
    path: Path, shape: tuple[int, ...], mode: Literal["r", "r+", "c"]
) -> "np.memmap[Any, np.dtype[np.uint8]]":
    """Memory-map a file that `make_images` created.

    Raises RunError if it is missing, or has another shape, type or size.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing: its images were deleted or moved, and are needed")
    with reading(path, RunError):
        images = np.lib.format.open_memmap(path, "r")  # "r+" would extend a short file
        if images.dtype != np.uint8 or images.shape != shape or not images.flags.c_contiguous:
            raise ValueError(f"it must hold uint8 {shape}, and has {images.dtype} {images.shape}")
    return images if mode == "r" else np.lib.format.open_memmap(path, mode)


def map_array(path: Path) -> NDArray[Any]:
    """Map the array of a user's .npy file, which stays as it is; raise DataError if it is none."""
    with reading(path, DataError, "is not an .npy of a plain array", what="images"):
        return np.lib.format.open_memmap(path, "c")


def release_pages(images: Images) -> None:
    """Drop the pages of a map from this process's memory; the file keeps them.

    What was written to a map of mode "c" is lost.
    """
    base: Any = images
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        base.madvise(mmap.MADV_DONTNEED)


def checksums(images: Images) -> NDArray[np.uint32]:
    """Return the CRC-32 of each image (N, C, H, W) as uint32 (N,).

    >>> checksums(np.zeros((2, 1, 1, 1), np.uint8)).tolist()
    [3523407757, 3523407757]
    """
    return np.array([zlib.crc32(image.tobytes()) for image in images], np.uint32)


def streamed_checksums(images: Images) -> NDArray[np.uint32]:
    """Return the same of images on the disk, a part of which is in memory at once."""
    sums = np.zeros(len(images), np.uint32)
    for start in range(0, len(images), TOGETHER):
        sums[start : start + TOGETHER] = checksums(images[start : start + TOGETHER])
        release_pages(images)
    return sums
