"""Presets: methods as their papers ran them on a data set, or as we did, and their students.

What the student's side has no setting for is left out: ZSKD's kinds of augmentation are without
their amounts. Where a paper names no course of the learning rate it stays as it is, and
DeepInversion's student is without a weight decay, which its paper's supplement leaves open. Pixels
that the authors optimize in [0, 1] are optimized in the teacher's input space here, so that their
learning rates are divided by the standard deviation of the data set.
"""

from dataclasses import replace
from typing import Any, NamedTuple

from dreamstill.synthesis.methods import dafl, deepinversion, dfad, rdskd
from dreamstill.synthesis.methods.abd import AbdConfig
from dreamstill.synthesis.methods.metadata import MetadataConfig
from dreamstill.synthesis.methods.structured_noise import StructuredNoiseConfig
from dreamstill.synthesis.methods.zskd import ZskdConfig
from dreamstill.synthesis.methods.zskt import ZsktConfig
from dreamstill.synthesis.random_shapes import CLOTHES, SCENES

__all__ = ["PRESETS", "Preset"]


class Preset(NamedTuple):
    """A method's settings, and what a file of settings would say of the student's."""

    synthesis: Any
    distill: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default is never changed)


DAFL = {"losses": ["kl"], "temperature": 1.0}
DAFL_CIFAR = {
    "steps": 240_000,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "drops": [0.4, 0.8],
}
DFAD = {"losses": ["l1"], "optimizer": "sgd"}
DEEPINVERSION = {
    "losses": ["kl"],
    "temperature": 3.0,
    "steps": 48_750,  # 250 epochs
    "optimizer": "sgd",
    "lr": 0.1,
    "drops": [0.4, 0.8],
}
RDSKD = {"losses": ["kl"], "temperature": 10.0, "steps": 120_000, "lr": 2e-3}
ZSKT = {
    "losses": ["kl", "attention"],
    "loss_weights": [0.1, 250.0],  # their KL is the mean over the ten classes too
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
        "mnist": Preset(dafl.MNIST, DAFL | {"steps": 24_000, "lr": 2e-3, "anneal": False}),
        "cifar10": Preset(dafl.CIFAR10, DAFL | DAFL_CIFAR),
        "cifar100": Preset(dafl.CIFAR100, DAFL | DAFL_CIFAR),
        "ours": Preset(
            replace(dafl.MNIST, batch_size=128, widths=(32, 16), lr=0.02),
            {
                "steps": 8000,
                "batch_size": 64,
                "lr": 3e-3,
                "fresh_every": 2,
                "augment": {"shift": 0.1, "rotate": 15.0, "scale": 0.15, "mix": True},
            },
        ),
    },
    "deepinversion": {
        "cifar10": Preset(deepinversion.CIFAR10, DEEPINVERSION),
        "adaptive": Preset(
            replace(deepinversion.CIFAR10, competition=10.0),
            DEEPINVERSION | {"prefill": 0, "fresh_every": 50},
        ),
        "imagenet": Preset(deepinversion.IMAGENET),
    },
    "zskd": {
        "cifar10": Preset(
            ZskdConfig(batch_size=100, steps=1500, lr=4e-3),  # 1e-3 / 0.25
            {
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
            dfad.MNIST, DFAD | {"steps": 10_000, "lr": 0.01, "weight_decay": 1e-4, "anneal": False}
        ),
        "cifar10": Preset(
            dfad.CIFAR10,
            DFAD | {"steps": 125_000, "lr": 0.1, "weight_decay": 5e-4, "drops": [0.2, 0.4]},
        ),
    },
    "rdskd": {
        "mnist": Preset(rdskd.MNIST, RDSKD | {"anneal": False}),
        "svhn": Preset(rdskd.COLOR, RDSKD | {"anneal": False}),
        "cifar10": Preset(rdskd.COLOR, RDSKD | {"drops": [0.8]}),
    },
    "abd": {"cifar100": Preset(AbdConfig())},
    "metadata": {
        # 100 batches a class, shown 30 times
        "mnist": Preset(
            MetadataConfig(lr=0.23),  # 0.07 / 0.308
            {"steps": 7500, "anneal": False, "buffer_size": 64_000},
        ),
    },
}
