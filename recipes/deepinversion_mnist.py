"""DeepInversion on MNIST, LeNet-5 with BatchNorm to its half; never published on MNIST.

    python -m recipes.deepinversion_mnist --data FOLDER_WITH_MNIST_NPZ [--tiny]

The authors' CIFAR-10 losses; 2,048 images at 100 steps and a learning rate of 0.1, no flips. These
are rows of the reference benchmark, so `--reuse benchmarks/records/reference_mnist.json` takes them
from there. The second row starts the pixels from structured noise and so says what is missing in
inverted images.
"""

from benchmarks.protocol import Benchmark, main
from benchmarks.reference_mnist import BENCHMARK as REFERENCE

ROWS = (
    "deepinversion",
    "deepinversion from structured noise",
    "structured_noise",
    "noise",
    "real",
)

BENCHMARK = Benchmark(
    name="deepinversion_mnist",
    data=REFERENCE.data,
    teacher=REFERENCE.teacher,
    student=REFERENCE.student,
    rows={name: REFERENCE.rows[name] for name in ROWS},
)

if __name__ == "__main__":
    main(BENCHMARK)
