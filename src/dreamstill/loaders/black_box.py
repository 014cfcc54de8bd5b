"""Open a teacher of which only the answers are known.

    http://HOST/PATH, https://...   an HTTP endpoint; see `HttpEndpoint`
    onnxruntime:FILE.onnx           a closed file, run by onnxruntime
    function:MODULE:FUNCTION        a function of images (N, C, H, W), a NumPy array

The settings of a run and its answers lie in files, so headers with a key, which belong in neither,
are given by a function of one's own that calls `HttpEndpoint`.
"""

import pkgutil
from typing import Any

from dreamstill.black_box.config import BlackBoxConfig
from dreamstill.black_box.endpoints import HttpEndpoint, OnnxFile
from dreamstill.errors import ConfigError, TeacherError, first_line
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.loaded import Loaded
from dreamstill.nn.seeded import rng_kept

__all__ = ["load", "reads"]

PREFIXES = ("http", "https", "onnxruntime", "function")


def reads(weights: str) -> bool:
    """Return whether a name begins with a prefix of a black box."""
    return weights.partition(":")[0] in PREFIXES and ":" in weights


def load(file: TeacherFile, card: dict[str, Any]) -> Loaded:
    """Open what answers; nothing is asked yet.

    Raises:
        ConfigError: a setting is missing or has no effect, or onnxruntime is not installed.
        TeacherError: the file or the function is wrong.

    """
    if file.factory is not None:
        raise ConfigError(f"{file.weights} has no factory: leave {file.factory!r} out")
    config = file.black_box or BlackBoxConfig()
    if config.cache is None:
        raise ConfigError(
            f"the answers of {file.weights} are kept in a file, so that none is asked for twice: "
            "give teacher.black_box.cache FILE"
        )
    prefix, _, name = file.weights.partition(":")
    if prefix == "function":
        return Loaded(_function(name), factory=file.weights)
    if prefix == "onnxruntime":
        opened = OnnxFile(name)
        return Loaded(opened, factory=f"onnxruntime:{opened.digest}")
    return Loaded(HttpEndpoint(file.weights, timeout=config.timeout), factory=file.weights)


def _function(name: str) -> Any:
    try:
        with rng_kept():
            function = pkgutil.resolve_name(name)
    except Exception as error:  # importing runs the user's own code
        raise TeacherError(f"cannot import the function {name!r}: {first_line(error)}") from error
    if not callable(function):
        raise TeacherError(f"{name!r} must be a function; got {type(function).__name__}")
    return function
