"""Configuration of int8 files."""

from enum import StrEnum

from dreamstill.config import Text, config_class, no_effect
from dreamstill.errors import ConfigError

__all__ = ["MOST_SEEN", "Backend", "Calibration", "Int8Config"]

MOST_SEEN = 1024
"""Most images that an int8 export looks at."""


class Backend(StrEnum):
    """Kernels for which a .pt2 file is quantized; .pte files always use XNNPACK's."""

    X86 = "x86"
    XNNPACK = "xnnpack"


class Calibration(StrEnum):
    """Method to choose the range of an activation from its values on the images."""

    MIN_MAX = "min-max"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


@config_class
class Int8Config:
    """Configuration of static int8 files."""

    formats: tuple[Text, ...] = ("onnx",)
    """File formats: onnx for onnxruntime, pt2 by torchao, pte for ExecuTorch, tflite for LiteRT, h:
    a C array for TensorFlow Lite Micro."""
    calibration: Calibration | None = None
    """Ranges of activations: min-max, percentile (99.999 %), or entropy (least divergence from the
    rounded values). Default: least squared error for pt2 and pte, min-max for the others."""
    backend: Backend = Backend.X86
    """Kernels for which a pt2 file is quantized: x86 or xnnpack."""

    def __post_init__(self) -> None:
        if not self.formats:
            raise ConfigError(
                "formats must name at least one of onnx, pt2, pte, tflite, h; got none"
            )
        if len(set(self.formats)) < len(self.formats):
            raise ConfigError(f"formats names one twice: {', '.join(self.formats)}")
        if "pt2" not in self.formats:
            no_effect(self, "on formats without pt2", "backend")
