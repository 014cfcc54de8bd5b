"""Balance batches over classes, and remember images of rare classes."""

from typing import Any

import torch
from torch import Tensor

from dreamstill.data.batch import Batch
from dreamstill.files.checkpoints import Stateful
from dreamstill.output_spec import OutputSpec

__all__ = ["ClassMemory", "Turns", "balanced", "matched", "rank_in_class"]


def rank_in_class(classes: Tensor, num_classes: int) -> Tensor:
    """Count the earlier items of the same class for each of classes (N,).

    >>> rank_in_class(torch.tensor([2, 0, 2, 2]), 3).tolist()
    [0, 0, 1, 2]
    """
    order = torch.argsort(classes, stable=True)
    counts = torch.bincount(classes, minlength=num_classes)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(classes)
    rank[order] = torch.arange(len(classes), device=classes.device) - starts[classes[order]]
    return rank


class Turns(Stateful):
    """Cyclic sequence of classes, which balances batches over a run.

    >>> turns = Turns(3)
    >>> turns.take(4).tolist(), turns.take(2).tolist()
    ([0, 1, 2, 0], [1, 2])
    """

    state = ("next_class",)

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes, self.device = num_classes, device
        self.next_class = 0

    def take(self, num: int) -> Tensor:
        """Return the next `num` classes."""
        order = torch.arange(self.next_class, self.next_class + num, device=self.device)
        self.next_class = (self.next_class + num) % self.num_classes
        return order % self.num_classes


def balanced(classes: Tensor, keep: int, num_classes: int) -> Tensor:
    """Return the indices of `keep` of N items, spread over classes (N,) as evenly as possible.

    >>> balanced(torch.tensor([0, 0, 0, 0, 1, 2]), 4, 3).tolist()
    [0, 4, 5, 1]
    """
    return torch.argsort(rank_in_class(classes, num_classes), stable=True)[:keep]


def matched(wanted: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Assign to each of the wanted classes (M,) a different item of classes (N,), N >= M.

    Returns the indices (M,): an item of the wanted class if one is left, else any other.

    >>> matched(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 2, 1]), 3).tolist()
    [3, 2, 0]
    """
    order = torch.argsort(classes, stable=True)
    counts = torch.bincount(classes, minlength=num_classes)
    rank = rank_in_class(wanted, num_classes)
    found = rank < counts[wanted]
    index = torch.zeros_like(wanted)
    index[found] = order[(counts.cumsum(0) - counts)[wanted[found]] + rank[found]]
    left = torch.ones(len(classes), dtype=torch.bool, device=classes.device)
    left[index[found]] = False
    # the substitutes are taken from the end of the items that are left
    index[~found] = left.nonzero().flatten().flip(0)[: int((~found).sum())]
    return index


class ClassMemory:
    """Store of the newest images of every class with the teacher's logits of whole images.

    Args:
        capacity: total number of uint8 images, the same for each class; at least one per class.
        outputs: the teacher's, whose groups are the classes.
        shape: (C, H, W).
        device: device of the store.

    """

    def __init__(
        self,
        capacity: int,
        outputs: OutputSpec,
        shape: tuple[int, int, int],
        device: torch.device,
    ) -> None:
        self.outputs, num_classes = outputs, len(outputs.groups)
        self.per_class = max(1, capacity // num_classes)
        self.images = torch.zeros(
            num_classes, self.per_class, *shape, dtype=torch.uint8, device=device
        )
        size = (num_classes, self.per_class, outputs.num_classes)
        self.logits = torch.zeros(size, device=device)
        self.counts = torch.zeros(num_classes, dtype=torch.long, device=device)

    def remember(self, batch: Batch) -> None:
        """Store a batch by the classes of its logits, in place of the oldest images of each."""
        num_classes = len(self.counts)
        classes = self.outputs.group(batch.logits)
        rank = rank_in_class(classes, num_classes)
        new = rank < self.per_class  # drop images of a class beyond its number of slots
        classes, rank = classes[new], rank[new]
        slots = (self.counts[classes] + rank) % self.per_class
        self.images[classes, slots] = batch.images[new]
        self.logits[classes, slots] = batch.logits[new]
        self.counts += torch.bincount(classes, minlength=num_classes)

    def draw(self, num: int, rng: torch.Generator) -> Batch:
        """Draw `num` images, with replacement, of each class that was ever stored."""
        classes = self.counts.nonzero().expand(-1, num)
        filled = self.counts.clamp_max(self.per_class)[classes]
        chance = torch.rand(classes.shape, generator=rng, device=rng.device)
        slots = (chance * filled).long()
        return Batch(
            self.images[classes, slots].flatten(0, 1), self.logits[classes, slots].flatten(0, 1)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the stored images, logits and counts, without empty slots."""
        filled = int(self.counts.max().clamp_max(self.per_class))
        return {
            "images": self.images[:, :filled].clone(),
            "logits": self.logits[:, :filled].clone(),
            "counts": self.counts.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        filled = state["images"].shape[1]
        self.images[:, :filled] = state["images"]
        self.logits[:, :filled] = state["logits"]
        self.counts.copy_(state["counts"])
