"""A goal of compression, such as int8, half or 500KB, and the job that pursues it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from dreamstill.config import Float, Text, above, config_class, no_effect, within
from dreamstill.errors import ConfigError, quoted
from dreamstill.graph.config import kept_share
from dreamstill.pipelines.config import ImagesJob

__all__ = ["Goal", "GoalJob", "PACKED", "parse_goal"]

PACKED = "packed"
"""Format of a packed file, which is not an export: a candidate of its own."""
SHARES = {"half": 0.5, "quarter": 0.25}
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "KIB": 2**10, "MIB": 2**20}
"""Bytes of a unit, in capitals."""
FOUR_BITS = ("int4", "4bit", "4bits", "w4a4")
"""Other names of the goal w4, for a message."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Goal of a compression: what the network must be."""

    text: str
    """As the user wrote it."""
    task: str = ""
    """int8 or quantize, where the goal is a kind of number."""
    macs: float | None = None
    """Largest share of the teacher's multiply-accumulates."""
    share: float | None = None
    """Largest share of the bytes of the teacher's file."""
    size: int | None = None
    """Largest size of the file in bytes."""

    @property
    def by_bytes(self) -> bool:
        """Whether the file's bytes are all that counts."""
        return not self.task and self.macs is None

    def limits(self, teacher: Mapping[str, Any]) -> dict[str, float]:
        """Return the largest values of macs and bytes that are allowed; `teacher` has its own."""
        limits = dict[str, float]()
        if self.macs is not None:
            limits["macs"] = self.macs * teacher["macs"]
        if self.share is not None:
            limits["bytes"] = self.share * teacher["bytes"]
        if self.size is not None:
            limits["bytes"] = self.size
        return limits

    def excess(self, network: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, float]:
        """Return how many times as large as allowed a network's macs and bytes are.

        >>> parse_goal("2x").excess({"macs": 9, "bytes": 60}, {"macs": 9, "bytes": 100})
        {'bytes': 1.2}
        """
        limits = self.limits(teacher)
        return {name: network[name] / most for name, most in limits.items()}

    def __str__(self) -> str:
        """Say what the goal means, in words."""
        if self.task == "int8":
            return "int8: weights and activations of 8 bits"
        if self.task == "quantize":
            return "w4: weights and activations of 4 bits, of the first and last layer 8"
        if self.macs is not None:
            most = f"{100 * self.macs:g} % of the multiply-accumulates"
            return f"{self.text}: at most {most} and of the bytes of the file"
        if self.share is not None:
            return f"{self.text}: a file at least {1 / self.share:g} times smaller"
        return f"{self.text}: a file of at most {self.size:,} bytes"


def parse_goal(text: str) -> Goal:
    """Return the goal that a text names.

    Raises ConfigError for a text that names none.

    >>> parse_goal("500KB").size, parse_goal("10x").share, parse_goal("half").macs
    (500000, 0.1, 0.5)
    """
    low = text.lower()
    if low == "int8":
        return Goal(low, task="int8")
    if low == "w4":
        return Goal(low, task="quantize")
    if low in SHARES:
        return Goal(low, macs=SHARES[low], share=SHARES[low])
    number, unit = r"(\d+(?:\.\d+)?)", "|".join(UNITS)
    if (factor := re.fullmatch(f"{number}x", low)) and float(factor[1]) > 1:
        return Goal(text, share=1 / float(factor[1]))
    size = re.fullmatch(f"{number} ?({unit})", text.upper())
    if size and (num := round(float(size[1]) * UNITS[size[2]])) > 0:
        return Goal(text, size=num)
    hint = " (did you mean w4?)" if low in FOUR_BITS else ""
    if text.isdecimal():
        hint = f" (did you mean {text}{'KB' if int(text) < 1000 else 'B'}?)"
    raise ConfigError(
        f"to must be int8, w4, half, quarter, a factor such as 10x, or a size such as 500KB or "
        f"1.5MB; got {quoted(text)}{hint}"
    )


@config_class
class GoalJob(ImagesJob):
    """Configuration of a compression toward a goal."""

    to: Text
    """Goal: int8, w4 (4 bits), half or quarter (of the multiply-accumulates and of the file), a
    factor of the file's bytes such as 10x, or its size such as 500KB (1,000 bytes each) or 1MiB."""
    format: tuple[Text, ...] = ("onnx",)
    """Formats of the files to write, the first being the one that is measured: see export; packed
    lets packing be tried too."""
    lose_at_most: Annotated[Float, within(0, 100)] = 1.0
    """Largest predicted loss: points of agreement with the teacher on its validation set, from 100;
    0 to 100."""
    minutes: Annotated[Float, above(0)] = 30.0
    """Minutes after which nothing new is begun; above 0."""
    student: Text | None = None
    """module:function of a student of your own, to try too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_goal(self.to)  # raises
        if not self.format:
            raise ConfigError("format must name at least one, such as onnx; got none")
        if len(set(self.format)) < len(self.format):
            raise ConfigError(f"format names one twice: {', '.join(self.format)}")
        if PACKED in self.format and not self.goal.by_bytes:
            raise ConfigError(f"format packed has no effect on {self.to}: it is about bytes alone")
        if self.goal.task:
            no_effect(self, f"on {self.to}", "student")
        if kept_share(self.student) is not None:
            raise ConfigError(f"student {self.student} is tried anyway: leave it out")

    @property
    def goal(self) -> Goal:
        """The goal, parsed."""
        return parse_goal(self.to)
