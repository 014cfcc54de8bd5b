"""Files of uint8 images that are made whole beforehand and looked at by memory map."""

import math
import mmap
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dreamstill.errors import ConfigError, RunError, first_line
from dreamstill.files.reading import reading

__all__ = ["Images", "check_room", "checksums", "let_go", "make_images", "map_images"]

Images = NDArray[np.uint8]


def check_room(name: str, num: int, size: int, *, folder: Path | None) -> None:
    """Refuse images that there is no room for, before any of them is made.

    Args:
        name: of the setting that says how many.
        num: images.
        size: bytes of each.
        folder: where they are to go, and then to an archive of them; it may have to be made. None:
            they are in memory alone.

    Raises:
        ConfigError: less than they need is free in memory or on the disk.

    """
    need, rooms = num * size, list[str]()
    memory, enough = free_memory(), True
    if memory is not None:
        rooms.append(f"{memory:,} in memory")
        enough = need <= memory
    if folder is not None:
        folder = folder.absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        disk = shutil.disk_usage(there).free
        rooms.append(f"{disk:,} on the disk, where they lie twice")
        enough = enough and 2 * need <= disk
    if not enough:
        raise ConfigError(
            f"{name} {num} needs {need:,} bytes, and free are {' and '.join(rooms)}: ask for fewer"
        )


def free_memory() -> int | None:
    """Return the bytes of memory that a process could still have; None where nobody says."""
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
    """Make an .npy file of black images (N, C, H, W) whose whole room is taken on the disk.

    What is written to it by memory map can fail no more: a sparse file on a full disk would kill
    the process at its first write.

    Raises:
        RunError: it cannot be made; then it is not.

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
    """Map a file that `make_images` made; never make one.

    Raises:
        RunError: there is none, or it is of another shape, type or size.

    """
    if not path.is_file():
        raise RunError(f"{path} is missing: its images were deleted or moved, and are needed")
    with reading(path, RunError):
        images = np.lib.format.open_memmap(path, "r")  # "r+" would mend a short file
        if images.dtype != np.uint8 or images.shape != shape or not images.flags.c_contiguous:
            raise ValueError(f"it must hold uint8 {shape}, and has {images.dtype} {images.shape}")
    return images if mode == "r" else np.lib.format.open_memmap(path, mode)


def let_go(images: Images) -> None:
    """Take the pages of a map of mode "r+" out of this process's memory; the file keeps them."""
    if isinstance(images.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        images.base.madvise(mmap.MADV_DONTNEED)


def checksums(images: Images) -> NDArray[np.uint32]:
    """CRC-32 of each image (N, C, H, W); uint32 (N,).

    >>> checksums(np.zeros((2, 1, 1, 1), np.uint8)).tolist()
    [3523407757, 3523407757]
    """
    return np.array([zlib.crc32(image.tobytes()) for image in images], np.uint32)
