"""Open a .pt2 file, a program of torch.export: torch's exporter writes it as ONNX, which is read.

Its weights keep their names, and its BatchNorm stays, since nothing is optimized on the way.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamstill.errors import ConfigError, TeacherError, innermost
from dreamstill.exporters.pt2 import check_pt2
from dreamstill.files.reading import reading, understood
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.loaded import Loaded
from dreamstill.loaders.onnx.file import network_of
from dreamstill.nn.seeded import rng_kept
from dreamstill.quiet import quiet

__all__ = ["load", "reads"]


def reads(weights: str) -> bool:
    """Return whether a file is named as a program of torch.export."""
    return Path(weights).suffix.lower() == ".pt2"


def load(file: TeacherFile, card: dict[str, Any]) -> Loaded:
    """Open a .pt2 file.

    Raises:
        ConfigError: a factory is given, which the file does not need.
        TeacherError: the file is damaged, may hold code, is quantized, or is not a network of
            images.

    """
    if file.factory is not None:
        raise ConfigError(f"{file.weights} holds its network: leave factory {file.factory!r} out")
    path, wrong = Path(file.weights), "does not open as a program of torch.export"
    consent = "write it with torch.export.save, or consent to run its code with allow_pickle"
    with reading(path, TeacherError, wrong, what="network"), quiet():
        data = path.read_bytes()
        zipfile.ZipFile(io.BytesIO(data)).close()  # raises for a damaged file
        if not file.allow_pickle:
            with understood(path, TeacherError, wrong, instead=consent):
                check_pt2(data)
        if _is_quantized(data):
            raise TeacherError(
                f"{path.name} is quantized already, and a teacher is of floats: export the network "
                "before it was quantized"
            )
        program = torch.export.load(io.BytesIO(data))
    try:
        with quiet(), rng_kept():
            written = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    except Exception as error:  # the exporter raises many kinds
        raise TeacherError(
            f"{path.name} has operations that torch's ONNX exporter does not know "
            f"({innermost(error)}): give its weights with a factory instead"
        ) from error
    assert written is not None
    module = program.module()

    def run(inputs: np.ndarray) -> np.ndarray:
        result: np.ndarray = module(torch.from_numpy(inputs)).detach().numpy()
        return result

    return network_of(written.model_proto, path.name, card, run)


def _is_quantized(data: bytes) -> bool:
    """Tell whether a program quantizes what it computes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        graphs = [name for name in archive.namelist() if name.endswith("models/model.json")]
        return any(b"quantized_decomposed." in archive.read(name) for name in graphs)
