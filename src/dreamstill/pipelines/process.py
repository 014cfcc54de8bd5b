"""The process's random generators, threads and warnings."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["seeded_process", "settle_process"]


@contextmanager
def seeded_process(seed: int, device: str = "cpu") -> Iterator[None]:
    """Seed torch's global generators, which a student's dropout draws from, and restore them."""
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield


def _process_rng(device: str) -> list[Tensor]:
    """State of torch's global generators: the CPU's, and that of a CUDA device."""
    own = [torch.cuda.get_rng_state(device)] if device.startswith("cuda") else []
    return [torch.get_rng_state(), *own]


def _set_process_rng(states: list[Tensor], device: str) -> None:
    torch.set_rng_state(states[0].cpu())
    if device.startswith("cuda"):
        torch.cuda.set_rng_state(states[1].cpu(), device)


def settle_process() -> None:
    """Settings of the whole process: denormal numbers count as zero.

    Generators and soft masks are full of them, and each costs a CPU many times a normal number.
    """
    torch.set_flush_denormal(True)
