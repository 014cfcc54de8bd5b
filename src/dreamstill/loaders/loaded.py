"""Hold what a loader returns."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dreamstill.black_box.interface import Answer

__all__ = ["Loaded"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network, and what its file says about it."""

    network: nn.Module | Answer
    """A module that maps (N, C, H, W) to logits (N, K), for any N; or what answers, of a black
    box."""
    card: dict[str, Any] = field(default_factory=dict)
    """Entries that the file itself holds, by the keys of CARD; a card beside it and flags win."""
    factory: str = ""
    """Name of what built the network, for the fingerprint."""
    notes: tuple[str, ...] = ()
    """Sentences that the user should read, such as what the file's format has lost."""

    @property
    def module(self) -> nn.Module:
        """The network of a file that holds one, rather than a black box."""
        assert isinstance(self.network, nn.Module)
        return self.network
