"""Warn where the images that a network learns from lack classes of its teacher."""

import logging

import torch
from torch import Tensor

__all__ = ["class_counts", "missing_classes", "warn_of_classes"]

log = logging.getLogger(__name__)

MOST_SHARE = 0.95
"""Share of the images that may be of one class."""
MOST_NAMED = 10
"""Classes that are listed in a message."""
WAY_OUT = "make more images, or take another method or preset, or images of your own"


def class_counts(logits: Tensor) -> Tensor:
    """Count how many of (N, K) logits name each class: int64 (K,), on the CPU."""
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1]).cpu()


def missing_classes(counts: Tensor, images: str = "synthetic images") -> str | None:
    """Say in one line that a class is missing among images, or that nearly all are of one class.

    Args:
        counts: images that the teacher gives each class, (K,).
        images: what they are.

    None where every class is named and none is above 95 %, or where there are no images.

    >>> print(missing_classes(torch.tensor([60, 0, 40]), "images"))
    the teacher gives none of the 100 images class 1: nothing here teaches it; make more images, \
or take another method or preset, or images of your own

    """
    num, most = int(counts.sum()), int(counts.max())
    if num == 0:
        return None
    if most > MOST_SHARE * num:
        return (
            f"the teacher gives {most / num:.1%} of the {num:,} {images} class "
            f"{int(counts.argmax())}: check the mean and std of its input; {WAY_OUT}"
        )
    missing = (counts == 0).nonzero()[:, 0].tolist()
    if not missing:
        return None
    named = ", ".join(map(str, missing[:MOST_NAMED]))
    if len(missing) > MOST_NAMED:
        named += f" and {len(missing) - MOST_NAMED:,} more of {len(counts):,}"
    plural = len(missing) > 1
    return (
        f"the teacher gives none of the {num:,} {images} {'classes' if plural else 'class'} "
        f"{named}: nothing here teaches {'them' if plural else 'it'}; {WAY_OUT}"
    )


def warn_of_classes(logits: Tensor, *, given: bool = False) -> list[str]:
    """Log what `missing_classes` finds of (N, K) logits; return it as a list of at most one line.

    Args:
        logits: the teacher's answers.
        given: the images are the user's own, not synthetic.

    """
    found = missing_classes(class_counts(logits), "images" if given else "synthetic images")
    if found is None:
        return []
    log.warning("%s", found)
    return [found]
