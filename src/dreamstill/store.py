"""Files of uint8 images that are made whole beforehand and looked at by memory map."""

import math
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dreamstill.errors import RunError, SettingsError, first_line
from dreamstill.reading import reading

__all__ = ["Images", "check_room", "checksums", "make_images", "map_images"]

Images = NDArray[np.uint8]


def check_room(name: str, num: int, size: int, *, folder: Path | None, memory: bool) -> None:
    """Refuse images that there is no room for, before any of them is made.

    Args:
        name: of the setting that says how many.
        num: images.
        size: bytes of each.
        folder: where they are to go; it may have to be made. None: nowhere on a disk.
        memory: they are to be in memory as well.

    Raises:
        SettingsError: less than they need is free on the disk or in memory.

    """
    need, free = num * size, {}
    if folder is not None:
        folder = folder.absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free["on the disk"] = shutil.disk_usage(there).free
    if memory and (available := free_memory()) is not None:
        free["in memory"] = available
    if any(need > room for room in free.values()):
        rooms = " and ".join(f"{room:,} {where}" for where, room in free.items())
        raise SettingsError(
            f"{name} {num} needs {need:,} bytes, and free are {rooms}: ask for fewer"
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
        images: Any = np.load(path, mmap_mode="r", allow_pickle=False)  # "r+" mends a short file
    if not isinstance(images, np.memmap) or images.dtype != np.uint8 or images.shape != shape:
        raise RunError(
            f"{path} is damaged: it must hold uint8 {shape}; it holds "
            f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        )
    if not images.flags.c_contiguous:
        raise RunError(f"{path} is damaged: its images are not in order")
    return images if mode == "r" else np.load(path, mmap_mode=mode)


def checksums(images: Images) -> NDArray[np.uint32]:
    """CRC-32 of each image (N, C, H, W); uint32 (N,).

    >>> checksums(np.zeros((2, 1, 1, 1), np.uint8)).tolist()
    [3523407757, 3523407757]
    """
    return np.array([zlib.crc32(image.tobytes()) for image in images], np.uint32)
