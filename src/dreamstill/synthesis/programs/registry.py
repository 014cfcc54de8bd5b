"""Registry of image programs."""

from dreamstill.errors import ConfigError
from dreamstill.synthesis.programs import (
    blobs,
    fractals,
    functions,
    leaves,
    noise,
    objects,
    patterns,
    spectrograms,
    strokes,
)
from dreamstill.synthesis.programs.drawing import Program

__all__ = ["PROGRAMS", "Program", "register_program"]

PROGRAMS: dict[str, Program] = {
    program.__name__: program
    for program in (
        noise.hierarchical_noise,
        noise.smooth_noise,
        noise.band_noise,
        noise.ridged_noise,
        leaves.dead_leaves,
        leaves.large_leaves,
        objects.objects,
        objects.balls,
        strokes.strokes,
        strokes.scribbles,
        blobs.blobs,
        blobs.silhouettes,
        blobs.scenes,
        blobs.landscapes,
        blobs.figures,
        functions.coordinate_networks,
        functions.convolutional_textures,
        fractals.julia_sets,
        fractals.folds,
        fractals.flames,
        patterns.gradients,
        patterns.stripes_and_checks,
        patterns.tiles,
        patterns.cells,
        patterns.mosaics,
        patterns.ripples,
        spectrograms.spectrograms,
    )
}


def register_program(name: str, program: Program) -> None:
    """Register a custom image program.

    Args:
        name: name of the program; not yet in PROGRAMS.
        program: function (num, (C, H, W), rng) to images (num, C, H, W), float32 in [0, 1], on
            the device of rng; all its random numbers are from rng.

    Raises:
        ConfigError: the name is taken.

    """
    if name in PROGRAMS:
        raise ConfigError(f"there is an image program {name!r} already: choose another name")
    PROGRAMS[name] = program
