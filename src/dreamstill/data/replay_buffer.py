"""Replay buffer of uint8 images, in memory or in a memory-mapped file.

New images stay in memory until `commit` writes them; `state_dict` includes them. Save the
checkpoint before the commit: if the process is killed in between, resuming writes the images of
the checkpoint again.
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
    """Replay buffer of at most `capacity` images, in which new images replace the oldest.

    Args:
        folder: directory of images.npy, uint8 (capacity, C, H, W), and buffer.json; None keeps the
            images in memory.
        spec: input spec of the teacher.
        capacity: at least 1.
        create: create the file; otherwise it must exist, and `load_state_dict` checks its images.

    Raises:
        ConfigError: `capacity` is below 1, or the images do not fit in memory.
        RunError: the file cannot be created, is missing, or has another shape or type.

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
        self._sums = np.zeros(capacity, np.uint32)
        self._open(folder)

    @classmethod
    def reopen(cls, folder: StrPath, spec: InputSpec) -> "ReplayBuffer":
        """Open a buffer for reading, as of its last commit; raise RunError if it has changed."""
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
        # copy-on-write: new images stay in memory until they are committed
        self._images = map_images(folder / "images.npy", self._shape, "c")

    def _checksum(self) -> str:
        return digest(self._sums[: len(self)].tobytes())

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Batch) -> None:
        """Store the images of a batch, rounded to uint8, in place of the oldest."""
        images = self.spec.decode(batch.images).cpu()[-self.capacity :]
        self._put(self._images, self.added, images)
        if self._folder is not None:
            self._sums[self._slots(self.added, images)] = checksums(images.numpy())
            self._journal.append((self.added, images))
        self.added += len(images)
        while self._journal and self._journal[0][0] + len(self._journal[0][1]) <= (
            self.added - self.capacity
        ):
            self._journal.pop(0)  # all of its images have been replaced

    def _slots(self, start: int, images: Tensor) -> NDArray[np.int64]:
        return (start + np.arange(len(images))) % self.capacity

    def _put(self, store: Images, start: int, images: Tensor) -> None:
        store[self._slots(start, images)] = images.numpy()

    def images(self, most: int | None = None) -> Tensor:
        """Return a copy of the stored images, at most `most`: uint8 (N, C, H, W)."""
        return torch.from_numpy(np.array(self._images[: len(self)][:most]))

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw `num` images with replacement, as inputs of the teacher on the device of `rng`."""
        index = torch.randint(len(self), (num,), generator=rng, device=rng.device).cpu()
        images = torch.from_numpy(self._images[index.numpy()])
        return self.spec.encode(images.to(rng.device))

    def commit(self) -> None:
        """Write the images added since the last commit to the file, if there is one."""
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
        """Return the images not yet written, the number ever added, and all checksums."""
        return {
            "added": self.added,
            "journal": list(self._journal),
            "checksums": torch.from_numpy(self._sums[: len(self)].astype(np.int64)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state and commit its images; raise RunError if the file's images differ."""
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
