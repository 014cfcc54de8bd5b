"""Weights, checkpoints and digests of a run, and objects that a checkpoint holds."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dreamstill.errors import RunError
from dreamstill.files.reading import reading
from dreamstill.files.writing import write_atomically

__all__ = ["Stateful", "digest", "load_checkpoint", "save_checkpoint", "save_weights"]


class Stateful:
    """An object that continues from a checkpoint as if it had never been interrupted."""

    state: ClassVar[tuple[str, ...]] = ()
    """Attributes that a resume needs: parts with a `state_dict`, tensors and plain values."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resume needs."""
        parts = {name: getattr(self, name) for name in self.state}
        return {n: p.state_dict() if hasattr(p, "state_dict") else p for n, p in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        for name in self.state:
            part, value = getattr(self, name), state[name]
            if hasattr(part, "load_state_dict"):
                part.load_state_dict(value)
            else:
                on_device = isinstance(part, Tensor)  # a checkpoint is mapped to the run's device
                setattr(self, name, value.to(part.device) if on_device else value)


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
