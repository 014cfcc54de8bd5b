"""Registry of methods."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamstill.errors import ConfigError, TeacherError
from dreamstill.synthesis import config

if TYPE_CHECKING:
    import torch

    from dreamstill.synthesis.base import Method
    from dreamstill.teacher import Teacher

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "MethodEntry",
    "missing_capabilities",
    "needs_student",
    "open_synthesizer",
    "register_method",
]


@dataclass(frozen=True)
class MethodEntry:
    """Configuration class and class of a method; the latter is imported when needed."""

    config: Any
    implementation: Any
    """Class of the method, or its module in `methods/` and name as "module:Class"."""

    @property
    def synthesizer(self) -> Any:
        """Class of the method; the import includes torch."""
        if not isinstance(self.implementation, str):
            return self.implementation
        module, name = self.implementation.split(":")
        return getattr(importlib.import_module(f"dreamstill.synthesis.methods.{module}"), name)


DEFAULT_METHOD = "image_programs"
METHODS: dict[str, MethodEntry] = {
    "image_programs": MethodEntry(config.ImageProgramsConfig, "image_programs:ImagePrograms"),
    "noise": MethodEntry(config.NoiseConfig, "noise:Noise"),
    "structured_noise": MethodEntry(
        config.StructuredNoiseConfig, "structured_noise:StructuredNoise"
    ),
    "dafl": MethodEntry(config.DaflConfig, "dafl:Dafl"),
    "deepinversion": MethodEntry(config.DeepInversionConfig, "deepinversion:DeepInversion"),
    "zskd": MethodEntry(config.ZskdConfig, "zskd:Zskd"),
    "zskt": MethodEntry(config.ZsktConfig, "zskt:Zskt"),
    "dfad": MethodEntry(config.DfadConfig, "dfad:Dfad"),
    "rdskd": MethodEntry(config.RdskdConfig, "rdskd:Rdskd"),
    "abd": MethodEntry(config.AbdConfig, "abd:Abd"),
    "fastdfkd": MethodEntry(config.FastDfkdConfig, "fastdfkd:FastDfkd"),
    "nayer": MethodEntry(config.NayerConfig, "nayer:Nayer"),
    "knowledge_within": MethodEntry(
        config.KnowledgeWithinConfig, "knowledge_within:KnowledgeWithin"
    ),
    "metadata": MethodEntry(config.MetadataConfig, "metadata:MetadataImages"),
}


def register_method(name: str, config: Any, synthesizer: Any) -> None:
    """Register a custom method for `synthesize` and `distill`.

    Args:
        name: name of the method; not yet in METHODS.
        config: configuration class with a field `batch_size`, made with
            `dreamstill.config.config_class`.
        synthesizer: subclass of `dreamstill.synthesis.base.Method`.

    Raises:
        ConfigError: the name is taken.

    """
    if name in METHODS:
        raise ConfigError(f"there is a method {name!r} already: choose another name")
    METHODS[name] = MethodEntry(config, synthesizer)


def missing_capabilities(name: str, teacher: "Teacher") -> list[str]:
    """Return the names of the `Capabilities` that a method needs and the teacher lacks."""
    needs = METHODS[name].synthesizer.needs
    return [need for need in needs if not getattr(teacher.capabilities, need)]


def needs_student(name: str, config: Any) -> bool:
    """Tell whether a method, as configured, needs a live student."""
    return bool(METHODS[name].synthesizer.adversarial or getattr(config, "adversarial", False))


def open_synthesizer(
    name: str, teacher: "Teacher", config: Any, *, rng: "torch.Generator"
) -> "Method":
    """Create a method for a teacher.

    Args:
        name: name of the method in METHODS.
        teacher: network to synthesize images for.
        config: instance of the method's configuration class.
        rng: generator of all random numbers.

    Raises:
        TeacherError: the teacher lacks a capability.

    """
    if missing := missing_capabilities(name, teacher):
        able = [other for other in METHODS if not missing_capabilities(other, teacher)]
        raise TeacherError(
            f"{name} needs {missing[0]}, which the teacher lacks; "
            f"methods that it can serve: {', '.join(able)}"
        )
    synthesizer: Method = METHODS[name].synthesizer(teacher, config, rng=rng)
    return synthesizer
