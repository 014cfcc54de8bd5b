"""DAFL on Fashion-MNIST, LeNet-5 to LeNet-5-Half: no published row; ZSKD has 79.62.

    python -m recipes.dafl_fashion_mnist --data FOLDER_WITH_FASHION_MNIST_NPZ [--tiny]

As `dafl_mnist`, with fewer steps, one in three on fresh images. Structured noise is drawn as
clothes are: figures in the middle, mirrored left to right, with texture.
"""

from dataclasses import replace

from benchmarks.protocol import Benchmark, Row, floors, main

from dreamstill.data.config import Augmentation
from dreamstill.distillation.config import DistillConfig
from dreamstill.synthesis.config import CLOTHES, StructuredNoiseConfig
from dreamstill.synthesis.methods.dafl import MNIST

SCHEDULE = DistillConfig(steps=6000, batch_size=64, lr=3e-3)
REPLAY = Augmentation(shift=0.1, rotate=15, scale=0.15, mix=True)

BENCHMARK = Benchmark(
    name="dafl_fashion_mnist",
    data="fashion_mnist",
    teacher="lenet5_fashion_mnist",
    student="dreamstill.nn.lenet:lenet5_half",
    rows={
        "dafl": Row(
            method="dafl",
            synthesis=replace(MNIST, batch_size=128, widths=(32, 16), lr=0.02),
            distill=replace(SCHEDULE, fresh_every=3, augment=REPLAY),
        ),
        **floors(SCHEDULE, StructuredNoiseConfig(oversample=3, mine=True, shapes=CLOTHES)),
    },
    published={"ZSKD": 79.62, "real": 89.66},
)

if __name__ == "__main__":
    main(BENCHMARK)
