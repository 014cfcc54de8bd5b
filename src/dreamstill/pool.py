"""The bounded store of synthetic images: uint8 on disk by memory map, with replay.

Between commits new images live in memory alone; `state_dict` carries them, and `commit` writes
them. So a checkpoint and the file always agree, wherever a kill falls: write the checkpoint,
then commit; on resume the checkpoint's images are written again over whatever was half done.
"""

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.errors import RunError, SettingsError, first_line
from dreamstill.settings import read_plain, settings_class
from dreamstill.synthesis.contract import Batch, answered
from dreamstill.teacher import InputSpec, Teacher

__all__ = ["Augmentation", "Pool", "StoredImages", "augment"]


@settings_class
class Augmentation:
    """Random changes of replayed images; the teacher answers anew for what comes out."""

    shift: float = 0.0
    """Largest shift as a fraction of the side; 0 to 1."""
    rotate: float = 0.0
    """Largest rotation in degrees; 0 to 180."""
    scale: float = 0.0
    """Largest relative change of size; 0 to below 1."""
    noise: float = 0.0
    """Largest standard deviation of Gaussian noise on pixels in [0, 1]; 0 to 1."""
    flip: bool = False
    """Mirror half of the images left to right: off for digits and text."""
    mix: bool = False
    """Mix pairs of images with weights drawn evenly from [0, 1]."""

    def __post_init__(self) -> None:
        for name, top in (("shift", 1), ("rotate", 180), ("scale", 0.99), ("noise", 1)):
            if not 0 <= getattr(self, name) <= top:
                raise SettingsError(f"{name} must be in [0, {top}]; got {getattr(self, name)}")


def augment(
    images: Tensor, spec: InputSpec, settings: Augmentation, rng: torch.Generator
) -> Tensor:
    """Augment (N, C, H, W) in the teacher's input space; edges repeat; clipped to the range."""
    num, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num, generator=rng, device=device)

    if settings.mix:
        weight = uniform(0, 1).view(-1, 1, 1, 1)
        other = images[torch.randperm(num, generator=rng, device=device)]
        images = weight * images + (1 - weight) * other
    if settings.shift or settings.rotate or settings.scale or settings.flip:
        angle = torch.deg2rad(uniform(-settings.rotate, settings.rotate))
        size = 1 / (1 + uniform(-settings.scale, settings.scale))
        mirror = torch.where(uniform(0, 1) < 0.5 * settings.flip, -1.0, 1.0)
        aspect = spec.shape[1] / spec.shape[2]
        cos, sin = size * angle.cos(), size * angle.sin()
        across, down = (2 * uniform(-settings.shift, settings.shift) for _ in range(2))
        rows = (mirror * cos, -mirror * sin * aspect, across, sin / aspect, cos, down)
        grid = F.affine_grid(
            torch.stack(rows, 1).view(num, 2, 3), list(images.shape), align_corners=False
        )
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if settings.noise:
        level = uniform(0, settings.noise).view(-1, 1, 1, 1)
        scale = level / torch.tensor(spec.std, device=device).view(1, -1, 1, 1)
        noise = torch.randn(images.shape, generator=rng, device=device)
        images = images + scale * noise
    return spec.clip(images)


