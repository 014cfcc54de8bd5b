"""Format numbers and plain values for tables in the terminal and in reports."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = [
    "BASELINES",
    "agreement_of",
    "bytes_of_memory",
    "capitalized",
    "duration",
    "half_interval",
    "measured_share",
    "more_scores",
    "percent",
    "shown",
    "words_of",
]


BASELINES = {"noise_baseline": "noise baseline", "real_data_bound": "real-data bound"}
"""Titles of the baselines of a distillation, by the names of their directories."""


class Words(NamedTuple):
    """Words for the figures of a network."""

    score: str
    """Title of the figure that networks are compared by."""
    right: str
    """Verb and object of a sentence on that figure, {}."""
    of: str
    """Words that follow it: of or on which images."""
    other: str
    """The same of another network, in short."""
    agrees: str
    """Verb and object of a sentence on the agreement, {}, on the validation images."""


WORDS = {
    "classes": Words(
        "accuracy",
        "is right on {}",
        "of the real images",
        "on {}",
        "answers with the teacher's class on {} of the validation images",
    ),
    "labels": Words(
        "accuracy of labels",
        "is right about {}",
        "of the labels of the real images",
        "about {}",
        "agrees with the teacher about {} of the labels of the validation images",
    ),
    "values": Words(
        "R2",
        "explains {}",
        "of the variance of the real values",
        "{}",
        "explains {} of the variance of the teacher's values on the validation images",
    ),
    "dense": Words(
        "mean IoU",
        "has a mean IoU of {}",
        "on the real images",
        "one of {}",
        "answers with the teacher's class on {} of the pixels of the validation images",
    ),
}
"""Words by what a network's outputs say."""
MORE_SCORES: dict[str, tuple[str, bool]] = {
    "ece": ("expected calibration error", True),
    "average_precision": ("mean average precision", True),
    "pixel_accuracy": ("pixel accuracy", True),
    "absolute_error": ("mean absolute error", False),
}
"""Titles of figures on real images beside the one to compare by, and whether they are shares."""


def agreement_of(summary: Mapping[str, Any], share: float) -> str:
    """Format an agreement on a summary's validation images, a share of decisions with its interval.

    That of values is R2, which has none here.

    >>> agreement_of({"outputs": "values"}, 0.5), agreement_of({"validation_images": 1024}, 0.5)
    ('50.00 %', '50.0 ± 3.1 %')
    """
    if summary.get("outputs") == "values":
        return percent(share)
    return measured_share(share, summary["validation_images"])


def words_of(summary: Mapping[str, Any]) -> Words:
    """Return the words for the outputs that a summary is of."""
    return WORDS[summary.get("outputs", "classes")]


def more_scores() -> list[tuple[str, str, Callable[[Any], str]]]:
    """Return title, key and format of the figures of MORE_SCORES."""
    rows = MORE_SCORES.items()
    return [(title, key, percent if is_share else shown) for key, (title, is_share) in rows]


def capitalized(text: str) -> str:
    """Return a text with its first letter in upper case.

    >>> capitalized("mean IoU")
    'Mean IoU'
    """
    return text[:1].upper() + text[1:]


def shown(value: Any) -> str:
    """Format a plain value: round numbers, and write lists and tables without brackets.

    >>> shown(8.949544280767441e-05), shown(61706), shown(123456.7), shown(0.1306)
    ('8.95e-05', '61,706', '123,457', '0.1306')
    >>> shown({"path": "net.onnx", "bytes": 252493, "runs": [True, None]})
    'path: net.onnx, bytes: 252,493, runs: yes, none'
    >>> shown([{"layer": "head", "bits": 8}, {"layer": "stem", "bits": 4}])
    'layer: head, bits: 8; layer: stem, bits: 4'
    """
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _rounded(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{shown(k).replace('_', ' ')}: {shown(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        nested = any(isinstance(item, Mapping | list | tuple) for item in value)
        return ("; " if nested else ", ").join(map(shown, value))
    return str(value)


def _rounded(value: float) -> str:
    """Format a float with 3 digits if it has an exponent, else 4; from 1000 on as an integer."""
    if 1000 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    text = f"{value:.4g}"
    return f"{value:.3g}" if "e" in text else text


def percent(share: float) -> str:
    """Format a fraction in [0, 1] as a percentage with two decimals.

    >>> percent(0.98312)
    '98.31 %'
    """
    return f"{100 * share:.2f} %"


def half_interval(share: float, num: int) -> float:
    """Return half the width of the 95 % interval of a fraction that was measured on `num` items.

    It is Wald's, but at least 3 / num (the rule of three), for Wald's is 0 where all are counted.

    >>> round(half_interval(0.5, 1024), 4), half_interval(1.0, 1000)
    (0.0306, 0.003)
    """
    wald: float = 1.96 * (share * (1 - share) / num) ** 0.5
    return max(wald, 3 / num)


def measured_share(share: float, num: int) -> str:
    """Format a fraction that was measured on `num` items, with its 95 % interval.

    >>> measured_share(0.5, 1024), measured_share(1.0, 1024)
    ('50.0 ± 3.1 %', '100.0 ± 0.3 %')
    """
    return f"{100 * share:.1f} ± {100 * half_interval(share, num):.1f} %"


def bytes_of_memory(num: int) -> str:
    """Format a number of bytes in MB or GB.

    >>> bytes_of_memory(87_400_000), bytes_of_memory(1_240_000_000)
    ('87 MB', '1.2 GB')
    """
    return f"{num / 1e9:.1f} GB" if num >= 1e9 else f"{max(1, num / 1e6):.0f} MB"


def duration(seconds: float) -> str:
    """Format seconds in seconds, minutes or hours.

    >>> duration(4.2), duration(200), duration(9000)
    ('4 s', '3 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
