"""Describe the output of a network."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.config import OutputKind
from dreamstill.errors import TeacherError

__all__ = ["UNSEEN", "OutputKind", "OutputSpec", "decisions", "examined", "logits_of"]


UNSEEN = (OutputKind.LABELS, OutputKind.VALUES)
"""Kinds that the shape of the outputs does not tell."""
PRESENT = 0.005
"""Least share of the pixels of a class that an image holds."""


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Outputs of a network: K classes or labels of an image, K values, or K classes of pixels.

    Args:
        num_classes: K; at least 2 classes, or 1 label or value.
        class_names: one for each of the K, or none.
        kind: what the outputs say; see `OutputKind`.
        size: (H, W) of dense outputs.

    Raises:
        TeacherError: too few classes, or another number of names.

    """

    num_classes: int
    class_names: tuple[str, ...] = ()
    kind: OutputKind = OutputKind.CLASSES
    size: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        least = 2 if self.kind in (OutputKind.CLASSES, OutputKind.DENSE) else 1
        if self.num_classes < least:
            raise TeacherError(f"num_classes must be at least {least}; got {self.num_classes}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise TeacherError(
                f"class_names must have one name for each of {self.num_classes} classes; "
                f"got {len(self.class_names)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output for one image: (K,) or (K, H, W)."""
        return (self.num_classes, *self.size)

    @property
    def card(self) -> dict[str, Any]:
        """Entries of a card about the outputs."""
        kind = {"outputs": self.kind.value} if self.kind in UNSEEN else {}
        names = {"class_names": list(self.class_names)} if self.class_names else {}
        return {"num_classes": self.num_classes} | kind | names

    @property
    def record(self) -> dict[str, str]:
        """Entries of a summary about outputs that are not the classes of images."""
        return {} if self.kind is OutputKind.CLASSES else {"outputs": self.kind.value}

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of what `group` tells apart."""
        names = self.class_names or tuple(map(str, range(self.num_classes)))
        if self.kind is OutputKind.VALUES:
            return ("all images",)
        return (*names, "none") if self.kind is OutputKind.LABELS else names

    def whole(self, outputs: Tensor) -> Tensor:
        """Return (N, K) for outputs: of dense ones the log of each class's share of the pixels.

        What is (N, K) is returned as it is; `group`, `counts` and `probabilities` take it too.
        """
        if outputs.ndim == 2:
            return outputs
        return outputs.softmax(1).flatten(2).mean(2).clamp_min(1e-12).log()

    def group(self, outputs: Tensor) -> Tensor:
        """Return what images of outputs (N, ...) are balanced over: int64 (N,).

        That is the class; the label that is surest, K for none; the class of most pixels.
        """
        whole = self.whole(outputs)
        if self.kind is OutputKind.VALUES:
            return torch.zeros(len(whole), dtype=torch.int64, device=whole.device)
        largest, index = whole.max(1)
        if self.kind is OutputKind.LABELS:
            return index.masked_fill(largest <= 0, self.num_classes)
        return index

    def counts(self, outputs: Tensor) -> Tensor:
        """Count the images of each class, with each label, or with pixels of each class: (K,)."""
        whole = self.whole(outputs)
        if self.kind is OutputKind.CLASSES:
            return torch.bincount(whole.argmax(1), minlength=self.num_classes).cpu()
        least = {OutputKind.LABELS: 0.0, OutputKind.DENSE: math.log(PRESENT)}
        return (whole > least.get(self.kind, torch.inf)).sum(0).cpu()

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class or label, (N, K); of values none, (N, 0)."""
        if self.kind is OutputKind.VALUES:
            return outputs[:, :0]
        if self.kind is OutputKind.LABELS:
            return outputs.sigmoid()
        return outputs.softmax(1) if self.kind is OutputKind.CLASSES else self.whole(outputs).exp()

    def unevenness(self, mean: Tensor) -> Tensor:
        """Return how much entropy mean probabilities (K,) lack of the most: 0 to 1, a scalar.

        Labels are even where each is on half of the images.
        """
        if self.kind is OutputKind.VALUES:
            return mean.sum()
        if self.kind is OutputKind.LABELS:
            pairs = torch.stack((mean, 1 - mean)).clamp_min(1e-12)
            return 1 + (pairs * pairs.log()).sum(0).mean() / math.log(2)
        return 1 + (mean * mean.clamp_min(1e-12).log()).sum() / math.log(len(mean))


def decisions(outputs: Tensor, kind: OutputKind) -> Tensor:
    """Return the logits (M, C) of every decision that outputs (N, ...) take.

    One of K classes for an image or for each of its pixels; yes or no for each label; values decide
    nothing.

    >>> decisions(torch.tensor([[2.0, -1.0]]), OutputKind.LABELS)
    tensor([[ 0.,  2.],
            [ 0., -1.]])
    """
    if kind is OutputKind.VALUES:
        raise ValueError("values decide nothing")
    if kind is OutputKind.LABELS:
        return torch.stack((torch.zeros_like(outputs), outputs), -1).flatten(0, -2)
    return outputs if kind is OutputKind.CLASSES else outputs.movedim(1, -1).flatten(0, -2)


def examined(
    network: nn.Module,
    inputs: Tensor,
    outputs: Any,
    role: str,
    last: Any,
    kind: OutputKind | None = None,
) -> OutputSpec:
    """Return the spec of a network from its outputs.

    Args:
        network: network in eval mode.
        inputs: (N, C, H, W).
        outputs: output of the network for `inputs`.
        role: name of the network in messages.
        last: the linear layer that outputs the logits, or None if an activation may follow it.
        kind: what the outputs say; None: classes, of images or of pixels by their shape.

    Raises:
        TeacherError: the output has another shape, is not finite, or is (log-)probabilities.

    """
    num = len(inputs)
    dense = isinstance(outputs, Tensor) and outputs.ndim == 4 and outputs[0, 0].numel() > 1
    if kind is None:
        kind = OutputKind.DENSE if dense else OutputKind.CLASSES
    wanted, ndim = ("(N, K, H, W)", 4) if kind is OutputKind.DENSE else ("(N, K)", 2)
    if not isinstance(outputs, Tensor) or outputs.ndim != ndim or len(outputs) != num:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TeacherError(f"the {role} must return {wanted} logits; got {got} for N = {num}")
    if outputs.shape[1] < 2 and kind in (OutputKind.CLASSES, OutputKind.DENSE):
        hint = "" if kind is OutputKind.DENSE else "; for one label or value set outputs"
        raise TeacherError(f"the {role} must have at least 2 classes; got {outputs.shape[1]}{hint}")
    if not outputs.is_floating_point():
        raise TeacherError(f"the {role} must return logits; got {outputs.dtype} values")
    if not torch.isfinite(outputs).all():
        raise TeacherError(f"the {role}'s logits are not finite on random pixels")
    if last is None and kind is not OutputKind.VALUES:
        with torch.no_grad():  # unlike probabilities, logits grow with the input
            more = [network(factor * inputs) for factor in (1e3, 1e12)]
        rows = [x.movedim(1, -1).flatten(0, -2) for x in (outputs, *more)]
        shown = torch.cat(rows).double()
        _refuse_probabilities(shown[shown.isfinite().all(1)], role, kind)
    size = tuple(outputs.shape[2:])
    return OutputSpec(outputs.shape[1], kind=kind, size=size)


def _refuse_probabilities(shown: Tensor, role: str, kind: OutputKind) -> None:
    """Raise TeacherError if outputs (N, K) are probabilities, percentages or their logarithms."""
    if kind is OutputKind.LABELS:
        if ((shown >= 0) & (shown <= 1)).all():
            raise TeacherError(f"the {role} returns probabilities: return what enters the sigmoid")
        return
    if ((shown.exp().sum(1) - 1).abs() < 1e-3).all():
        raise TeacherError(
            f"the {role} returns logarithms of probabilities: return what enters LogSoftmax"
        )
    total = shown.sum(1)
    if (shown >= 0).all() and (total - total[0]).abs().max() < 1e-3 * total[0]:
        raise TeacherError(f"the {role} returns probabilities: return the logits before softmax")
    if ((shown >= 0) & (shown <= 1)).all():
        hint = "" if kind is OutputKind.DENSE else "; for several labels set outputs to labels"
        raise TeacherError(
            f"the {role} returns values in [0, 1] whatever it is shown: return what enters the "
            f"sigmoid{hint}"
        )


def logits_of(output: Any) -> Any:
    """Return the logits from a network's output, which may have auxiliary outputs (GoogLeNet).

    These are the tensor itself, the entry or attribute `logits` or `out`, or the first item of a
    sequence. Other outputs are returned unchanged.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        if isinstance(output, Mapping) and name in output:
            return output[name]
        if hasattr(output, name):
            return getattr(output, name)
    return output[0] if isinstance(output, list | tuple) and output else output
