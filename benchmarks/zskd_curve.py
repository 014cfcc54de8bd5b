"""ZSKD: how many Data Impressions, which betas, with and without augmentation.

    python -m benchmarks.zskd_curve --data FOLDER

Impressions from uniform noise, as in the paper, made before the first step; `benchmarks.curve`
draws docs/pictures/zskd_curve.png from the record.
"""

from dataclasses import replace
from typing import Any

from benchmarks.protocol import Row, main
from benchmarks.studies import SCHEDULE, study
from dreamstill.data.config import Augmentation
from dreamstill.synthesis.config import ZskdConfig

SIZES = (500, 1000, 2000, 4000, 8000, 16000)
IMPRESSIONS = ZskdConfig(rescale_rows=False, steps=60, batch_size=500)
SHAKE = Augmentation(shift=0.15, rotate=20, scale=0.2, noise=0.2, mix=True)


def row(size: int, augment: Augmentation = SHAKE, **changes: Any) -> Row:
    """So many impressions; a tenth more are held out for the judge."""
    distill = replace(SCHEDULE, buffer_size=size, num_validation=size // 10, augment=augment)
    return Row(method="zskd", synthesis=replace(IMPRESSIONS, **changes), distill=distill)


BENCHMARK = study(
    "zskd_curve",
    {f"{size} impressions": row(size) for size in SIZES}
    | {
        "4000, beta 1.0 alone": row(4000, betas=(1.0,)),
        "4000, beta 0.1 alone": row(4000, betas=(0.1,)),
        "4000, not augmented": row(4000, Augmentation()),
    },
    {"ZSKD, 24,000 impressions": 98.77},
)

if __name__ == "__main__":
    main(BENCHMARK)
