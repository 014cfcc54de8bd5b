"""What a peer's script is asked and answers, in JSON. Imports torch alone.

    python -m benchmarks.peers.NAME TASK.json

The script writes an .onnx file that maps "input" (N, C, H, W), already normalized, to "logits", and
its answer beside it: the settings that the library had, and its version.
"""

import importlib
import json
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Task", "export", "main", "open_network", "random_inputs"]


@dataclass(frozen=True)
class Task:
    """One row of the comparison, as its script reads it."""

    weights: str
    """State dict of the network, .safetensors."""
    factory: str
    """module:function that builds the network."""
    shape: tuple[int, int, int]
    """(C, H, W)."""
    onnx: str
    """The network in floats, as torch's exporter writes it."""
    real: str
    """64 real images, float32 (N, C, H, W), normalized, .npy."""
    out: str
    """The .onnx file to write."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the row, other than the library's defaults."""

    @classmethod
    def read(cls, path: Path) -> "Task":
        """Read a task."""
        plain = json.loads(path.read_text())
        return cls(**plain | {"shape": tuple(plain["shape"])})

    def write(self, path: Path) -> None:
        """Write a task."""
        path.write_text(json.dumps(asdict(self)))

    @property
    def answer(self) -> Path:
        """Where the script answers."""
        return Path(self.out).with_suffix(".answer.json")


def main(make: Callable[[Task], dict[str, Any]], *packages: str) -> None:
    """Make what the task of the command line asks for, and write the answer.

    Args:
        make: writes the product; returns the library's settings and other facts for the row.
        packages: whose versions the answer carries.

    """
    task = Task.read(Path(sys.argv[1]))
    torch.manual_seed(0)
    settings = make(task)
    versions = {name: version(name) for name in packages}
    task.answer.write_text(json.dumps({"settings": settings, "versions": versions}))


def open_network(task: Task) -> nn.Module:
    """Return the network with its weights, in eval mode."""
    load_file = importlib.import_module("safetensors.torch").load_file
    network: nn.Module = pkgutil.resolve_name(task.factory)()
    network.load_state_dict(load_file(task.weights))
    return network.eval()


def random_inputs(task: Task, kind: str, num: int) -> Tensor:
    """Return inputs (num, C, H, W) that are "normal", N(0, 1), or "uniform" in [0, 1]."""
    draw = {"normal": torch.randn, "uniform": torch.rand}[kind]
    return draw(num, *task.shape)


def export(network: nn.Module, task: Task) -> None:
    """Write a network of floats with torch's exporter."""
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        network,
        (torch.randn(2, *task.shape),),
        task.out,
        dynamo=True,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        external_data=False,
        verbose=False,
    )
