"""Networks that answer, and whose layers can be neither read nor changed."""

from typing import ClassVar

from torch import nn

__all__ = ["ClosedNetwork"]


class ClosedNetwork(nn.Module):
    """Base class of such networks: a student can learn from one, and no task can change it."""

    reason: ClassVar[str]
    """Why its layers are closed, and the way out, to follow "the network cannot be changed: "."""
