"""Save and load weights and checkpoints, and digest values."""

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
    """Base of objects whose state a checkpoint holds."""

    state: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes to save: objects with a `state_dict`, tensors and plain values."""

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes named in `state`."""
        parts = {name: getattr(self, name) for name in self.state}
        return {n: p.state_dict() if hasattr(p, "state_dict") else p for n, p in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in self.state:
            part, value = getattr(self, name), state[name]
            if hasattr(part, "load_state_dict"):
                part.load_state_dict(value)
            else:
                on_device = isinstance(part, Tensor)  # a checkpoint is mapped to the run's device
                setattr(self, name, value.to(part.device) if on_device else value)


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of bytes, or of plain values as JSON."""
    data = value if isinstance(value, bytes | memoryview) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def save_weights(path: Path, module: nn.Module) -> None:
    """Write a network's state dict as .safetensors."""
    # cloned, because safetensors refuses tensors that share memory
    weights = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
    write_atomically(path, save(weights))


def save_checkpoint(path: Path, value: Any) -> None:
    """Write a value with torch.save."""
    buffer = io.BytesIO()  # on a full disk, torch's own file writer ends the process
    torch.save(value, buffer)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path, device: str) -> dict[str, Any]:
    """Load a checkpoint with its tensors on `device`; raise RunError if the file is damaged."""
    with reading(path, RunError):
        state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict):
        raise RunError(f"{path} is damaged: it holds {type(state).__name__}, not a checkpoint")
    return state
