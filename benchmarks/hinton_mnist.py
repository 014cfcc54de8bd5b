"""Hinton's MLPs on MNIST, 784-1200-1200-10 to 784-800-800-10: DAFL's second row of table 1.

    python recipes/train_teacher.py FOLDER/mnist.npz TEACHERS/hinton_mnist.safetensors
        --factory dreamstill.nets.mlp:hinton_net --epochs 10    (in one line)
    python -m benchmarks.hinton_mnist --data FOLDER --teachers TEACHERS

The teacher has 2.4 M parameters and is not in the repository. The rows "reconstructed" are of
students that are cut out of it, their layers solved on the row's images.
"""

from dataclasses import replace

from benchmarks.protocol import Benchmark, Row, floors, main
from benchmarks.studies import SCHEDULE, SHAKE, WIDTHS
from dreamstill.synthesis.dafl import MNIST
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings

DAFL = Row(
    method="dafl",
    synthesis=replace(MNIST, batch_size=128, widths=WIDTHS, lr=0.02),
    distill=replace(SCHEDULE, fresh_every=2, augment=SHAKE),
)
STRUCTURED = StructuredNoiseSettings(batch_size=64)
ROWS = {
    "dafl": DAFL,
    "structured noise (mined)": Row(
        method="structured_noise",
        synthesis=replace(STRUCTURED, oversample=3, mine=True),
        distill=SCHEDULE,
    ),
    **floors(SCHEDULE, STRUCTURED),
}

BENCHMARK = Benchmark(
    name="hinton_mnist",
    data="mnist",
    teacher="hinton_mnist",
    student="dreamstill.nets.mlp:hinton_net_small",
    rows={
        **ROWS,
        "dafl after structured noise": replace(DAFL, after=SCHEDULE.steps // 2),
        "unrelated (USPS)": Row(method="unrelated", synthesis="usps", distill=SCHEDULE),
        **{
            f"{name}, reconstructed": replace(row, inherit=True, reconstruct=2048)
            for name, row in ROWS.items()
        },
    },
    published={"DAFL": 97.91, "real": 98.39},
)

if __name__ == "__main__":
    main(BENCHMARK)
