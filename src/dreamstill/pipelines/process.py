"""Set the random generators and the floating-point mode of the process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["flush_denormals", "seeded_process"]


@contextmanager
def seeded_process(seed: int, device: str = "cpu") -> Iterator[None]:
    """Seed torch's global generators, which dropout uses, for the body; restore them after it."""
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield


def _process_rng(device: str) -> list[Tensor]:
    """Return the states of torch's global generators: of the CPU, and of a CUDA device."""
    own = [torch.cuda.get_rng_state(device)] if device.startswith("cuda") else []
    return [torch.get_rng_state(), *own]


def _set_process_rng(states: list[Tensor], device: str) -> None:
    torch.set_rng_state(states[0].cpu())
    if device.startswith("cuda"):
        torch.cuda.set_rng_state(states[1].cpu(), device)


def flush_denormals() -> None:
    """Flush denormal numbers to zero in the whole process.

    Generators and soft masks produce many of them, and they are slow on a CPU.
    """
    torch.set_flush_denormal(True)
