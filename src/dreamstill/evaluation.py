"""Measure a network's accuracy, agreement with another network, and calibration error."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.errors import TeacherError, first_line
from dreamstill.formatting import half_interval, percent
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
    "warn_of_guesses",
]

log = logging.getLogger(__name__)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Disable gradients and set eval mode inside the context; restore each submodule's mode."""
    with eval_mode(module), torch.no_grad():
        yield


def predict(module: nn.Module, spec: InputSpec, images: Tensor) -> Tensor:
    """Return a network's logits (N, K) on the CPU for uint8 images (N, C, H, W)."""
    with evaluating(module):
        return answers(module, spec, images, device=device_of(module))


def answers(
    run: Callable[[Tensor], Tensor],
    spec: InputSpec,
    images: Tensor,
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return logits (N, K) on the CPU for uint8 images (N, C, H, W), computed in batches.

    `run` maps inputs (N, C, H, W), encoded by `spec` and on `device`, to logits.
    """
    batches = images.split(shown_at_once(spec.shape))
    return torch.cat([run(spec.encode(batch.to(device))).cpu() for batch in batches])


def check_same_function(before: nn.Module, after: nn.Module, spec: InputSpec, change: str) -> None:
    """Check on random images that a change has preserved a network's function.

    Args:
        before: original network.
        after: changed network.
        spec: input of both networks.
        change: description of the change for messages, such as "folding BatchNorm".

    Raises:
        TeacherError: a logit differs by more than 0.1 % of the largest logit, or a network does not
            run.

    """
    images = spec.noise(8)
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
    except Exception as error:  # user code may raise anything
        raise TeacherError(
            f"{type(module).__name__} does not run {when}: {first_line(error)}"
        ) from error


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a network's parameters, or the CPU if it has none."""
    parameter = next(module.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of logits (N, K) whose largest is at the label (N,); in [0, 1]."""
    return (logits.argmax(1) == labels).float().mean().item()


def agreement(logits: Tensor, other_logits: Tensor) -> float:
    """Return the share of inputs for which two (N, K) logits predict the same class; in [0, 1]."""
    return accuracy(logits, other_logits.argmax(1))


def warn_of_guesses(logits: Tensor, labels: Tensor) -> list[str]:
    """Warn if a teacher is no more often right than if it had not looked at the images.

    Args:
        logits, labels: (N, K) and (N,) of real images; of one class alone nothing can be told.

    Returns:
        The warning, which is logged as well; empty without one.

    """
    num, (classes, counts) = len(labels), labels.unique(return_counts=True)
    if len(classes) < 2 or int(classes.max()) >= logits.shape[1]:
        return []
    named = torch.bincount(logits.argmax(1), minlength=logits.shape[1])[classes]
    by_chance, right = (named * counts).sum().item() / num**2, accuracy(logits, labels)
    if right > by_chance + half_interval(by_chance, num):
        return []
    text = (
        f"the teacher is right on {percent(right)} of the {num:,} real images, no more often than "
        "by chance: check the mean and std of its input, and the order of the labels"
    )
    log.warning("%s", text)
    return [text]


def confusion_matrix(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return counts (K, K), int64, with true classes as rows and predictions as columns."""
    index = labels.long() * num_classes + logits.argmax(1)
    return torch.bincount(index, minlength=num_classes**2).view(num_classes, num_classes)


def expected_calibration_error(logits: Tensor, labels: Tensor, *, num_bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy, in [0, 1]: Guo et al. 2017, equation 3.

    Args:
        logits, labels: (N, K) and (N,).
        num_bins: number of equal-width bins of confidence in (0, 1].

    """
    confidence, answer = F.softmax(logits, dim=1).max(1)
    right = (answer == labels).float()
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gap = torch.zeros(num_bins).index_add_(0, bins, right - confidence)
    return (gap.abs().sum() / len(labels)).item()
