"""Methods on Fashion-MNIST from Hinton's MLP to 784-800-800-10: see `reference`.

    python recipes/train_teacher.py FOLDER/fashion_mnist.npz
        TEACHERS/hinton_fashion_mnist.safetensors
        --factory dreamstill.nn.mlp:hinton_net --epochs 10 --shift 0    (in one line)
    python -m benchmarks.reference_fashion_mnist_hinton --data FOLDER --teachers TEACHERS

The teacher has 2.4 M parameters and is not in the repository.
"""

from benchmarks.protocol import main
from benchmarks.reference import reference
from dreamstill.synthesis.config import CLOTHES

BENCHMARK = reference(
    "reference_fashion_mnist_hinton",
    "fashion_mnist",
    "hinton_fashion_mnist",
    "dreamstill.nn.mlp:hinton_net_small",
    unrelated="mnist",
    shapes=CLOTHES,
    flip=True,
    batch_norm=False,
    maps=False,
)

if __name__ == "__main__":
    main(BENCHMARK)
