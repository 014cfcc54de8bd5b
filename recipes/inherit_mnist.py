"""Ours: LeNet-5-Half cut out of LeNet-5 and distilled on structured noise. MNIST, 2,000 steps.

    python -m recipes.inherit_mnist --data FOLDER_WITH_MNIST_NPZ [--tiny]

Beside the student that starts from its teacher's channels stand the same student from random
weights, and both starts on noise and on the real set: what the start is worth, and what the images.
DAFL's and ZSKD's images, with the settings of their own recipes, get the same start. The rows
"reconstructed" are of students whose layers are also solved on the images, and trained for no step,
for 200, and for all; "by layers" they learn what the teacher's layers make, not its answers.
`structured_noise` is drawn with its default settings, in batches of the student's size; `clothes`
differs in the drawing alone, that of Fashion-MNIST's preset.
"""

from dataclasses import replace

from benchmarks.protocol import Benchmark, Row, floors, main

from dreamstill.distillation.config import DistillConfig, LossName
from dreamstill.synthesis.config import CLOTHES, StructuredNoiseConfig
from recipes import dafl_mnist, zskd_mnist

SCHEDULE = DistillConfig(steps=2000, batch_size=64, lr=3e-3, validate_every=500)


def drawn(config: StructuredNoiseConfig) -> Row:
    """A row of structured noise, in batches of the student's size."""
    return floors(SCHEDULE, config)["structured_noise"]


def with_inherited(rows: dict[str, Row]) -> dict[str, Row]:
    """Each row, and with a student that inherits: as it was cut, reconstructed, and by layers."""
    inherited = {name: replace(row, inherit=True) for name, row in rows.items()}
    solved = {name: replace(row, reconstruct=2048) for name, row in inherited.items()}
    return (
        rows
        | {f"{name}, inherited": row for name, row in inherited.items()}
        | {
            f"{name}, reconstructed, {steps} steps": replace(
                row, distill=replace(row.distill, steps=steps)
            )
            for name, row in solved.items()
            for steps in (0, 200, SCHEDULE.steps)
        }
        | {
            f"{name}, reconstructed, by layers, {SCHEDULE.steps} steps": replace(
                row, distill=replace(row.distill, losses=(LossName.LAYERS,))
            )
            for name, row in solved.items()
        }
    )


def inheriting(row: Row) -> Row:
    """Another recipe's row on this schedule, its images and their replay kept."""
    plain = replace(
        SCHEDULE,
        prefill=row.distill.prefill,
        fresh_every=row.distill.fresh_every,
        augment=row.distill.augment,
    )
    return replace(row, inherit=True, distill=plain)


BENCHMARK = Benchmark(
    name="inherit_mnist",
    data="mnist",
    teacher="lenet5_mnist",
    student="dreamstill.nn.lenet:lenet5_half",
    rows=with_inherited(
        floors(SCHEDULE, StructuredNoiseConfig())
        | {"clothes": drawn(StructuredNoiseConfig(shapes=CLOTHES))}
    )
    | {
        "zskd, inherited": inheriting(zskd_mnist.BENCHMARK.rows["zskd from structured noise"]),
        "dafl, inherited": inheriting(dafl_mnist.BENCHMARK.rows["dafl"]),
    },
    published={"DAFL": 98.20, "DFAD": 98.3, "ZSKD": 98.77},
)

if __name__ == "__main__":
    main(BENCHMARK)
