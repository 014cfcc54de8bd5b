"""Let torchvision's Python import beside a torch that its kernels were not built for."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

__all__ = ["torchvision_importable"]


@contextmanager
def torchvision_importable() -> Iterator[None]:
    """Declare the operators that torchvision looks for when it is imported, if it is installed.

    PyPI's torchvision is built for CUDA's torch, and does not import beside a CPU build of torch.
    """
    if find_spec("torchvision") is None:
        yield
        return
    with torch.library._scoped_library("torchvision", "FRAGMENT") as library:
        for name in ("nms", "qnms"):
            try:
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            except RuntimeError:  # its kernels are there
                break
        yield
