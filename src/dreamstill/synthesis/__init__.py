"""Synthesizers, one method a file; this is the table of methods."""

from typing import Any, NamedTuple

import torch

from dreamstill.errors import TeacherError
from dreamstill.synthesis.contract import Batch, Synthesizer
from dreamstill.synthesis.dafl import Dafl, DaflSettings
from dreamstill.synthesis.deepinversion import DeepInversion, DeepInversionSettings
from dreamstill.synthesis.noise import Noise, NoiseSettings
from dreamstill.synthesis.structured_noise import StructuredNoise, StructuredNoiseSettings
from dreamstill.synthesis.zskd import Zskd, ZskdSettings
from dreamstill.teacher import Teacher

__all__ = ["METHODS", "Batch", "Method", "Synthesizer", "missing_offers", "open_synthesizer"]


class Method(NamedTuple):
    """A synthesizer's class and that of its settings."""

    synthesizer: Any
    settings: Any


METHODS: dict[str, Method] = {
    "noise": Method(Noise, NoiseSettings),
    "structured_noise": Method(StructuredNoise, StructuredNoiseSettings),
    "dafl": Method(Dafl, DaflSettings),
    "deepinversion": Method(DeepInversion, DeepInversionSettings),
    "zskd": Method(Zskd, ZskdSettings),
}


def missing_offers(name: str, teacher: Teacher) -> list[str]:
    """What the method needs and the teacher does not offer, as names of `Offers`."""
    return [need for need in METHODS[name].synthesizer.needs if not getattr(teacher.offers, need)]


def open_synthesizer(
    name: str, teacher: Teacher, settings: Any, *, rng: torch.Generator
) -> Synthesizer:
    """Make a method for a teacher; TeacherError if the teacher lacks what the method needs."""
    if missing := missing_offers(name, teacher):
        able = [other for other in METHODS if not missing_offers(other, teacher)]
        raise TeacherError(
            f"{name} needs {missing[0]}, which the teacher does not offer; "
            f"methods that it can serve: {', '.join(able)}"
        )
    synthesizer: Synthesizer = METHODS[name].synthesizer(teacher, settings, rng=rng)
    return synthesizer
