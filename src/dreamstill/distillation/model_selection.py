"""Model selection without real data: the best student so far on held-out synthetic images.

Validation batches come from the same stream as the training batches, and no batch is both. Where a
method makes each image anew, or images were set aside as in fine-tuning, no image is both either; a
stream that draws from stored images, such as the real ones of a benchmark's bound, may give an
image to both, and the measured agreement is then too high. The newest validation images replace the
oldest, because an adversarial method's images change: the best student so far and the current one
are both measured on the same images each time.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.data.batch import Batch
from dreamstill.evaluation import agreement, answers
from dreamstill.input_spec import InputSpec
from dreamstill.losses.logits import kl_divergence
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import eval_mode

__all__ = ["ModelSelector", "Validation"]


@dataclass(frozen=True, slots=True)
class Validation:
    """How a student compares with its teacher on the validation images."""

    agreement: float
    """Share of the images on which student and teacher name the same class."""
    kl: float
    """Mean KL(teacher || student), in nats."""
    best: bool
    """The student is the best so far."""


class ModelSelector:
    """Validate a student and keep a copy of the best one.

    Args:
        capacity: validation images held, as uint8 (N, C, H, W); the oldest go first.
        spec: the teacher's input.

    """

    def __init__(self, capacity: int, spec: InputSpec) -> None:
        self.capacity, self.spec = capacity, spec
        self.images = torch.empty(0, dtype=torch.uint8)
        self.logits = torch.empty(0)
        self.best: nn.Module | None = None
        self.best_step = 0

    @property
    def is_full(self) -> bool:
        """As many images are held as there is room for."""
        return len(self.images) >= self.capacity

    def hold_out(self, batch: Batch) -> None:
        """Take a batch for validation that is not trained on."""
        images, logits = [self.spec.decode(batch.images)], [batch.logits]
        if len(self.images):
            images, logits = [self.images, *images], [self.logits, *logits]
        self.images = torch.cat(images)[-self.capacity :]
        self.logits = torch.cat(logits)[-self.capacity :]

    def is_collapse(self, batch: Batch) -> bool:
        """Return whether a batch has less than a third of the class entropy of the images held.

        A generator that has collapsed to one image is easy to agree with: no student is to be
        measured on such a batch.
        """
        most = math.log(len(batch.logits))  # a small batch cannot have more
        return 3 * _class_entropy(batch.logits) < min(most, _class_entropy(self.logits))

    def validate(self, student: nn.Module, step: int) -> Validation:
        """Measure the student; it is the best if its agreement is, or if equal its KL is lower."""
        share, kl = self.measure(student)
        highest = (-1.0, 0.0)
        if self.best is not None:
            best_share, best_kl = self.measure(self.best)
            highest = (best_share, -best_kl)
        best = (share, -kl) >= highest
        if best:
            self.best, self.best_step = copy_network(student), step
        return Validation(share, kl, best)

    @torch.no_grad()
    def measure(self, student: nn.Module) -> tuple[float, float]:
        """Return agreement with the teacher and mean KL(teacher || student) on the images held."""
        wanted = self.logits.cpu()
        with eval_mode(student):
            logits = answers(student, self.spec, self.images, device=self.images.device)
        return agreement(logits, wanted), kl_divergence(logits, wanted).item()

    def state_dict(self) -> dict[str, Any]:
        """Return the validation images and the best student."""
        return {
            "images": self.images,
            "logits": self.logits,
            "best": self.best.state_dict() if self.best is not None else None,
            "best_step": self.best_step,
        }

    def load_state_dict(self, state: dict[str, Any], student: nn.Module) -> None:
        """Continue from a state; `student` lends its architecture to the best one."""
        self.images, self.logits = state["images"], state["logits"]
        self.best_step, self.best = state["best_step"], None
        if state["best"] is not None:
            self.best = copy_network(student)
            self.best.load_state_dict(state["best"])


def _class_entropy(logits: Tensor) -> float:
    """Return the entropy in nats of the classes that (N, K) logits name."""
    counts = torch.bincount(logits.argmax(1)).float()
    share = counts[counts > 0] / len(logits)
    return -(share * share.log()).sum().item()
