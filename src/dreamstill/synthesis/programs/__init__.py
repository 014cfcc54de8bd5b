"""Draw images by many small programs, and masks that mix them."""

from dreamstill.synthesis.programs.masks import kmeans_mask, organic_mask, smooth_mask
from dreamstill.synthesis.programs.registry import PROGRAMS, Program, register_program

__all__ = [
    "PROGRAMS",
    "Program",
    "kmeans_mask",
    "organic_mask",
    "register_program",
    "smooth_mask",
]
