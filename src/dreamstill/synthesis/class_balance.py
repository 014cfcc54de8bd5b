"""Class balance: choose evenly, and remember the classes that turn up rarely."""

from typing import Any

import torch
from torch import Tensor

from dreamstill.data.batch import Batch
from dreamstill.files.checkpoints import Stateful

__all__ = ["ClassMemory", "Turns", "balanced", "matched", "rank_in_class"]


def rank_in_class(classes: Tensor, num_classes: int) -> Tensor:
    """How many items of the same class stand before each of (N,) classes.

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
    """Classes in turn, so that batches are balanced over a run.

    >>> turns = Turns(3)
    >>> turns.take(4).tolist(), turns.take(2).tolist()
    ([0, 1, 2, 0], [1, 2])
    """

    state = ("next_class",)

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes, self.device = num_classes, device
        self.next_class = 0

    def take(self, num: int) -> Tensor:
        """The next `num` classes."""
        order = torch.arange(self.next_class, self.next_class + num, device=self.device)
        self.next_class = (self.next_class + num) % self.num_classes
        return order % self.num_classes


def balanced(classes: Tensor, keep: int, num_classes: int) -> Tensor:
    """Indices of `keep` of N items, as evenly spread over classes (N,) as they allow.

    >>> balanced(torch.tensor([0, 0, 0, 0, 1, 2]), 4, 3).tolist()
    [0, 4, 5, 1]
    """
    return torch.argsort(rank_in_class(classes, num_classes), stable=True)[:keep]


def matched(wanted: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """For each of (M,) wanted classes the index of an item of (N,) classes, N >= M, each once.

    Of the class wanted while there are any, then of what is left.

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
    # from the back: classes that nobody wants come first or last alike, but must not run out
    index[~found] = left.nonzero().flatten().flip(0)[: int((~found).sum())]
    return index


class ClassMemory:
    """The newest images of every class with the teacher's answers.

    Args:
        capacity: images, uint8, remembered in all, shared out evenly; at least one a class.
        num_classes: K.
        shape: (C, H, W).
        device: where they are kept.

    """

    def __init__(
        self, capacity: int, num_classes: int, shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self.per_class = max(1, capacity // num_classes)
        self.images = torch.zeros(
            num_classes, self.per_class, *shape, dtype=torch.uint8, device=device
        )
        self.logits = torch.zeros(num_classes, self.per_class, num_classes, device=device)
        self.counts = torch.zeros(num_classes, dtype=torch.long, device=device)

    def remember(self, batch: Batch) -> None:
        """Store a batch under the classes the teacher names, over the oldest of each."""
        num_classes = len(self.counts)
        classes = batch.logits.argmax(1)
        rank = rank_in_class(classes, num_classes)
        new = rank < self.per_class  # a slot has one owner: more of a class than fit are left out
        classes, rank = classes[new], rank[new]
        slots = (self.counts[classes] + rank) % self.per_class
        self.images[classes, slots] = batch.images[new]
        self.logits[classes, slots] = batch.logits[new]
        self.counts += torch.bincount(classes, minlength=num_classes)

    def draw(self, num: int, rng: torch.Generator) -> Batch:
        """`num` random images, with replacement, of each class that was ever seen."""
        classes = self.counts.nonzero().expand(-1, num)
        filled = self.counts.clamp_max(self.per_class)[classes]
        chance = torch.rand(classes.shape, generator=rng, device=rng.device)
        slots = (chance * filled).long()
        return Batch(
            self.images[classes, slots].flatten(0, 1), self.logits[classes, slots].flatten(0, 1)
        )

    def state_dict(self) -> dict[str, Any]:
        """All that is remembered, without the empty slots."""
        filled = int(self.counts.max().clamp_max(self.per_class))
        return {
            "images": self.images[:, :filled].clone(),
            "logits": self.logits[:, :filled].clone(),
            "counts": self.counts.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up."""
        filled = state["images"].shape[1]
        self.images[:, :filled] = state["images"]
        self.logits[:, :filled] = state["logits"]
        self.counts.copy_(state["counts"])
