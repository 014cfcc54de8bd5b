"""DeepInversion on MNIST, LeNet-5 with BatchNorm to its half; never published on MNIST.

    python -m recipes.deepinversion_mnist --data FOLDER_WITH_MNIST_NPZ [--tiny]

The authors' CIFAR-10 losses; 8,192 images at 200 steps and a learning rate of 0.1, no flips.
"""

from dataclasses import replace

from benchmarks.protocol import Recipe, main

from dreamstill.pool import Augmentation
from dreamstill.synthesis.deepinversion import DeepInversionSettings
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.tasks.distill import DistillSettings


def tiny(recipe: Recipe) -> Recipe:
    """A few batches and steps."""
    small = replace(recipe.synthesis, batch_size=64, steps=10)
    distill = replace(recipe.distill, steps=40, held_out=64, pool=64)
    return replace(recipe, synthesis=small, distill=distill)


RECIPE = Recipe(
    name="deepinversion_mnist",
    data="mnist",
    teacher="lenet5_bn_mnist",
    student="dreamstill.nets.lenet:lenet5_half_bn",
    method="deepinversion",
    synthesis=DeepInversionSettings(steps=200, lr=0.1, flip=False),
    distill=DistillSettings(
        steps=4000,
        batch_size=64,
        lr=3e-3,
        pool=8192,
        held_out=512,
        augment=Augmentation(shift=0.15, rotate=20, scale=0.2, noise=0.2, mix=True),
    ),
    structured=StructuredNoiseSettings(),
    published={},
    tiny=tiny,
)

if __name__ == "__main__":
    main(RECIPE)
