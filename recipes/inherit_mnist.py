"""Ours: LeNet-5-Half cut out of LeNet-5 and distilled on structured noise. MNIST, 2,000 steps.

    python -m recipes.inherit_mnist --data FOLDER_WITH_MNIST_NPZ [--tiny]

Beside the student that starts from its teacher's channels stand the same student from random
weights, and both starts on noise and on the real set: what the start is worth, and what the images.
"""

from dataclasses import replace

from benchmarks.protocol import Benchmark, Row, floors, main

from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.tasks.distill import DistillSettings

SCHEDULE = DistillSettings(steps=2000, batch_size=64, lr=3e-3, judge_every=500)


def with_inherited(rows: dict[str, Row]) -> dict[str, Row]:
    """Each row, and the same with a student that inherits."""
    return rows | {f"{n}, inherited": replace(row, inherit=True) for n, row in rows.items()}


BENCHMARK = Benchmark(
    name="inherit_mnist",
    data="mnist",
    teacher="lenet5_mnist",
    student="dreamstill.nets.lenet:lenet5_half",
    rows=with_inherited(floors(SCHEDULE, StructuredNoiseSettings())),
    published={"DAFL": 98.20, "DFAD": 98.3, "ZSKD": 98.77},
)

if __name__ == "__main__":
    main(BENCHMARK)
