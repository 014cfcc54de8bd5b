"""All methods on Fashion-MNIST: see `reference`. The unrelated set is MNIST."""

from benchmarks.protocol import main
from benchmarks.reference import reference
from dreamstill.synthesis.config import CLOTHES

BENCHMARK = reference(
    "reference_fashion_mnist",
    "fashion_mnist",
    "lenet5_bn_fashion_mnist",
    "dreamstill.nn.lenet:lenet5_half_bn",
    unrelated="mnist",
    shapes=CLOTHES,
    flip=True,
)

if __name__ == "__main__":
    main(BENCHMARK)
