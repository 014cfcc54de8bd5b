"""Describe the input of a network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamstill.errors import TeacherError

__all__ = ["InputSpec"]

MOST_VALUES = 2**28
"""Maximum values of an input: 1 GiB as float32."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Shape and normalization of a network's input: (pixels in [0, 1] - mean) / std, per channel.

    Args:
        shape: (C, H, W).
        mean: one value per channel, in units of pixels in [0, 1].
        std: one value per channel, in units of pixels in [0, 1]; above 0.

    Raises:
        TeacherError: a value is invalid, or is meant for pixels in [0, 255].

    Examples:
        >>> spec = InputSpec((1, 1, 2), mean=(0.5,), std=(0.5,))
        >>> spec.encode(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist()
        [-1.0, 1.0]

    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("shape", "mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, Sequence):
                raise TeacherError(f"{name} must be a list of numbers; got {values!r}")
            object.__setattr__(self, name, tuple(values))
        if len(self.shape) != 3 or any(not isinstance(n, int) or n < 1 for n in self.shape):
            signal = " (a signal of C channels and L values is (C, 1, L))" * (len(self.shape) == 2)
            raise TeacherError(
                f"input shape must be three positive numbers C, H, W; got {self.shape}{signal}"
            )
        if math.prod(self.shape) > MOST_VALUES:
            raise TeacherError(
                f"an input may have at most {MOST_VALUES:,} values; got shape {self.shape}"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.shape[0]:
                raise TeacherError(
                    f"{name} must have one value for each of {self.shape[0]} channels; got {values}"
                )
            if not all(torch.isfinite(torch.tensor(v)) for v in values):
                raise TeacherError(f"{name} must be finite; got {values}")
        if min(self.std) <= 0:
            raise TeacherError(f"std must be above 0; got {self.std}")
        if max(self.std) > 10 or any(
            m > 1 and s >= 1 for m, s in zip(self.mean, self.std, strict=True)
        ):
            right = (
                ", ".join(f"{v / 255:.4g}" for v in values) for values in (self.mean, self.std)
            )
            raise TeacherError(
                f"mean {self.mean} and std {self.std} are of pixels in [0, 255], and pixels in "
                "[0, 1] are meant: mean {}, std {}".format(*right)
            )

    @classmethod
    def from_range(cls, shape: tuple[int, int, int], low: float, high: float) -> "InputSpec":
        """Return the spec for inputs in [low, high]; raise TeacherError unless low < high."""
        if not -float("inf") < low < high < float("inf"):
            raise TeacherError(f"range must be low < high, both finite; got {low}, {high}")
        width = high - low
        return cls(shape=shape, mean=(-low / width,) * shape[0], std=(1 / width,) * shape[0])

    def _per_channel(self, values: Sequence[float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Map pixels in [0, 1], float (N, C, H, W), to the network's input space."""
        return (pixels - self._per_channel(self.mean, pixels)) / self._per_channel(self.std, pixels)

    def denormalize(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, C, H, W) to pixels, float, not clipped to [0, 1]."""
        return inputs * self._per_channel(self.std, inputs) + self._per_channel(self.mean, inputs)

    def clip(self, inputs: Tensor) -> Tensor:
        """Clip inputs (N, C, H, W) to the range of pixels in [0, 1]."""
        zero = torch.zeros(1, self.shape[0], 1, 1, dtype=inputs.dtype, device=inputs.device)
        return torch.clamp(inputs, self.normalize(zero), self.normalize(zero + 1))

    def from_unit(self, values: Tensor) -> Tensor:
        """Map values (N, C, H, W) of about zero mean and unit variance to inputs, not clipped.

        If mean and std are statistics of pixels, the values are inputs already. If they encode a
        range such as [0, 255], where N(0, 1) would be black, the values become pixels of mean 0.5
        and standard deviation 0.25.

        >>> spec = InputSpec.from_range((1, 1, 1), 0.0, 255.0)
        >>> values = torch.tensor([-2.0, 0.0, 1.0]).view(3, 1, 1, 1)
        >>> spec.from_unit(values).flatten().round(decimals=2).tolist()
        [0.0, 127.5, 191.25]
        """
        return values if self._of_statistics() else self.normalize(0.5 + 0.25 * values)

    def to_unit(self, inputs: Tensor) -> Tensor:
        """Invert `from_unit`."""
        return inputs if self._of_statistics() else (self.denormalize(inputs) - 0.5) / 0.25

    def _of_statistics(self) -> bool:
        return all(0 < m < 1 for m in self.mean) and all(0.05 <= s <= 0.7 for s in self.std)

    def encode(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, C, H, W) to the network's input space, float32."""
        return self.normalize(images.float() / 255)

    def decode(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, C, H, W) to uint8 images, rounded and clipped."""
        return (self.denormalize(inputs) * 255).round().clamp(0, 255).to(torch.uint8)

    def noise(self, num: int) -> Tensor:
        """Return uint8 images (N, C, H, W) of uniform noise, the same ones every time."""
        rng = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (num, *self.shape), dtype=torch.uint8, generator=rng)
