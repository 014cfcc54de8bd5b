"""All methods on MNIST: see `reference`. The unrelated set is USPS, as in DAFL's table 1."""

from benchmarks.protocol import main
from benchmarks.reference import reference
from dreamstill.synthesis.config import RandomShapes

BENCHMARK = reference(
    "reference_mnist",
    "mnist",
    "lenet5_bn_mnist",
    "dreamstill.nn.lenet:lenet5_half_bn",
    unrelated="usps",
    shapes=RandomShapes(),
    flip=False,
)

if __name__ == "__main__":
    main(BENCHMARK)
