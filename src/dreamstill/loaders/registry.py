"""The loaders: for each kind of teacher file, the function that opens it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dreamstill.loaders import black_box, hub, pt2, state_dict, torchscript
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.loaded import Loaded
from dreamstill.loaders.onnx import file as onnx

__all__ = ["LOADERS", "Loader", "loader_of"]


class Loader(NamedTuple):
    """A kind of teacher file."""

    reads: Callable[[str], bool]
    """Whether a path or name is of this kind."""
    load: Callable[[TeacherFile, dict[str, Any]], Loaded]
    """Open it; the second argument is the card, with the fields of the first laid upon it."""


LOADERS: dict[str, Loader] = {
    "black_box": Loader(black_box.reads, black_box.load),
    "hub": Loader(hub.reads, hub.load),
    "onnx": Loader(onnx.reads, onnx.load),
    "pt2": Loader(pt2.reads, pt2.load),
    "torchscript": Loader(torchscript.reads, torchscript.load),
    "state_dict": Loader(lambda weights: True, state_dict.load),
}
"""Loaders by name; the first that reads a file opens it."""


def loader_of(weights: str) -> Loader:
    """Return the loader of a path or name."""
    return next(loader for loader in LOADERS.values() if loader.reads(weights))
