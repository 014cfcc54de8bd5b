"""Warn if training images lack classes of the teacher."""

import logging

from torch import Tensor

__all__ = ["class_entropy", "missing_classes", "warn_of_classes"]

log = logging.getLogger(__name__)

MOST_SHARE = 0.95
"""Maximum fraction of the images in one class."""
MOST_NAMED = 10
"""Maximum number of classes listed in a message."""
WAY_OUT = "make more images, or take another method or preset, or images of your own"


def class_entropy(counts: Tensor) -> float:
    """Return the entropy in nats of numbers of images per class (K,).

    >>> round(class_entropy(torch.tensor([2, 0, 2])), 4)
    0.6931
    """
    share = counts[counts > 0] / counts.sum()
    return -(share * share.log()).sum().item()


def missing_classes(counts: Tensor, images: str = "synthetic images") -> str | None:
    """Return a warning if a class has no image, or one class more than 95 % of them; else None.

    Args:
        counts: number of images per class, as predicted by the teacher, (K,). All 0 gives None.
        images: name of the images in the message.

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


def warn_of_classes(counts: Tensor, *, given: bool = False) -> list[str]:
    """Log the warning of `missing_classes`; return it in a list, which is empty without one.

    Args:
        counts: number of images per class, as predicted by the teacher, (K,).
        given: whether the user provided the images.

    """
    found = missing_classes(counts, "images" if given else "synthetic images")
    if found is None:
        return []
    log.warning("%s", found)
    return [found]
