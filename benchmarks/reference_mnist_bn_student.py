"""Methods on MNIST from a LeNet-5 without BatchNorm to a half with it: see `reference`."""

from dataclasses import replace

from benchmarks import reference_mnist_lenet5
from benchmarks.protocol import main

BENCHMARK = replace(
    reference_mnist_lenet5.BENCHMARK,
    name="reference_mnist_bn_student",
    student="dreamstill.nn.lenet:lenet5_half_bn",
    published={},
)

if __name__ == "__main__":
    main(BENCHMARK)
