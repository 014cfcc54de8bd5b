"""DAFL with a student of the teacher's own architecture: LeNet-5 to LeNet-5 on MNIST.

python -m benchmarks.dafl_same_architecture --data FOLDER
"""

from dataclasses import replace

from benchmarks import dafl_ablation
from benchmarks.protocol import Row, main
from benchmarks.studies import SCHEDULE, study
from dreamstill.synthesis.config import StructuredNoiseConfig

DAFL = Row(method="dafl", synthesis=dafl_ablation.SETTINGS, distill=dafl_ablation.TRAINING)
MINED = StructuredNoiseConfig(batch_size=SCHEDULE.batch_size, oversample=3, mine=True)

BENCHMARK = study(
    "dafl_same_architecture",
    {
        "dafl": DAFL,
        "dafl after structured noise": replace(DAFL, after=SCHEDULE.steps // 2),
        "structured noise (mined)": Row(
            method="structured_noise", synthesis=MINED, distill=SCHEDULE
        ),
    },
    {},
    student="lenet5",
)

if __name__ == "__main__":
    main(BENCHMARK)
