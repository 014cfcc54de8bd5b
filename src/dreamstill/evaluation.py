"""Measure a network: accuracy, agreement, calibration; parameters, MACs, bytes, latency."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.errors import TeacherError, first_line
from dreamstill.input_spec import InputSpec
from dreamstill.nn.hooks import eval_mode, shown_at_once

__all__ = [
    "accuracy",
    "agreement",
    "answers",
    "check_same_function",
    "confusion_matrix",
    "evaluating",
    "expected_calibration_error",
    "predict",
]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every submodule's own mode is restored."""
    with eval_mode(module), torch.no_grad():
        yield


def predict(module: nn.Module, spec: InputSpec, images: Tensor) -> Tensor:
    """uint8 images (N, C, H, W) -> logits (N, K) on the CPU."""
    with evaluating(module):
        return answers(module, spec, images, device=device_of(module))


def answers(
    run: Callable[[Tensor], Tensor],
    spec: InputSpec,
    images: Tensor,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Logits (N, K) on the CPU of anything that answers for uint8 images (N, C, H, W)."""
    batches = images.split(shown_at_once(spec.shape))
    return torch.cat([run(spec.encode(batch.to(device))).cpu() for batch in batches])


def check_same_function(before: nn.Module, after: nn.Module, spec: InputSpec, change: str) -> None:
    """Compare a network before and after a change that keeps its function, on random images.

    Args:
        before: the network as it was.
        after: the changed network.
        spec: the input of both.
        change: what was done, a verb phrase such as "folding BatchNorm", for the message.

    Raises:
        TeacherError: a logit differs by more than a thousandth of the largest logit, or the changed
            network does not run.

    """
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, *spec.shape), dtype=torch.uint8, generator=rng)
    wanted = _answers_or_refusal(before, spec, images, f"on inputs of shape {spec.shape}")
    got = _answers_or_refusal(after, spec, images, f"after {change}")
    difference = (got - wanted).abs().max().item() if got.shape == wanted.shape else torch.inf
    largest = wanted.abs().max().item()
    if not difference <= 1e-3 * largest + 1e-5:
        raise TeacherError(
            f"{change} changes the answers of {type(before).__name__} by {difference:.3g} "
            f"(largest logit {largest:.3g}), and should not: its code does something between its "
            "layers that is not followed"
        )


def _answers_or_refusal(module: nn.Module, spec: InputSpec, images: Tensor, when: str) -> Tensor:
    try:
        return predict(module, spec, images)
    except Exception as error:  # the user's own code: anything can come out of it
        raise TeacherError(
            f"{type(module).__name__} does not run {when}: {first_line(error)}"
        ) from error


def device_of(module: nn.Module) -> torch.device:
    """Where a network's parameters are; the CPU where it has none."""
    parameter = next(module.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of (N, K) logits whose largest is the label (N,); in [0, 1]."""
    return (logits.argmax(1) == labels).float().mean().item()


def agreement(logits: Tensor, other_logits: Tensor) -> float:
    """Share of inputs on which two networks' (N, K) logits name the same class; in [0, 1]."""
    return accuracy(logits, other_logits.argmax(1))


def confusion_matrix(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts (K, K), int64: rows are true classes, columns the network's answers."""
    index = labels.long() * num_classes + logits.argmax(1)
    return torch.bincount(index, minlength=num_classes**2).view(num_classes, num_classes)


def expected_calibration_error(logits: Tensor, labels: Tensor, *, num_bins: int = 15) -> float:
    """Mean gap of confidence and accuracy over equal-width bins: Guo et al. 2017, equation 3.

    Args:
        logits, labels: (N, K) and (N,).
        num_bins: bins of confidence in (0, 1].

    Returns:
        A fraction in [0, 1].

    """
    confidence, answer = F.softmax(logits, dim=1).max(1)
    right = (answer == labels).float()
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gap = torch.zeros(num_bins).index_add_(0, bins, right - confidence)
    return (gap.abs().sum() / len(labels)).item()
