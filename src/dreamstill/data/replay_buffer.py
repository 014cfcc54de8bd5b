"""A bounded store of synthetic images to replay: uint8, in memory or in a file that is mapped.

Between commits new images live in memory alone; `state_dict` carries them, and `commit` writes
them. So a checkpoint and the file always agree, wherever a kill falls: write the checkpoint,
then commit; on resume the checkpoint's images are written again over whatever was half done.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamstill.config import read_plain
from dreamstill.data.batch import Batch
from dreamstill.errors import ConfigError, RunError
from dreamstill.files.checkpoints import digest
from dreamstill.files.image_store import Images, check_room, checksums, make_images, map_images
from dreamstill.files.reading import StrPath
from dreamstill.files.writing import write_json
from dreamstill.input_spec import InputSpec

__all__ = ["ReplayBuffer"]


class ReplayBuffer:
    """Store at most `capacity` images; a new one replaces the oldest.

    Args:
        folder: holds images.npy (uint8 (capacity, C, H, W)) and buffer.json. None: in memory alone.
        spec: the teacher's input.
        capacity: at least 1.
        create: make the file; else it must be there, and `load_state_dict` checks what is in it.

    Raises:
        ConfigError: there is no room for so many images in memory.
        RunError: the file cannot be made, or is not there, or of another shape or type.

    """

    def __init__(
        self, folder: StrPath | None, spec: InputSpec, capacity: int, *, create: bool = True
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"the buffer's capacity must be at least 1; got {capacity}")
        self.spec, self.capacity = spec, capacity
        self.added = 0
        folder = None if folder is None else Path(folder)
        self._folder, self._shape = folder, (capacity, *spec.shape)
        self._journal: list[tuple[int, Tensor]] = []
        if folder is None:
            check_room("buffer", capacity, math.prod(spec.shape), folder=None)
            self._images: Images = np.zeros(self._shape, np.uint8)
            self._sums = np.zeros(capacity, np.uint32)
            return
        if create:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RunError(f"cannot make {folder}: {error.strerror}") from error
            make_images(folder / "images.npy", self._shape)
        self._sums = np.zeros(capacity, np.uint32)  # of each image
        self._open(folder)

    @classmethod
    def reopen(cls, folder: StrPath, spec: InputSpec) -> "ReplayBuffer":
        """Open a buffer as its last commit left it, to read; RunError where it is not as it was."""
        folder = Path(folder)
        card = read_plain(folder / "buffer.json")
        capacity, added = card.get("capacity"), card.get("added")
        if not isinstance(capacity, int) or not isinstance(added, int) or capacity < 1 or added < 0:
            raise RunError(f"{folder / 'buffer.json'} is damaged: it is not of a buffer")
        buffer = cls(folder, spec, capacity, create=False)
        buffer.added = added
        buffer._sums = checksums(buffer._images)
        if card.get("checksum") != buffer._checksum():
            raise RunError(
                f"{folder / 'images.npy'} is damaged: its images are not those that were written"
            )
        return buffer

    def _open(self, folder: Path) -> None:
        # copy-on-write: what is added stays in memory until it is committed
        self._images = map_images(folder / "images.npy", self._shape, "c")

    def _checksum(self) -> str:
        return digest(self._sums[: len(self)].tobytes())

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Batch) -> None:
        """Store the batch's images, rounded to uint8, over the oldest ones."""
        images = self.spec.decode(batch.images).cpu()[-self.capacity :]
        self._put(self._images, self.added, images)
        if self._folder is not None:
            self._sums[self._slots(self.added, images)] = checksums(images.numpy())
            self._journal.append((self.added, images))
        self.added += len(images)
        while self._journal and self._journal[0][0] + len(self._journal[0][1]) <= (
            self.added - self.capacity
        ):
            self._journal.pop(0)  # all overwritten since

    def _slots(self, start: int, images: Tensor) -> NDArray[np.int64]:
        return (start + np.arange(len(images))) % self.capacity

    def _put(self, store: Images, start: int, images: Tensor) -> None:
        store[self._slots(start, images)] = images.numpy()

    def images(self, most: int | None = None) -> Tensor:
        """Return a copy of the stored images, or of at most so many: uint8 (N, C, H, W)."""
        return torch.from_numpy(np.array(self._images[: len(self)][:most]))

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw `num` images with replacement, in the teacher's input space, on the rng's device."""
        index = torch.randint(len(self), (num,), generator=rng, device=rng.device).cpu()
        images = torch.from_numpy(self._images[index.numpy()])
        return self.spec.encode(images.to(rng.device))

    def commit(self) -> None:
        """Write what was added since the last commit to the file, where there is one."""
        if self._folder is None:
            return
        if self._journal:
            on_disk = map_images(self._folder / "images.npy", self._shape, "r+")
            for start, images in self._journal:
                self._put(on_disk, start, images)
            on_disk.flush()
            self._journal = []
            self._open(self._folder)
        card = {
            "shape": list(self.spec.shape),
            "capacity": self.capacity,
            "added": self.added,
            "checksum": self._checksum(),
        }
        write_json(self._folder / "buffer.json", card)

    def state_dict(self) -> dict[str, Any]:
        """Return the images that are not on disk yet, how many were ever added, and checksums."""
        return {
            "added": self.added,
            "journal": list(self._journal),
            "checksums": torch.from_numpy(self._sums[: len(self)].astype(np.int64)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, and write its images to the file again.

        Raises:
            RunError: the file does not hold the images that the checkpoint was written beside.

        """
        self.added = state["added"]
        self._journal = [(start, images.cpu()) for start, images in state["journal"]]
        self._sums[: len(self)] = state["checksums"].cpu().numpy()
        self.commit()
        found = checksums(self._images[: len(self)])
        if (wrong := (found != self._sums[: len(self)]).nonzero()[0]).size:
            raise RunError(
                f"{self._folder} does not hold the images of its checkpoint: image {wrong[0]} is "
                f"another, and {len(wrong) - 1} more; the run cannot be resumed"
            )
