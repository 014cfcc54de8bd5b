"""Weights, checkpoints and digests of a run."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from dreamstill.errors import RunError
from dreamstill.files.reading import reading
from dreamstill.files.writing import write_atomically

__all__ = ["digest", "load_checkpoint", "save_checkpoint", "save_weights"]


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of bytes, or of plain values as JSON."""
    data = value if isinstance(value, bytes | memoryview) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def save_weights(path: Path, module: nn.Module) -> None:
    """Write a network's state dict as .safetensors."""
    # copies: the format has no tensors that share their values
    weights = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
    write_atomically(path, save(weights))


def save_checkpoint(path: Path, value: Any) -> None:
    """Write what torch.save makes of a value."""
    buffer = io.BytesIO()  # on a full disk, its own writer ends the process
    torch.save(value, buffer)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path, device: str) -> dict[str, Any]:
    """What torch.save wrote, its tensors on the device; RunError for a damaged file."""
    with reading(path, RunError):
        state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict):
        raise RunError(f"{path} is damaged: it holds {type(state).__name__}, not a checkpoint")
    return state
