"""Progress of long-running tasks."""

from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = ["OnProgress", "Progress", "start_kept", "under"]


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
    """Name of the stage: "synthesize", "distill", "learn", "validation images" or another."""
    done: int
    total: int
    record: dict[str, float]
    """Metrics of a training step: step and loss; after a validation also agreement, kl and best;
    at the last step also chosen_at_step, the step of the best checkpoint (0 is the start)."""


OnProgress = Callable[[Progress], None]
"""Callback that receives the progress."""


def under(title: str, on_progress: OnProgress) -> OnProgress:
    """Return a callback that puts a title before the stage of what it is told.

    >>> under("round 2 of 4", print)(Progress("distill", 1, 500, {}))
    Progress(stage='round 2 of 4: distill', done=1, total=500, record={})
    """
    return lambda step: on_progress(replace(step, stage=f"{title}: {step.stage}"))
