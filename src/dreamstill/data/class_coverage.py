"""Warn if training images lack classes of the teacher."""

import logging

from torch import Tensor

from dreamstill.config import OutputKind

__all__ = ["class_entropy", "missing_classes", "warn_of_classes"]

log = logging.getLogger(__name__)

MOST_SHARE = 0.95
"""Maximum fraction of the images in one class."""
MOST_NAMED = 10
"""Maximum number of classes listed in a message."""
WAY_OUT = "make more images, or take another method or preset, or images of your own"


def class_entropy(counts: Tensor) -> float:
    """Return the entropy in nats of numbers of images per class (K,).

    >>> import torch
    >>> round(class_entropy(torch.tensor([2, 0, 2])), 4)
    0.6931
    """
    share = counts[counts > 0] / counts.sum()
    return -(share * share.log()).sum().item()


def missing_classes(
    counts: Tensor,
    images: str = "synthetic images",
    *,
    kind: OutputKind = OutputKind.CLASSES,
    num: int | None = None,
) -> str | None:
    """Return a warning if a class has no image, or one class more than 95 % of them; else None.

    Args:
        counts: number of images of each class, with each label, or with pixels of each class, as
            the teacher answers, (K,). All 0 of classes give None, and so do values.
        images: name of the images in the message.
        kind: what the teacher's outputs say.
        num: number of images; None: of classes, their sum.

    >>> import torch
    >>> print(missing_classes(torch.tensor([60, 0, 40]), "images"))
    the teacher gives none of the 100 images class 1: nothing here teaches it; make more images, \
or take another method or preset, or images of your own

    """
    num, most = int(counts.sum()) if num is None else num, int(counts.max())
    if num == 0 or kind is OutputKind.VALUES:
        return None
    if kind is OutputKind.CLASSES and most > MOST_SHARE * num:
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
    whom = "no pixel" if kind is OutputKind.DENSE else "none"
    one, several = ("label", "labels") if kind is OutputKind.LABELS else ("class", "classes")
    return (
        f"the teacher gives {whom} of the {num:,} {images} {several if plural else one} "
        f"{named}: nothing here teaches {'them' if plural else 'it'}; {WAY_OUT}"
    )


def warn_of_classes(
    counts: Tensor, num: int, *, kind: OutputKind = OutputKind.CLASSES, given: bool = False
) -> list[str]:
    """Log the warning of `missing_classes`; return it in a list, which is empty without one.

    Args:
        counts, num, kind: see `missing_classes`.
        given: whether the user provided the images.

    """
    images = "images" if given else "synthetic images"
    found = missing_classes(counts, images, kind=kind, num=num)
    if found is None:
        return []
    log.warning("%s", found)
    return [found]
