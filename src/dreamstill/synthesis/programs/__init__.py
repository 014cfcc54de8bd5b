"""Draw images by many small programs."""

from dreamstill.synthesis.programs.drawing import Program, image_program
from dreamstill.synthesis.programs.registry import PROGRAMS, open_programs, register_program

__all__ = ["PROGRAMS", "Program", "image_program", "open_programs", "register_program"]
