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

__all__ = ["TorchScript", "load", "reads"]


def reads(weights: str) -> bool:
    """Return whether a file is an archive of TorchScript, whatever its name."""
    path = Path(weights)
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).name == "constants.pkl" for name in archive.namelist())


def load(file: TeacherFile, card: dict[str, Any]) -> Loaded:
    """Open a TorchScript file; raise TeacherError if it is damaged."""
    if file.factory is not None:
        raise ConfigError(
            f"{file.weights} is TorchScript, which holds its network: leave factory "
            f"{file.factory!r} out"
        )
    with reading(file.weights, TeacherError, "is not a whole TorchScript file", what="network"):
        script = torch.jit.load(file.weights, map_location="cpu")
    note = (
        f"{Path(file.weights).name} is TorchScript: methods that read BatchNorm or features, and "
        "tasks that change layers, need the network as .onnx, .pt2 or weights with a factory."
    )
    return Loaded(TorchScript(script), notes=(note,))


class TorchScript(nn.Module):
    """A TorchScript program as one layer, since its own layers take neither hooks nor changes.

    Its parameters and buffers are the program's, so that they can be counted and hashed.
    """

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.__dict__["script"] = script  # not a submodule
        for value in script.parameters():
            value.detach_()  # torch warns where one that needs a gradient is moved
        self._register()

    def _register(self) -> None:
        script = self.__dict__["script"]
        for name, value in script.named_parameters():  # as plain tensors
            self.register_parameter(name.replace(".", "_"), nn.Parameter(value, False))
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
