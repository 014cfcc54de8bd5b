"""Synthesizers, one method a file; this is the table of methods."""

from typing import Any, NamedTuple

import torch

from dreamstill.config import from_plain, merge, to_plain
from dreamstill.data.batch import Batch
from dreamstill.errors import SettingsError, TeacherError
from dreamstill.synthesis.base import Synthesizer
from dreamstill.synthesis.methods.abd import Abd, AbdSettings
from dreamstill.synthesis.methods.dafl import Dafl, DaflSettings
from dreamstill.synthesis.methods.deepinversion import DeepInversion, DeepInversionSettings
from dreamstill.synthesis.methods.dfad import Dfad, DfadSettings
from dreamstill.synthesis.methods.knowledge_within import KnowledgeWithin, KnowledgeWithinSettings
from dreamstill.synthesis.methods.metadata import MetadataImages, MetadataSettings
from dreamstill.synthesis.methods.noise import Noise, NoiseSettings
from dreamstill.synthesis.methods.rdskd import Rdskd, RdskdSettings
from dreamstill.synthesis.methods.structured_noise import StructuredNoise, StructuredNoiseSettings
from dreamstill.synthesis.methods.zskd import Zskd, ZskdSettings
from dreamstill.synthesis.methods.zskt import Zskt, ZsktSettings
from dreamstill.synthesis.presets import PRESETS, Preset
from dreamstill.teacher import Teacher

__all__ = [
    "Batch",
    "METHODS",
    "Method",
    "PRESETS",
    "Synthesizer",
    "method_settings",
    "missing_offers",
    "needs_student",
    "open_synthesizer",
    "student_settings",
]


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
    "zskt": Method(Zskt, ZsktSettings),
    "dfad": Method(Dfad, DfadSettings),
    "rdskd": Method(Rdskd, RdskdSettings),
    "abd": Method(Abd, AbdSettings),
    "knowledge_within": Method(KnowledgeWithin, KnowledgeWithinSettings),
    "metadata": Method(MetadataImages, MetadataSettings),
}
GO_WITH = {
    "transfer": ("transfer_weights", "temperature"),
    "optimizer": ("lr", "momentum", "weight_decay"),
    "anneal": ("drops",),
    "drops": ("anneal",),
}
"""Settings of a student in a preset that mean nothing beside another choice of the first."""


def missing_offers(name: str, teacher: Teacher) -> list[str]:
    """What the method needs and the teacher does not offer, as names of `Offers`."""
    return [need for need in METHODS[name].synthesizer.needs if not getattr(teacher.offers, need)]


def needs_student(name: str, settings: Any) -> bool:
    """The method, or what its settings ask of it, plays against a live student."""
    return METHODS[name].synthesizer.adversarial or getattr(settings, "adversarial", False)


def method_settings(name: str, plain: Any = None, preset: Any = None) -> Any:
    """Settings of a method from plain values, laid upon those of a preset or the defaults.

    Raises:
        SettingsError: the method has no such preset or setting.

    """
    kind, given = METHODS[name].settings, {} if plain is None else plain
    if isinstance(given, kind) and preset is None:
        return given
    if not isinstance(given, dict):
        raise SettingsError(f"synthesis must be a table of settings; got {given!r}")
    if preset is not None:
        given = merge(to_plain(_preset(name, preset).synthesis), given)
    return from_plain(kind, given, "synthesis")


def student_settings(name: str, plain: Any = None, preset: Any = None) -> Any:
    """Plain values of distillation, laid upon those of a method's preset.

    Whoever names the transfer losses, the optimizer or the course of its learning rate no longer
    has what the preset says beside them: see GO_WITH.

    Raises:
        SettingsError: the method has no such preset.

    """
    given = {} if plain is None else plain
    if preset is None or not isinstance(given, dict):  # the latter is said of the job as a whole
        return given
    whole = _preset(name, preset).distill
    gone = {name for chosen in given for name in GO_WITH.get(chosen, ())}
    return merge({name: value for name, value in whole.items() if name not in gone}, given)


def _preset(name: str, preset: Any) -> Preset:
    presets = PRESETS.get(name, {})
    if not isinstance(preset, str) or preset not in presets:
        known = ", ".join(presets) or "none"
        raise SettingsError(f"{name} has no preset {preset!r}; known: {known}")
    return presets[preset]


def open_synthesizer(
    name: str,
    teacher: Teacher,
    settings: Any,
    *,
    rng: torch.Generator,
) -> Synthesizer:
    """Make a method for a teacher.

    Args:
        name, settings: of the method.
        teacher: whose inputs it makes.
        rng: of all that it draws.

    Raises:
        TeacherError: the teacher lacks what the method needs.

    """
    if missing := missing_offers(name, teacher):
        able = [other for other in METHODS if not missing_offers(other, teacher)]
        raise TeacherError(
            f"{name} needs {missing[0]}, which the teacher does not offer; "
            f"methods that it can serve: {', '.join(able)}"
        )
    synthesizer: Synthesizer = METHODS[name].synthesizer(teacher, settings, rng=rng)
    return synthesizer
