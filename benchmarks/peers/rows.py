"""The rows of the comparison, by network."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["KEEP", "Row", "rows_of"]

KEEP = 0.8
"""Share of the MACs that pruning keeps."""
RESIDUAL = ("conv1", "layer?.?.conv2")
"""Layers of ResNet-20 whose channels a residual sum joins."""


@dataclass(frozen=True)
class Row:
    """What a peer is asked to do."""

    peer: str
    """Its environment."""
    script: str
    """Module of this package."""
    options: dict[str, Any] = field(default_factory=dict)
    tiny: dict[str, Any] = field(default_factory=dict)
    """Options of a tiny run, laid upon the others."""
    note: str = ""
    """What about the row is not as its documentation has it, and why."""

    @property
    def prunes(self) -> bool:
        """Whether the product is a pruned network in floats."""
        return self.script == "torch_pruning" or self.options.get("task") == "prune"


def ours(task: str, note: str = "", **options: Any) -> Row:
    """Return a row of Dreamstill."""
    return Row("dreamstill", "ours", {"task": task} | options, tiny={"num_images": 16}, note=note)


def onnxruntime(inputs: str, **options: Any) -> Row:
    """Return a row of onnxruntime's static quantization."""
    return Row("onnxruntime", "onnxruntime_static", {"inputs": inputs} | options)


def torch_pruning(importance: str, **options: Any) -> Row:
    """Return a row of Torch-Pruning."""
    options = {"keep": KEEP, "importance": importance} | options
    return Row("torch_pruning", "torch_pruning", options)


def toolkit(n_images: int, note: str = "", **options: Any) -> Row:
    """Return a row of the Model Compression Toolkit."""
    return Row(
        "model_compression_toolkit",
        "model_compression_toolkit",
        {"n_images": n_images} | options,
        tiny={"n_images": 4, "n_iter": 2},
        note=note,
    )


def rows_of(network: str) -> dict[str, Row]:
    """Return the rows of "resnet20" or "efficientnet_lite0"."""
    small = network == "resnet20"
    few: dict[str, Any] = {} if small else {"num_images": 64, "note": "64 images, not 1,000"}
    cut = {"keep": KEEP, "reconstruct": 0}
    rows = {
        "int8: Dreamstill": ours("int8", **few),
        "int8: Dreamstill, from noise": ours("int8", method="noise", **few),
        "int8: onnxruntime, random input": onnxruntime("normal"),
        "int8: onnxruntime, random input, per channel": onnxruntime("normal", per_channel=True),
        "int8: onnxruntime, 64 real images": onnxruntime("real"),
        "int8: onnxruntime, 64 real images, per channel": onnxruntime("real", per_channel=True),
        "int8: Model Optimizer, its random input": Row("modelopt", "modelopt_onnx"),
        "int8: Model Optimizer, 64 real images": Row(
            "modelopt", "modelopt_onnx", {"inputs": "real"}
        ),
        "20 % fewer MACs: Dreamstill, reconstructed": ours("prune", prune={"keep": KEEP}, **few),
        "20 % fewer MACs: Dreamstill, only cut": ours("prune", prune=cut, num_images=64),
        "20 % fewer MACs: Torch-Pruning, magnitude": torch_pruning("magnitude"),
    }
    if small:
        # Torch-Pruning cannot follow the shortcuts of the network, which pad channels
        for importance in ("magnitude", "taylor"):
            name = f"20 % fewer MACs: Torch-Pruning, {importance}, residual sums left whole"
            rows[name] = torch_pruning(importance, ignored=RESIDUAL)
        rows["int8: Model Compression Toolkit"] = toolkit(32)
    else:
        rows["int8: Model Compression Toolkit"] = toolkit(
            32, "20 steps for 32 images, not 500: those would take hours here", n_iter=20
        )
        rows["20 % fewer MACs: Torch-Pruning, taylor"] = torch_pruning("taylor", num_inputs=16)
    return rows
