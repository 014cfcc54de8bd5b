"""Presets of methods and their students, from the papers or ours.

Unspecified in the papers and left out: the amounts of ZSKD's augmentation, and the weight decay of
DeepInversion's student. The learning rate is constant if a paper names no schedule. Learning rates
for pixels in [0, 1] are divided by the standard deviation of the data set, because pixels are
optimized in the teacher's input space here.
"""

from typing import Any, NamedTuple

from dreamstill.config import from_plain, merge, to_plain
from dreamstill.data.config import NO_AUGMENTATION
from dreamstill.errors import ConfigError, quoted
from dreamstill.synthesis.config import (
    CLOTHES,
    SCENES,
    AbdConfig,
    DaflConfig,
    DeepInversionConfig,
    DfadConfig,
    FastDfkdConfig,
    MetadataConfig,
    NayerConfig,
    RdskdConfig,
    StructuredNoiseConfig,
    ZskdConfig,
    ZsktConfig,
)
from dreamstill.synthesis.registry import METHODS

__all__ = ["PRESETS", "Preset", "method_config", "student_config"]


class Preset(NamedTuple):
    """Configuration of a method, and plain values of its distillation."""

    synthesis: Any
    distill: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default is never changed)


PLAIN = {"augment": to_plain(NO_AUGMENTATION)}
OURS_AUGMENT = {
    **{"shift": 0.1, "rotate": 15.0, "scale": 0.15},
    **{"flip": False, "mixup": 1.0, "cutmix": 0.0},
}
DAFL = PLAIN | {"losses": ["kl"], "temperature": 1.0}
DAFL_CIFAR = {
    "steps": 240_000,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "drops": [0.4, 0.8],
}
DFAD = PLAIN | {"losses": ["l1"], "optimizer": "sgd"}
DEEPINVERSION = PLAIN | {
    "losses": ["kl"],
    "temperature": 3.0,
    "steps": 48_750,  # 250 epochs
    "optimizer": "sgd",
    "lr": 0.1,
    "drops": [0.4, 0.8],
}
FEW_STEPS_CIFAR = {
    "losses": ["kl"],
    "temperature": 20.0,
    "optimizer": "sgd",
    "lr": 0.2,
    "weight_decay": 1e-4,
    "validate_every": 2000,
    "augment": {"shift": 0.125, "flip": True, "mixup": 0.0, "cutmix": 0.0},
}
FEW_STEPS_OURS = {
    "steps": 3000,
    "batch_size": 64,
    "lr": 3e-3,
    "fresh_every": 10,
    "validate_every": 250,
    "num_validation": 512,
    "augment": OURS_AUGMENT,
}
RDSKD = PLAIN | {"losses": ["kl"], "temperature": 10.0, "steps": 120_000, "lr": 2e-3}
ZSKT = PLAIN | {
    "losses": ["kl", "attention"],
    "loss_weights": [0.1, 250.0],  # 0.1: their KL is also a mean over the ten classes
    "temperature": 1.0,
    "lr": 2e-3,
    "clip_gradient": 5.0,
}
PRESETS: dict[str, dict[str, Preset]] = {
    "structured_noise": {
        "clothes": Preset(StructuredNoiseConfig(shapes=CLOTHES)),
        "scenes": Preset(StructuredNoiseConfig(shapes=SCENES)),
    },
    "dafl": {
        "mnist": Preset(DaflConfig(), DAFL | {"steps": 24_000, "lr": 2e-3, "anneal": False}),
        "cifar10": Preset(
            DaflConfig(batch_size=1024, latent=1000, lr=0.02, one_hot=0.05, activation=0.01),
            DAFL | DAFL_CIFAR,
        ),
        "cifar100": Preset(
            DaflConfig(
                batch_size=1024, latent=1000, lr=0.02, one_hot=0.5, information_entropy=20.0
            ),
            DAFL | DAFL_CIFAR,
        ),
        "ours": Preset(
            DaflConfig(batch_size=128, widths=(32, 16), lr=0.02),
            {
                "steps": 8000,
                "batch_size": 64,
                "lr": 3e-3,
                "fresh_every": 2,
                "augment": OURS_AUGMENT,
            },
        ),
    },
    "deepinversion": {
        "cifar10": Preset(DeepInversionConfig(), DEEPINVERSION),
        "adaptive": Preset(
            DeepInversionConfig(competition=10.0),
            DEEPINVERSION | {"prefill": 0, "fresh_every": 50},
        ),
        "imagenet": Preset(
            DeepInversionConfig(
                batch_size=84,
                steps=3000,
                low_resolution_steps=2000,
                lr=0.25,
                betas=(0.5, 0.9),
                lr_warm_up=100,
                cosine=True,
                batch_norm=0.01,
                first_batch_norm=10.0,
                total_variation=1e-4,
                l2=1e-5,
                jitter=30,
            )
        ),
    },
    "zskd": {
        "cifar10": Preset(
            ZskdConfig(batch_size=100, steps=1500, lr=4e-3),  # 1e-3 / 0.25
            PLAIN
            | {
                "losses": ["kl"],
                "temperature": 20.0,
                "steps": 312_500,  # 500 epochs
                "batch_size": 64,
                "lr": 1e-3,
                "anneal": False,
                "buffer_size": 40_000,
            },
        ),
    },
    "zskt": {
        "cifar10": Preset(ZsktConfig(), ZSKT | {"steps": 800_000}),
        "svhn": Preset(ZsktConfig(), ZSKT | {"steps": 500_000}),
    },
    "dfad": {
        "mnist": Preset(
            DfadConfig(),
            DFAD | {"steps": 10_000, "lr": 0.01, "weight_decay": 1e-4, "anneal": False},
        ),
        "cifar10": Preset(
            DfadConfig(batch_size=256, latent=256, drops=(0.2, 0.4)),
            DFAD | {"steps": 125_000, "lr": 0.1, "weight_decay": 5e-4, "drops": [0.2, 0.4]},
        ),
    },
    "rdskd": {
        "mnist": Preset(RdskdConfig(), RDSKD | {"anneal": False}),
        "svhn": Preset(RdskdConfig(latent=1000), RDSKD | {"anneal": False}),
        "cifar10": Preset(RdskdConfig(latent=1000), RDSKD | {"drops": [0.8]}),
    },
    "abd": {"cifar100": Preset(AbdConfig())},
    "fastdfkd": {
        # 200 epochs of 400 steps; the buffer holds all images of these and of the 20 before
        "cifar10": Preset(
            FastDfkdConfig(drawn_start=False),
            FEW_STEPS_CIFAR
            | {
                "steps": 80_000,
                "batch_size": 256,
                "fresh_every": 400,
                "prefill": 5120,
                "buffer_size": 56_320,
            },
        ),
        "ours": Preset(
            FastDfkdConfig(batch_size=128, widths=(32, 16), shift=2, flip=False),
            FEW_STEPS_OURS | {"prefill": 2560},
        ),
    },
    "nayer": {
        # 100 epochs of 400 steps; the buffer holds all images of these and of the 20 before
        "cifar10": Preset(
            NayerConfig(drawn_start=False),
            FEW_STEPS_CIFAR
            | {
                "steps": 40_000,
                "batch_size": 512,
                "fresh_every": 200,
                "prefill": 80_000,
                "buffer_size": 160_000,
            },
        ),
        "ours": Preset(
            NayerConfig(
                batch_size=120,
                latent=100,
                widths=(32, 16),
                generator_steps=10,
                warm_up=20,
                shift=2,
                flip=False,
            ),
            FEW_STEPS_OURS | {"fresh_every": 20, "prefill": 2400},
        ),
    },
    "metadata": {
        # 100 batches per class, replayed 30 times
        "mnist": Preset(
            MetadataConfig(lr=0.23),  # 0.07 / 0.308
            PLAIN | {"steps": 7500, "lr": 2e-3, "anneal": False, "buffer_size": 64_000},
        ),
    },
}
GO_WITH = {
    "losses": ("loss_weights", "temperature"),
    "optimizer": ("lr", "warm_up", "momentum", "weight_decay"),
    "anneal": ("drops",),
    "drops": ("anneal",),
}
"""Settings of a preset to drop, by the setting whose new value makes them meaningless."""


