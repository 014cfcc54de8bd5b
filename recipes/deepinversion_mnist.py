"""DeepInversion on MNIST, LeNet-5 with BatchNorm to its half; never published on MNIST.

    python -m recipes.deepinversion_mnist --data FOLDER_WITH_MNIST_NPZ [--tiny]

The authors' CIFAR-10 losses; 2,048 images at 200 steps and a learning rate of 0.1, no flips. Beside
it the same images started from structured noise, and replayed without augmentation, which say what
is missing: inverted images are look-alikes that the teacher is sure of.
"""

from dataclasses import replace

from benchmarks.protocol import Benchmark, Row, floors, main

from dreamstill.pool import Augmentation
from dreamstill.synthesis.deepinversion import DeepInversionSettings
from dreamstill.synthesis.pixels import Start
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.tasks.distill import DistillSettings

SCHEDULE = DistillSettings(steps=4000, batch_size=64, lr=3e-3)
REPLAY = Augmentation(shift=0.15, rotate=20, scale=0.2, noise=0.2, mix=True)
INVERSION = DeepInversionSettings(steps=200, lr=0.1, flip=False)
ROW = Row(
    method="deepinversion",
    synthesis=INVERSION,
    distill=replace(SCHEDULE, pool=2048, held_out=512, augment=REPLAY),
)

BENCHMARK = Benchmark(
    name="deepinversion_mnist",
    data="mnist",
    teacher="lenet5_bn_mnist",
    student="dreamstill.nets.lenet:lenet5_half_bn",
    rows={
        "deepinversion": ROW,
        "deepinversion, not augmented": replace(
            ROW, distill=replace(ROW.distill, augment=Augmentation())
        ),
        "deepinversion from structured noise": replace(
            ROW, synthesis=replace(INVERSION, start=Start.STRUCTURED)
        ),
        **floors(SCHEDULE, StructuredNoiseSettings(oversample=3, mine=True)),
    },
)

if __name__ == "__main__":
    main(BENCHMARK)
