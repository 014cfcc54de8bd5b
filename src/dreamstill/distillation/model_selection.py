"""Choose the student without real data: best against challenger on held-out synthetic images.

Held-out batches come from the same stream as the training batches, and no batch is both. Where a
method makes each image anew, or images were set aside as in fine-tuning, no image is both either; a
stream that draws from stored images, such as the real ones of a benchmark's bound, may give an
image to both, and then the student is judged too kindly. Held-out images are a ring, because an
adversarial method's images change: at each sitting best and challenger are both asked about the
same, newest ones. A student that is no random network is the first best, as it starts.
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
    """What a sitting found of the challenger."""

    agreement: float
    """Share of held-out images on which student and teacher name the same class."""
    kl: float
    """Mean KL(teacher || student) on them, in nats."""
    kept: bool
    """The challenger is the best from here."""


def _class_entropy(logits: Tensor) -> float:
    """Entropy in nats of the classes that (N, K) logits name."""
    counts = torch.bincount(logits.argmax(1)).float()
    share = counts[counts > 0] / len(logits)
    return -(share * share.log()).sum().item()


class ModelSelector:
    """Keeps a copy of the best student so far.

    Args:
        capacity: held-out images kept, as uint8 (N, C, H, W); the oldest go first.
        spec: the teacher's input.

    """

    def __init__(self, capacity: int, spec: InputSpec) -> None:
        self.capacity, self.spec = capacity, spec
        self.images = torch.empty(0, dtype=torch.uint8)
        self.logits = torch.empty(0)
        self.best: nn.Module | None = None
        self.best_step = 0

    def hold_out(self, batch: Batch) -> None:
        """Take a batch that is not trained on."""
        images, logits = [self.spec.decode(batch.images)], [batch.logits]
        if len(self.images):
            images, logits = [self.images, *images], [self.logits, *logits]
        self.images = torch.cat(images)[-self.capacity :]
        self.logits = torch.cat(logits)[-self.capacity :]

    def is_collapse(self, batch: Batch) -> bool:
        """A batch's classes have less than a third of the entropy that the held-out images' have.

        A generator that has collapsed to one image is easy to agree on: neither best nor
        challenger may be asked about it.
        """
        most = math.log(len(batch.logits))  # of few images
        return 3 * _class_entropy(batch.logits) < min(most, _class_entropy(self.logits))

    def sit(self, student: nn.Module, step: int) -> Validation:
        """Ask best and challenger; the higher agreement stays, then the lower KL."""
        share, kl = self.ask(student)
        best = (-1.0, 0.0)
        if self.best is not None:
            rival_agreement, rival_kl = self.ask(self.best)
            best = (rival_agreement, -rival_kl)
        kept = (share, -kl) >= best
        if kept:
            self.best, self.best_step = copy_network(student), step
        return Validation(share, kl, kept)

    @torch.no_grad()
    def ask(self, student: nn.Module) -> tuple[float, float]:
        """Agreement with the teacher, and mean KL from it, on the held-out images."""
        wanted = self.logits.cpu()
        with eval_mode(student):
            logits = answers(student, self.spec, self.images, device=self.images.device)
        return agreement(logits, wanted), kl_divergence(logits, wanted).item()

    def state_dict(self) -> dict[str, Any]:
        """Held-out images and the best."""
        best = self.best.state_dict() if self.best is not None else None
        return {
            "images": self.images,
            "logits": self.logits,
            "best": best,
            "best_step": self.best_step,
        }

    def load_state_dict(self, state: dict[str, Any], student: nn.Module) -> None:
        """Take up; `student` lends its architecture to the best."""
        self.images, self.logits = state["images"], state["logits"]
        self.best_step = state["best_step"]
        self.best = None
        if state["best"] is not None:
            self.best = copy_network(student)
            self.best.load_state_dict(state["best"])
