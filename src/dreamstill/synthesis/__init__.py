"""Synthesizers, one method a file; this is the table of methods."""

from typing import Any, NamedTuple

import torch

from dreamstill.errors import SettingsError, TeacherError
from dreamstill.settings import from_plain, merge, to_plain
from dreamstill.synthesis import abd, dafl, deepinversion, dfad, rdskd, zskt
from dreamstill.synthesis.contract import Batch, Synthesizer
from dreamstill.synthesis.drawings import CLOTHES, SCENES
from dreamstill.synthesis.knowledge_within import KnowledgeWithin, KnowledgeWithinSettings
from dreamstill.synthesis.metadata import MetadataImages, MetadataSettings
from dreamstill.synthesis.noise import Noise, NoiseSettings
from dreamstill.synthesis.structured_noise import StructuredNoise, StructuredNoiseSettings
from dreamstill.synthesis.zskd import Zskd, ZskdSettings
from dreamstill.teacher import Teacher

__all__ = [
    "METHODS",
    "Batch",
    "Method",
    "Synthesizer",
    "method_settings",
    "missing_offers",
    "needs_student",
    "open_synthesizer",
]


class Method(NamedTuple):
    """A synthesizer's class, that of its settings, and presets of these: the papers' or ours."""

    synthesizer: Any
    settings: Any
    presets: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default is never changed)


METHODS: dict[str, Method] = {
    "noise": Method(Noise, NoiseSettings),
    "structured_noise": Method(
        StructuredNoise,
        StructuredNoiseSettings,
        {
            "clothes": StructuredNoiseSettings(drawing=CLOTHES),
            "scenes": StructuredNoiseSettings(drawing=SCENES),
        },
    ),
    "dafl": Method(
        dafl.Dafl,
        dafl.DaflSettings,
        {"mnist": dafl.MNIST, "cifar10": dafl.CIFAR10, "cifar100": dafl.CIFAR100},
    ),
    "deepinversion": Method(
        deepinversion.DeepInversion,
        deepinversion.DeepInversionSettings,
        {"cifar10": deepinversion.CIFAR10, "imagenet": deepinversion.IMAGENET},
    ),
    "zskd": Method(Zskd, ZskdSettings),
    "zskt": Method(zskt.Zskt, zskt.ZsktSettings, {"cifar10": zskt.CIFAR10, "svhn": zskt.SVHN}),
    "dfad": Method(dfad.Dfad, dfad.DfadSettings, {"mnist": dfad.MNIST, "cifar10": dfad.CIFAR10}),
    "rdskd": Method(
        rdskd.Rdskd, rdskd.RdskdSettings, {"mnist": rdskd.MNIST, "cifar10": rdskd.CIFAR10}
    ),
    "abd": Method(abd.Abd, abd.AbdSettings, {"cifar100": abd.CIFAR100}),
    "knowledge_within": Method(KnowledgeWithin, KnowledgeWithinSettings),
    "metadata": Method(MetadataImages, MetadataSettings),
}


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
    method, given = METHODS[name], {} if plain is None else plain
    if isinstance(given, method.settings) and preset is None:
        return given
    if not isinstance(given, dict):
        raise SettingsError(f"synthesis must be a table of settings; got {given!r}")
    if preset is not None:
        if not isinstance(preset, str) or preset not in method.presets:
            known = ", ".join(method.presets) or "none"
            raise SettingsError(f"{name} has no preset {preset!r}; known: {known}")
        given = merge(to_plain(method.presets[preset]), given)
    return from_plain(method.settings, given, "synthesis")


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
