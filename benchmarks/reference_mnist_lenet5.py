"""Methods on MNIST from a plain LeNet-5 to its half, DAFL's and ZSKD's pair: see `reference`."""

from benchmarks.protocol import main
from benchmarks.reference import reference
from dreamstill.synthesis.config import RandomShapes

BENCHMARK = reference(
    "reference_mnist_lenet5",
    "mnist",
    "lenet5_mnist",
    "dreamstill.nn.lenet:lenet5_half",
    unrelated="usps",
    shapes=RandomShapes(),
    flip=False,
    batch_norm=False,
    published={
        "DAFL": 98.20,
        "DFAD": 98.3,
        "ZSKD": 98.77,
        "metadata": 92.47,
        "USPS": 94.56,
        "noise": 88.01,
        "real": 98.91,
    },
)

if __name__ == "__main__":
    main(BENCHMARK)
