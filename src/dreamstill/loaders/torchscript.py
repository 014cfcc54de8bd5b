"""Open a TorchScript file: its network answers and has gradients, but its layers are closed."""

import copy
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.errors import ConfigError, TeacherError
from dreamstill.files.reading import reading
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.loaded import Loaded
from dreamstill.nn.closed import ClosedNetwork

__all__ = ["TorchScript", "load", "reads"]


def reads(weights: str) -> bool:
    """Return whether a file is an archive of TorchScript, whatever its name."""
    path = Path(weights)
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).name == "constants.pkl" for name in archive.namelist())
    except zipfile.BadZipFile:  # whoever reads it says that it is damaged
        return False


def load(file: TeacherFile, card: dict[str, Any]) -> Loaded:
    """Open a TorchScript file; raise TeacherError if it is damaged."""
    if file.factory is not None:
        raise ConfigError(
            f"{file.weights} is TorchScript, which holds its network: leave factory "
            f"{file.factory!r} out"
        )
    with reading(file.weights, TeacherError, "is not a whole TorchScript file", what="network"):
        script = torch.jit.load(file.weights, map_location="cpu")
    for parameter in script.parameters():
        parameter.requires_grad_(False)
    note = (
        f"{Path(file.weights).name} is TorchScript, whose layers are closed: a student can learn "
        "from it, but methods that read its BatchNorm, and all other tasks, need it as .onnx, as "
        ".pt2, or as weights with a factory."
    )
    return Loaded(TorchScript(script), notes=(note,))


class TorchScript(ClosedNetwork):
    """A TorchScript program, whose own layers take neither hooks nor changes.

    Its parameters and buffers are the program's, so that they can be counted and hashed.
    """

    reason = "it is TorchScript: open it as .onnx, as .pt2, or as weights with a factory"

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.__dict__["script"] = script  # not a submodule
        for value in script.parameters():
            value.detach_()  # torch warns where one that needs a gradient is moved
        self._register()

    def _register(self) -> None:
        script = self.__dict__["script"]
        for name, value in script.named_parameters():
            shared = nn.Parameter(value, requires_grad=False)
            self.register_parameter(name.replace(".", "_"), shared)
        for name, value in script.named_buffers():
            self.register_buffer(name.replace(".", "_"), value)

    def forward(self, inputs: Tensor) -> Any:
        """Return what the program returns."""
        return self.__dict__["script"](inputs)

    def train(self, mode: bool = True) -> "TorchScript":
        """Set the mode of the program too."""
        self.__dict__["script"].train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> "TorchScript":
        self.__dict__["script"]._apply(fn)
        self._register()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "TorchScript":
        return TorchScript(copy.deepcopy(self.__dict__["script"])).train(self.training)
