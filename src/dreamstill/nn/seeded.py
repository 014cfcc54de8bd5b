"""Control the global random generators, which torch's initializers use."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["rng_kept", "seeded"]


@contextmanager
def rng_kept() -> Iterator[None]:
    """Restore the global generators of torch, NumPy and Python when the context ends.

    >>> before = torch.get_rng_state()
    >>> with rng_kept():
    ...     _ = torch.rand(1)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    of_numpy, of_python = np.random.get_state(), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Seed torch's global CPU generator from `rng` inside the context; restore its state after.

    >>> with seeded(torch.Generator().manual_seed(0)):
    ...     a = torch.rand(1)
    >>> with seeded(torch.Generator().manual_seed(0)):
    ...     b = torch.rand(1)
    >>> bool(a == b)
    True
    """
    seed = int(torch.randint(2**62, (1,), generator=rng, device=rng.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # CPU only, unlike torch.manual_seed
        yield
