"""Progress of long-running tasks."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["OnProgress", "Progress", "start_kept"]


def start_kept(steps: int) -> str:
    """Return a message that no step improved on the start, with advice."""
    return (
        f"none of the {steps:,} steps improved on the start, which was kept: take more steps or a "
        "lower learning rate, or leave the steps out"
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress after a synthesized batch or a training step."""

    stage: str
    """What goes on, such as "synthesize", "distill", "learn" or "validation images"."""
    done: int
    total: int
    record: dict[str, float]
    """Metrics of a training step: step and loss; after a validation also agreement, kl and best;
    at the last step also chosen_at_step, the step of the best checkpoint (0 is the start)."""


OnProgress = Callable[[Progress], None]
"""What a caller is told by."""
