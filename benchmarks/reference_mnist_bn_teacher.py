"""Methods on MNIST from a LeNet-5 with BatchNorm to a half without: see `reference`."""

from dataclasses import replace

from benchmarks import reference_mnist_lenet5
from benchmarks.protocol import main

BENCHMARK = replace(
    reference_mnist_lenet5.BENCHMARK,
    name="reference_mnist_bn_teacher",
    teacher="lenet5_bn_mnist",
    published={},
)

if __name__ == "__main__":
    main(BENCHMARK)
