"""RDSKD beside DAFL on five settings of their loss weights: which of the two needs luck.

    python -m benchmarks.rdskd_stability --data FOLDER

The five settings multiply the weight of each method's second and third term: both by 1, and one of
them by a fifth or by five. Both students replay augmented images. RDSKD's generator has the paper's
2,400 steps: after 600, a fifth of its class diversity costs four points.
"""

from dataclasses import replace

from benchmarks.protocol import Row, main
from benchmarks.studies import SCHEDULE, SHAKE, WIDTHS, study
from dreamstill.synthesis.methods import dafl, rdskd

SCALES = ((1.0, 1.0), (0.2, 1.0), (5.0, 1.0), (1.0, 0.2), (1.0, 5.0))
DAFL = replace(dafl.MNIST, batch_size=128, widths=WIDTHS, lr=0.02)
RDSKD = replace(rdskd.MNIST, batch_size=128, widths=WIDTHS)
TRAINING = replace(SCHEDULE, fresh_every=2, augment=SHAKE)

ROWS: dict[str, Row] = {}
for second, third in SCALES:
    label = f"x {second:g}, x {third:g}"
    ROWS[f"dafl {label}"] = Row(
        method="dafl",
        synthesis=replace(
            DAFL,
            information_entropy=second * DAFL.information_entropy,
            activation=third * DAFL.activation,
        ),
        distill=TRAINING,
    )
    ROWS[f"rdskd {label}"] = Row(
        method="rdskd",
        synthesis=replace(
            RDSKD,
            information_entropy=second * RDSKD.information_entropy,
            diversity=third * RDSKD.diversity,
        ),
        distill=TRAINING,
    )

BENCHMARK = study("rdskd_stability", ROWS, {})

if __name__ == "__main__":
    main(BENCHMARK)
