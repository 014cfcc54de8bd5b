"""Describe the output of a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.errors import TeacherError

__all__ = ["OutputSpec", "logits_of"]


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Classes that a network tells apart: it outputs a logit for each, (N, num_classes).

    Args:
        num_classes: at least 2.
        class_names: one for each class, or none.

    Raises:
        TeacherError: too few classes, or another number of names.

    """

    num_classes: int
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise TeacherError(f"num_classes must be at least 2; got {self.num_classes}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise TeacherError(
                f"class_names must have one name for each of {self.num_classes} classes; "
                f"got {len(self.class_names)}"
            )

    @classmethod
    def of(
        cls, network: nn.Module, inputs: Tensor, logits: Any, role: str, last: Any
    ) -> "OutputSpec":
        """Return the spec of a network that outputs finite logits (N, K), K >= 2.

        Args:
            network: network in eval mode.
            inputs: (N, C, H, W).
            logits: output of the network for `inputs`.
            role: name of the network in messages.
            last: the linear layer that outputs the logits, or None if an activation may follow it.

        Raises:
            TeacherError: the output has another shape, is not finite, or is (log-)probabilities.

        """
        num = len(inputs)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != num:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise TeacherError(f"the {role} must return (N, K) logits; got {got} for N = {num}")
        if logits.shape[1] < 2:
            raise TeacherError(f"the {role} must have at least 2 classes; got {logits.shape[1]}")
        if not logits.is_floating_point():
            raise TeacherError(f"the {role} must return logits; got {logits.dtype} values")
        if not torch.isfinite(logits).all():
            raise TeacherError(f"the {role}'s logits are not finite on random pixels")
        if last is None:
            with torch.no_grad():  # unlike probabilities, logits grow with the input
                more = [network(factor * inputs) for factor in (1e3, 1e12)]
            shown = torch.cat([logits, *more]).double()
            _refuse_probabilities(shown[shown.isfinite().all(1)], role)
        return cls(logits.shape[1])


def _refuse_probabilities(shown: Tensor, role: str) -> None:
    """Raise TeacherError if outputs (N, K) are probabilities, percentages or their logarithms."""
    if ((shown.exp().sum(1) - 1).abs() < 1e-3).all():
        raise TeacherError(
            f"the {role} returns logarithms of probabilities: return what enters LogSoftmax"
        )
    total = shown.sum(1)
    if (shown >= 0).all() and (total - total[0]).abs().max() < 1e-3 * total[0]:
        raise TeacherError(f"the {role} returns probabilities: return the logits before softmax")
    if ((shown >= 0) & (shown <= 1)).all():
        raise TeacherError(
            f"the {role} returns values in [0, 1] whatever it is shown: return what enters the "
            "sigmoid (networks of several labels at once are not supported yet)"
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
