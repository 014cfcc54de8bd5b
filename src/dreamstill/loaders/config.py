"""Configuration of a teacher's files."""

from dreamstill.black_box.config import BlackBoxConfig
from dreamstill.config import Bool, Float, Int, OutputKind, Text, config_class

__all__ = ["NO_TEACHER", "TeacherFile"]

NO_TEACHER = (
    "no teacher: give MODEL, a file or a name, or weights in the [teacher] table of a TOML file"
)


@config_class
class TeacherFile:
    """Files and input of a teacher. Fields that are None are read from the card."""

    weights: Text
    """The network: path of a .safetensors, .onnx, .pt2 or TorchScript file or a state dict; or
    timm:NAME, torchvision:NAME (NAME@FILE: with the weights of FILE) or hf:FOLDER; or of which only
    the answers are known, http://HOST/PATH, onnxruntime:FILE or function:MODULE:FUNCTION."""
    card: Text | None = None
    """Path of the card. Default: the name of the weights with .json or .toml."""
    factory: Text | None = None
    """module:function that builds the network of a state dict."""
    shape: tuple[Int, Int, Int] | None = None
    """Shape C,H,W of an input."""
    mean: tuple[Float, ...] | None = None
    """Mean that is subtracted from each channel, of pixels in [0, 1]."""
    std: tuple[Float, ...] | None = None
    """Standard deviation by which each channel is divided, of pixels in [0, 1]."""
    range: tuple[Float, Float] | None = None
    """Lowest and highest input value, in place of mean and std."""
    outputs: OutputKind | None = None
    """Meaning of the outputs: classes, labels (several may be right), values (regression)
    or dense (a class for every pixel). Default: classes, or dense by their shape."""
    num_classes: Int | None = None
    """Number of classes, labels or values, checked against the network."""
    class_names: tuple[Text, ...] | None = None
    """Names of the classes, in order, for reports and pictures."""
    allow_pickle: Bool = False
    """Consent to run the code in a full pickle. Never for a file that you do not trust."""
    black_box: BlackBoxConfig | None = None
    """Settings of a teacher of which only the answers are known."""
