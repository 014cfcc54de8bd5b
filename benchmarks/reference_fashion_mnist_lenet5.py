"""Methods on Fashion-MNIST from a plain LeNet-5 to its half: see `reference`."""

from benchmarks.protocol import main
from benchmarks.reference import reference
from dreamstill.synthesis.config import CLOTHES

BENCHMARK = reference(
    "reference_fashion_mnist_lenet5",
    "fashion_mnist",
    "lenet5_fashion_mnist",
    "dreamstill.nn.lenet:lenet5_half",
    unrelated="mnist",
    shapes=CLOTHES,
    flip=True,
    batch_norm=False,
    published={"ZSKD": 79.62, "real": 89.66},
)

if __name__ == "__main__":
    main(BENCHMARK)
