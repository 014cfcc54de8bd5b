"""Methods on MNIST from a LeNet-5 with BatchNorm to a half without: see `reference`."""

from benchmarks.protocol import main
from benchmarks.reference import reference
from dreamstill.synthesis.drawings import Drawing

BENCHMARK = reference(
    "reference_mnist_bn_teacher",
    "mnist",
    "lenet5_bn_mnist",
    "dreamstill.nets.lenet:lenet5_half",
    unrelated="usps",
    drawing=Drawing(),
    flip=False,
    batch_norm=False,
)

if __name__ == "__main__":
    main(BENCHMARK)
