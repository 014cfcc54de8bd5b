"""Methods on MNIST from a LeNet-5 without BatchNorm to a half with it: see `reference`."""

from benchmarks.protocol import main
from benchmarks.reference import reference
from dreamstill.synthesis.drawings import Drawing

BENCHMARK = reference(
    "reference_mnist_bn_student",
    "mnist",
    "lenet5_mnist",
    "dreamstill.nets.lenet:lenet5_half_bn",
    unrelated="usps",
    drawing=Drawing(),
    flip=False,
    batch_norm=False,
)

if __name__ == "__main__":
    main(BENCHMARK)
