"""Methods on MNIST from Hinton's MLP, 784-1200-1200-10, to 784-800-800-10: see `reference`.

    python recipes/train_teacher.py FOLDER/mnist.npz TEACHERS/hinton_mnist.safetensors
        --factory dreamstill.nn.mlp:hinton_net --epochs 10    (in one line)
    python -m benchmarks.reference_mnist_hinton --data FOLDER --teachers TEACHERS

The teacher has 2.4 M parameters and is not in the repository. The rows "reconstructed" are of
students that are cut out of it, their layers solved on the row's images.
"""

from dataclasses import replace

from benchmarks.protocol import main
from benchmarks.reference import reference
from dreamstill.synthesis.config import RandomShapes

RANDOM = reference(
    "reference_mnist_hinton",
    "mnist",
    "hinton_mnist",
    "dreamstill.nn.mlp:hinton_net_small",
    unrelated="usps",
    shapes=RandomShapes(),
    flip=False,
    batch_norm=False,
    maps=False,
    published={"DAFL": 97.91, "real": 98.39},
)
RECONSTRUCTED = {
    f"{name}, reconstructed": replace(RANDOM.rows[name], inherit=True, reconstruct=2048)
    for name in ("dafl", "structured_noise", "noise", "real")
}
BENCHMARK = replace(RANDOM, rows=RANDOM.rows | RECONSTRUCTED)

if __name__ == "__main__":
    main(BENCHMARK)