def method_config(name: str, plain: Any = None, preset: Any = None) -> Any:
    """Return the configuration of a method: given values override those of a preset.

    Args:
        name: name of the method in METHODS.
        plain: configuration of the method, dict of its fields, or None.
        preset: name of a preset of the method; None for the defaults.

    Raises:
        ConfigError: the method has no such preset or field.

    """
    kind, given = METHODS[name].config, {} if plain is None else plain
    if isinstance(given, kind) and preset is None:
        return given
    if not isinstance(given, dict):
        raise ConfigError(f"synthesis must be a table of settings; got {quoted(given)}")
    if preset is not None:
        given = merge(to_plain(_preset(name, preset).synthesis), given)
    return from_plain(kind, given, "synthesis")


def student_config(name: str, plain: Any = None, preset: Any = None) -> Any:
    """Return the plain values of a distillation: given values override those of a preset.

    Given losses, optimizer or learning rate schedule also remove the preset's values that belong
    to its own choice; see GO_WITH. A preset of a training starts from random weights and at the
    full learning rate, as the papers do. Raises ConfigError if the method has no such preset.
    """
    given = {} if plain is None else plain
    if preset is None or not isinstance(given, dict):  # `read_job` refuses what is no dict
        return given
    distill = _preset(name, preset).distill
    whole = {"inherit": False, "warm_up": 0.0, **distill} if distill else {}
    gone = {name for chosen in given for name in GO_WITH.get(chosen, ())}
    return merge({name: value for name, value in whole.items() if name not in gone}, given)


def _preset(name: str, preset: Any) -> Preset:
    presets = PRESETS.get(name, {})
    if not isinstance(preset, str) or preset not in presets:
        known = ", ".join(presets) or "none"
        raise ConfigError(f"{name} has no preset {quoted(preset)}; known: {known}")
    return presets[preset]
