"""Progress of long work."""

from dataclasses import dataclass

__all__ = ["Progress", "start_kept"]


def start_kept(steps: int) -> str:
    """Say that training was in vain, and what to do."""
    return (
        f"none of the {steps:,} steps improved on the start, which was kept: lower the learning "
        "rate, or leave the steps out"
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """One batch that was synthesized before the first step, or one student step."""

    stage: str
    """"warm up", "synthesize" or "distill"."""
    done: int
    total: int
    record: dict[str, float]
    """Of a student step: step, loss and, after a validation, agreement, kl and best; of the last
    step also chosen_at_step, the step whose student was chosen: 0 is the start."""
