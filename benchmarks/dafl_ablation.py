"""DAFL's losses, every subset of them (table 4 of the paper), and its floor of another data set.

python -m benchmarks.dafl_ablation --data FOLDER
"""

from dataclasses import replace
from itertools import product
from typing import Any

from benchmarks.protocol import Row, main
from benchmarks.studies import SCHEDULE, SHAKE, WIDTHS, study
from dreamstill.synthesis.methods.dafl import MNIST

LOSSES = ("one_hot", "information_entropy", "activation")
SETTINGS = replace(MNIST, batch_size=128, widths=WIDTHS, lr=0.02)
TRAINING = replace(SCHEDULE, fresh_every=2, augment=SHAKE)


def subset(kept: tuple[bool, ...]) -> tuple[str, Row]:
    """The row with the losses that are kept; the others weigh nothing."""
    names = [name.replace("_", " ") for name, on in zip(LOSSES, kept, strict=True) if on]
    off: dict[str, Any] = {name: 0.0 for name, on in zip(LOSSES, kept, strict=True) if not on}
    row = Row(method="dafl", synthesis=replace(SETTINGS, **off), distill=TRAINING)
    return " + ".join(names) or "no loss", row


BENCHMARK = study(
    "dafl_ablation",
    dict(subset(kept) for kept in product((True, False), repeat=3))
    | {"unrelated (USPS)": Row(method="unrelated", synthesis="usps", distill=SCHEDULE)},
    {
        "all losses": 98.20,
        "a subset of two": 97.25,
        "another subset of two": 95.53,
        "no loss": 88.01,
        "USPS": 94.56,
    },
)

if __name__ == "__main__":
    main(BENCHMARK)
