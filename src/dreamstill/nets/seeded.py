"""Initialize modules from an rng of our own: torch's initializers know the global one alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded"]


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Run the body with the global CPU seed drawn from `rng`; the global state is restored.

    >>> with seeded(torch.Generator().manual_seed(0)):
    ...     a = torch.rand(1)
    >>> with seeded(torch.Generator().manual_seed(0)):
    ...     b = torch.rand(1)
    >>> bool(a == b)
    True
    """
    seed = int(torch.randint(2**62, (1,), generator=rng, device=rng.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone
        yield
