"""Synthesizers, one method a file; this is the table of methods."""

from typing import Any, NamedTuple

import torch

from dreamstill.config import from_plain, merge, to_plain
from dreamstill.data.batch import Batch
from dreamstill.errors import ConfigError, TeacherError
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.methods.abd import Abd, AbdConfig
from dreamstill.synthesis.methods.dafl import Dafl, DaflConfig
from dreamstill.synthesis.methods.deepinversion import DeepInversion, DeepInversionConfig
from dreamstill.synthesis.methods.dfad import Dfad, DfadConfig
from dreamstill.synthesis.methods.knowledge_within import KnowledgeWithin, KnowledgeWithinConfig
from dreamstill.synthesis.methods.metadata import MetadataConfig, MetadataImages
from dreamstill.synthesis.methods.noise import Noise, NoiseConfig
from dreamstill.synthesis.methods.rdskd import Rdskd, RdskdConfig
from dreamstill.synthesis.methods.structured_noise import StructuredNoise, StructuredNoiseConfig
from dreamstill.synthesis.methods.zskd import Zskd, ZskdConfig
from dreamstill.synthesis.methods.zskt import Zskt, ZsktConfig
from dreamstill.synthesis.presets import PRESETS, Preset
from dreamstill.teacher import Teacher

__all__ = [
    "Batch",
    "METHODS",
    "Method",
    "PRESETS",
    "method_config",
    "missing_capabilities",
    "needs_student",
    "open_synthesizer",
    "student_config",
]


class Entry(NamedTuple):
    """The class of a method and the class of its settings."""

    synthesizer: type[Method]
    config: Any


METHODS: dict[str, Entry] = {
    "noise": Entry(Noise, NoiseConfig),
    "structured_noise": Entry(StructuredNoise, StructuredNoiseConfig),
    "dafl": Entry(Dafl, DaflConfig),
    "deepinversion": Entry(DeepInversion, DeepInversionConfig),
    "zskd": Entry(Zskd, ZskdConfig),
    "zskt": Entry(Zskt, ZsktConfig),
    "dfad": Entry(Dfad, DfadConfig),
    "rdskd": Entry(Rdskd, RdskdConfig),
    "abd": Entry(Abd, AbdConfig),
    "knowledge_within": Entry(KnowledgeWithin, KnowledgeWithinConfig),
    "metadata": Entry(MetadataImages, MetadataConfig),
}
GO_WITH = {
    "losses": ("loss_weights", "temperature"),
    "optimizer": ("lr", "momentum", "weight_decay"),
    "anneal": ("drops",),
    "drops": ("anneal",),
}
"""Settings of a student in a preset that mean nothing beside another choice of the first."""


def missing_capabilities(name: str, teacher: Teacher) -> list[str]:
    """What the method needs and the teacher does not offer, as names of `Capabilities`."""
    return [
        need for need in METHODS[name].synthesizer.needs if not getattr(teacher.capabilities, need)
    ]


def needs_student(name: str, config: Any) -> bool:
    """The method, or what its settings ask of it, plays against a live student."""
    return METHODS[name].synthesizer.adversarial or getattr(config, "adversarial", False)


def method_config(name: str, plain: Any = None, preset: Any = None) -> Any:
    """Settings of a method from plain values, laid upon those of a preset or the defaults.

    Raises:
        ConfigError: the method has no such preset or setting.

    """
    kind, given = METHODS[name].config, {} if plain is None else plain
    if isinstance(given, kind) and preset is None:
        return given
    if not isinstance(given, dict):
        raise ConfigError(f"synthesis must be a table of settings; got {given!r}")
    if preset is not None:
        given = merge(to_plain(_preset(name, preset).synthesis), given)
    return from_plain(kind, given, "synthesis")


def student_config(name: str, plain: Any = None, preset: Any = None) -> Any:
    """Merge plain values of distillation over those of a method's preset.

    Where distillation losses, the optimizer or the course of its learning rate are named, what the
    preset says beside them is left out: see GO_WITH.

    Raises:
        ConfigError: the method has no such preset.

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
        raise ConfigError(f"{name} has no preset {preset!r}; known: {known}")
    return presets[preset]


def open_synthesizer(
    name: str,
    teacher: Teacher,
    config: Any,
    *,
    rng: torch.Generator,
) -> Method:
    """Make a method for a teacher.

    Args:
        name, settings: of the method.
        teacher: whose inputs it makes.
        rng: of all that it draws.

    Raises:
        TeacherError: the teacher lacks what the method needs.

    """
    if missing := missing_capabilities(name, teacher):
        able = [other for other in METHODS if not missing_capabilities(other, teacher)]
        raise TeacherError(
            f"{name} needs {missing[0]}, which the teacher does not offer; "
            f"methods that it can serve: {', '.join(able)}"
        )
    return METHODS[name].synthesizer(teacher, config, rng=rng)
