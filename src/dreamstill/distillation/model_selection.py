"""Model selection without real data: the best student so far on the teacher's validation set."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dreamstill.evaluation import agreement, answers, divergence
from dreamstill.input_spec import InputSpec
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import eval_mode
from dreamstill.output_spec import OutputKind
from dreamstill.synthesis.validation_set import ValidationSet

__all__ = ["ModelSelector", "Validation"]

MARGIN = 3
"""Images on which students may agree less and be as good: by the rule of three, what agrees on all
of N may still err on 3 / N. A wider margin lost accuracy at low agreements, where KL is a poor
guide (3 bits, a quarter of the channels)."""


@dataclass(frozen=True, slots=True)
class Validation:
    """Comparison of a student with its teacher on the validation images."""

    agreement: float
    """How far student and teacher agree, 0 to 1: see `dreamstill.evaluation.agreement`."""
    kl: float
    """Mean KL(teacher || student) of decisions, in nats; of values see `divergence`."""
    best: bool
    """The student is the best so far."""


class ModelSelector:
    """Validate a student and keep a copy of the best one.

    Args:
        validation: images and the teacher's answers.
        spec: the teacher's input.
        kind: what its outputs say.

    """

    def __init__(
        self,
        validation: ValidationSet,
        spec: InputSpec,
        kind: OutputKind = OutputKind.CLASSES,
    ) -> None:
        self.validation, self.spec, self.kind = validation, spec, kind
        self.best: nn.Module | None = None
        self.best_step = 0
        self.chosen = (-1.0, 0.0)
        """Agreement and KL of the best student."""
        self.highest = -1.0
        """The highest agreement so far."""
        self.margin = 0.0 if kind is OutputKind.VALUES else MARGIN / len(validation.images)
        """Differences of agreement that say nothing; that of values is R2, and counts no images."""

    def validate(self, student: nn.Module, step: int) -> Validation:
        """Measure the student, and keep a copy if it is the best so far.

        That is the one with the lowest KL of those that agree on as many images as the best does,
        but for MARGIN: one more says nothing of a student, and the KL looks at all of them.
        """
        share, kl = self.measure(student)
        self.highest = max(self.highest, share)
        least = self.highest - self.margin
        best = self.chosen[0] < least or (share >= least and kl <= self.chosen[1])
        if best:
            self.best, self.best_step, self.chosen = copy_network(student), step, (share, kl)
        return Validation(share, kl, best)

    @torch.no_grad()
    def measure(self, student: nn.Module) -> tuple[float, float]:
        """Return agreement with the teacher and mean KL(teacher || student)."""
        images, wanted = self.validation.images, self.validation.logits.cpu()
        with eval_mode(student):
            logits = answers(student, self.spec, images, device=images.device)
        return agreement(logits, wanted, self.kind), divergence(logits, wanted, self.kind)

    def state_dict(self) -> dict[str, Any]:
        """Return the best student."""
        return {
            "best": self.best.state_dict() if self.best is not None else None,
            "best_step": self.best_step,
            "chosen": self.chosen,
            "highest": self.highest,
        }

    def load_state_dict(self, state: dict[str, Any], student: nn.Module) -> None:
        """Continue from a state; `student` lends its architecture to the best one."""
        self.best_step, self.best = state["best_step"], None
        self.chosen, self.highest = state["chosen"], state["highest"]
        if state["best"] is not None:
            self.best = copy_network(student)
            self.best.load_state_dict(state["best"])
