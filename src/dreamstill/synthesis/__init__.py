"""Synthesizers, one method a file; this is the table of methods."""

from typing import Any, NamedTuple

from dreamstill.synthesis.contract import Batch, Synthesizer
from dreamstill.synthesis.dafl import Dafl, DaflSettings
from dreamstill.synthesis.deepinversion import DeepInversion, DeepInversionSettings
from dreamstill.synthesis.noise import Noise, NoiseSettings
from dreamstill.synthesis.structured_noise import StructuredNoise, StructuredNoiseSettings
from dreamstill.synthesis.zskd import Zskd, ZskdSettings

__all__ = ["METHODS", "Batch", "Method", "Synthesizer"]


class Method(NamedTuple):
    """A synthesizer's class and that of its settings."""

    synthesizer: Any
    settings: Any


METHODS = {
    "noise": Method(Noise, NoiseSettings),
    "structured_noise": Method(StructuredNoise, StructuredNoiseSettings),
    "dafl": Method(Dafl, DaflSettings),
    "deepinversion": Method(DeepInversion, DeepInversionSettings),
    "zskd": Method(Zskd, ZskdSettings),
}
