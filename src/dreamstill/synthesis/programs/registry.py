"""Registry of image programs."""

from collections.abc import Sequence

from dreamstill.errors import ConfigError
from dreamstill.synthesis.programs import (
    blobs,
    fractals,
    functions,
    leaves,
    masks,
    noise,
    objects,
    patterns,
    spectrograms,
    strokes,
)
from dreamstill.synthesis.programs.drawing import Program

__all__ = ["PROGRAMS", "Program", "open_programs", "register_program"]

PROGRAMS: dict[str, Program] = {
    "hierarchical_noise": noise.hierarchical_noise,
    "smooth_noise": noise.smooth_noise,
    "band_noise": noise.band_noise,
    "ridged_noise": noise.ridged_noise,
    "dead_leaves": leaves.dead_leaves,
    "large_leaves": leaves.large_leaves,
    "objects": objects.objects,
    "balls": objects.balls,
    "strokes": strokes.strokes,
    "scribbles": strokes.scribbles,
    "blobs": blobs.blobs,
    "silhouettes": blobs.silhouettes,
    "scenes": blobs.scenes,
    "landscapes": blobs.landscapes,
    "figures": blobs.figures,
    "coordinate_networks": functions.coordinate_networks,
    "convolutional_textures": functions.convolutional_textures,
    "julia_sets": fractals.julia_sets,
    "folds": fractals.folds,
    "flames": fractals.flames,
    "gradients": patterns.gradients,
    "stripes_and_checks": patterns.stripes_and_checks,
    "tiles": patterns.tiles,
    "cells": patterns.cells,
    "mosaics": patterns.mosaics,
    "ripples": patterns.ripples,
    "spectrograms": spectrograms.spectrograms,
    "organic_mixtures": masks.organic_mixtures,
    "kmeans_mixtures": masks.kmeans_mixtures,
}


def register_program(name: str, program: Program) -> None:
    """Register a custom image program.

    Args:
        name: name of the program; not yet in PROGRAMS.
        program: function (num, (C, H, W), rng) to images (num, C, H, W), float32 in [0, 1], on
            the device of rng; all its random numbers are from rng. The decorator `image_program`
            clamps the pixels and draws empty images once more.

    Raises:
        ConfigError: the name is taken.

    """
    if name in PROGRAMS:
        raise ConfigError(f"there is an image program {name!r} already: choose another name")
    PROGRAMS[name] = program


def open_programs(names: Sequence[str]) -> dict[str, Program]:
    """Return the programs of these names, in their order; all programs if there are no names.

    Raises:
        ConfigError: a name is unknown, or there twice.

    """
    chosen: dict[str, Program] = {}
    for name in names:
        if name not in PROGRAMS:
            raise ConfigError(f"no image program {name!r}: choose among {', '.join(PROGRAMS)}")
        if name in chosen:
            raise ConfigError(f"the image program {name!r} is there twice: name it once")
        chosen[name] = PROGRAMS[name]
    return chosen or dict(PROGRAMS)
