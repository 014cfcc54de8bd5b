"""Draw images by many small programs, and masks that mix them."""

from dreamstill.synthesis.programs.drawing import Program, image_program
from dreamstill.synthesis.programs.masks import kmeans_mask, organic_mask, smooth_mask
from dreamstill.synthesis.programs.registry import PROGRAMS, open_programs, register_program

__all__ = [
    "PROGRAMS",
    "Program",
    "image_program",
    "kmeans_mask",
    "open_programs",
    "organic_mask",
    "register_program",
    "smooth_mask",
]
