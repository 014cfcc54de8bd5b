"""Measure a network: its accuracy, agreement with another network, and calibration error."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.errors import TeacherError, first_line
from dreamstill.formatting import half_interval, percent
from dreamstill.input_spec import InputSpec
from dreamstill.losses.logits import kl_divergence, values_divergence
from dreamstill.nn.hooks import eval_mode, shown_at_once
from dreamstill.output_spec import UNSEEN, OutputKind, decisions

__all__ = [
    "accuracy",
    "agreement",
    "answers",
    "average_precision",
    "check_same_function",
    "confusion_matrix",
    "confusion_of",
    "determinations",
    "divergence",
    "evaluating",
    "expected_calibration_error",
    "intersection_over_union",
    "predict",
    "scores",
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


def agreement(outputs: Tensor, others: Tensor, kind: OutputKind = OutputKind.CLASSES) -> float:
    """Return how far two outputs (N, ...) agree, in [0, 1].

    That is the share of equal decisions: the classes of images or of pixels, or whether each label
    is on. Of values it is the share of the others' variance that they explain: R2, at least 0 for
    each value.
    """
    if kind is OutputKind.VALUES:
        return determinations(outputs, others).clamp_min(0).mean().item()

    def share(some: Tensor, same: Tensor) -> float:
        return accuracy(decisions(some, kind), decisions(same, kind).argmax(1))

    return _mean(share, outputs, others, kind)


def divergence(outputs: Tensor, others: Tensor, kind: OutputKind = OutputKind.CLASSES) -> float:
    """Return the mean KL(others || outputs) of decisions, in nats; see `values_divergence`."""
    if kind is OutputKind.VALUES:
        return values_divergence(outputs, others).item()

    def mean_kl(some: Tensor, same: Tensor) -> float:
        return kl_divergence(decisions(some, kind), decisions(same, kind)).item()

    return _mean(mean_kl, outputs, others, kind)


def _mean(
    measure: Callable[[Tensor, Tensor], float], outputs: Tensor, others: Tensor, kind: OutputKind
) -> float:
    """Return the mean of a measure over images, of dense outputs a few at a time."""
    if kind is not OutputKind.DENSE:
        return measure(outputs, others)
    parts = zip(outputs.split(TOGETHER), others.split(TOGETHER), strict=True)
    return sum(len(some) * measure(some, same) for some, same in parts) / len(outputs)


TOGETHER = 64
"""Images whose dense outputs are compared at once: each comparison copies them several times."""


def determinations(outputs: Tensor, truth: Tensor) -> Tensor:
    """Return the R2 of each column of values (N, K): at most 1, 0 for their mean.

    A column that does not vary counts for 1 where it is met, else for 0.

    >>> determinations(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]]))
    tensor([0.5000], dtype=torch.float64)
    """
    truth = truth.double()
    error = (outputs.double() - truth).square().sum(0)
    total = (truth - truth.mean(0)).square().sum(0)
    least = 1e-12 * truth.square().sum(0)  # a mean is rounded
    share = 1 - error / total.clamp_min(1e-300)
    return torch.where(total > least, share, (error <= least).double())


def scores(outputs: Tensor, truth: Tensor, kind: OutputKind) -> dict[str, float]:
    """Measure outputs (N, ...) beside the truth; the first figure is the one to compare by.

    Args:
        outputs: of a network.
        truth: classes (N,); labels (N, K) of 0 and 1; values (N, K); or classes of pixels
            (N, H, W), of which those that are no class are not looked at.
        kind: what the outputs say.

    Returns:
        Of classes accuracy and calibration error; of labels the accuracy, the share of
        labels that are right, and the mean average precision over the labels that are on
        anywhere; of values R2 and the mean absolute error; of pixels the mean intersection over
        union of the classes that are there, and the pixel accuracy.

    """
    if kind is OutputKind.CLASSES:
        return {
            "accuracy": accuracy(outputs, truth),
            "ece": expected_calibration_error(outputs, truth),
        }
    if kind is OutputKind.LABELS:
        return {
            "accuracy": ((outputs > 0) == truth.bool()).float().mean().item(),
            "average_precision": average_precision(outputs, truth),
        }
    if kind is OutputKind.VALUES:
        error = (outputs.double() - truth.double()).abs().mean().item()
        found = determinations(outputs, truth).mean().item()
        return {"accuracy": found, "absolute_error": error}
    counts = confusion_of(outputs, truth, kind)
    assert counts is not None
    counts = counts.double()
    shares = intersection_over_union(counts)
    return {
        "accuracy": shares[counts.sum(1) > 0].mean().item(),
        "pixel_accuracy": (counts.trace() / counts.sum()).item(),
    }


def confusion_of(outputs: Tensor, truth: Tensor, kind: OutputKind) -> Tensor | None:
    """Return counts (K, K) of images or pixels, true classes as rows; None of labels and values."""
    if kind in UNSEEN:
        return None
    counts = torch.zeros(outputs.shape[1], outputs.shape[1], dtype=torch.int64)
    for part, true in zip(outputs.split(TOGETHER), truth.split(TOGETHER), strict=True):
        known = (true >= 0) & (true < outputs.shape[1])
        rows = decisions(part, kind)[known.flatten()]
        counts += confusion_matrix(rows, true[known], outputs.shape[1])
    return counts


def intersection_over_union(counts: Tensor) -> Tensor:
    """Return the IoU of each class from confusion counts (K, K); nan for one that is nowhere.

    >>> intersection_over_union(torch.tensor([[2.0, 1.0], [0.0, 1.0]]))
    tensor([0.6667, 0.5000])
    """
    both = counts.diagonal()
    return both / (counts.sum(0) + counts.sum(1) - both)


def average_precision(outputs: Tensor, truth: Tensor) -> float:
    """Return the mean over labels of the precision at each image that has it, ranked by logit.

    Args:
        outputs: logits (N, K).
        truth: (N, K) of 0 and 1; labels that no image has are left out, nan without any.

    >>> average_precision(torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[1], [0], [1]]))
    0.8333333333333333

    """
    order = outputs.argsort(dim=0, descending=True, stable=True)
    hits = truth.bool().gather(0, order).double()
    rank = torch.arange(1, len(hits) + 1, dtype=torch.double).unsqueeze(1)
    present = hits.sum(0) > 0
    found = ((hits.cumsum(0) / rank) * hits).sum(0)[present] / hits.sum(0)[present]
    return found.mean().item()


def warn_of_guesses(
    logits: Tensor, labels: Tensor, kind: OutputKind = OutputKind.CLASSES
) -> list[str]:
    """Warn if a teacher is no more often right than if it had not looked at the images.

    Args:
        logits, labels: (N, K) and (N,) of real images; of one class alone nothing can be told.
        kind: what the outputs say; only classes of images are looked at.

    Returns:
        The warning, which is logged as well; empty without one.

    """
    if kind is not OutputKind.CLASSES:
        return []
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