class Pool:
    """At most `capacity` images; a new one replaces the oldest.

    Args:
        folder: holds images.npy (uint8 (capacity, C, H, W)) and pool.json; created if absent.
        spec: the teacher's input.
        capacity: at least 1.
        origin: what made the images (method, settings, teacher's fingerprint), kept in pool.json;
            a pool of another origin is refused.

    """

    def __init__(
        self, folder: Path, spec: InputSpec, capacity: int, origin: dict[str, Any]
    ) -> None:
        if capacity < 1:
            raise SettingsError(f"the pool's capacity must be at least 1; got {capacity}")
        self.spec, self.capacity = spec, capacity
        self.added = 0
        self._journal: list[tuple[int, Tensor]] = []
        self._file = folder / "images.npy"
        card = {"shape": list(spec.shape), "capacity": capacity, **origin}
        if self._file.exists():
            found = read_plain(folder / "pool.json")
            if changed := [key for key in card if found.get(key) != card[key]]:
                raise RunError(
                    f"the pool at {folder} was made with {changed[0]} = {found.get(changed[0])!r}, "
                    f"not {card[changed[0]]!r}"
                )
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "pool.json").write_text(json.dumps(card, indent=2) + "\n")
                shape = (capacity, *spec.shape)
                np.lib.format.open_memmap(self._file, mode="w+", dtype=np.uint8, shape=shape)
                # a sparse file on a full disk would kill the process at its first write
                if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
                    with self._file.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, self._file.stat().st_size)
            except OSError as error:
                raise RunError(f"cannot make a pool at {folder}: {error.strerror}") from error
        self._open()

    @classmethod
    def reopen(cls, folder: Path, spec: InputSpec) -> "Pool":
        """Open a pool as its last commit left it, to read; RunError if there is none."""
        try:
            card = json.loads((folder / "pool.json").read_text())
            added = json.loads((folder / "added.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise RunError(f"no committed pool at {folder}") from error
        origin = {k: v for k, v in card.items() if k not in ("shape", "capacity")}
        pool = cls(folder, spec, card["capacity"], origin)
        pool.added = added
        return pool

    def _open(self) -> None:
        # copy-on-write: what is added stays in memory until it is committed
        try:
            self._images = np.load(self._file, mmap_mode="c")
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"{self._file} is damaged: {first_line(error)}") from error

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Batch) -> None:
        """Store the batch's images, rounded to uint8, over the oldest ones."""
        images = self.spec.decode(batch.images).cpu()[-self.capacity :]
        slots = (self.added + np.arange(len(images))) % self.capacity
        self._images[slots] = images.numpy()
        self._journal.append((self.added, images))
        self.added += len(images)
        while self._journal[0][0] + len(self._journal[0][1]) <= self.added - self.capacity:
            self._journal.pop(0)  # all overwritten since

    def images(self, most: int | None = None) -> Tensor:
        """All stored images, or at most so many, uint8 (N, C, H, W), a copy."""
        return torch.from_numpy(np.array(self._images[: len(self)][:most]))

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Draw `num` images with replacement, in the teacher's input space, on the rng's device."""
        index = torch.randint(len(self), (num,), generator=rng, device=rng.device).cpu()
        images = torch.from_numpy(self._images[index.numpy()])
        return self.spec.encode(images.to(rng.device))

    def commit(self) -> None:
        """Write what was added since the last commit to the file."""
        if self._journal:
            on_disk = np.load(self._file, mmap_mode="r+")
            for start, images in self._journal:
                on_disk[(start + np.arange(len(images))) % self.capacity] = images.numpy()
            on_disk.flush()
            self._journal = []
            self._open()
        try:
            self._file.with_name("added.json").write_text(f"{self.added}\n")
        except OSError as error:
            raise RunError(f"cannot write {self._file.parent}: {error.strerror}") from error

    def state_dict(self) -> dict[str, Any]:
        """How much was ever added, and the images that are not on disk yet."""
        return {"added": self.added, "journal": list(self._journal)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the count and write the checkpoint's images again."""
        self.added = state["added"]
        self._journal = [(start, images.cpu()) for start, images in state["journal"]]
        self.commit()
        self._open()


class StoredImages:
    """A fixed set of images as a synthesizer: what tasks that are handed images train on.

    Args:
        teacher: answers for them.
        images: uint8 (N, C, H, W).
        batch_size: drawn with replacement.
        rng: draws.

    """

    streams: ClassVar[bool] = True
    adversarial: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    repeat: ClassVar[int] = 1
    warm_up: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, teacher: Teacher, images: Tensor, batch_size: int, *, rng: torch.Generator
    ) -> None:
        self.teacher, self.images, self.batch_size, self.rng = teacher, images, batch_size, rng

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Random images of the set with the teacher's answers."""
        index = torch.randint(
            len(self.images), (self.batch_size,), generator=self.rng, device=self.rng.device
        )
        chosen = self.images[index.to(self.images.device)].to(self.rng.device)
        return answered(self.teacher, self.teacher.spec.encode(chosen))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: draws are the rng's."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""
