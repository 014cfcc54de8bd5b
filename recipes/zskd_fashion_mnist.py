"""ZSKD: LeNet-5 to LeNet-5-Half on Fashion-MNIST. Published 79.62, with real data 89.66.

    python -m recipes.zskd_fashion_mnist --data FOLDER_WITH_FASHION_MNIST_NPZ [--tiny]

As `zskd_mnist`, with flips.
"""

from dataclasses import replace

from benchmarks.protocol import Recipe, main

from dreamstill.pool import Augmentation
from dreamstill.synthesis.drawings import Drawing
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.synthesis.zskd import ZskdSettings
from dreamstill.tasks.distill import DistillSettings


def tiny(recipe: Recipe) -> Recipe:
    """A few batches and steps."""
    small = replace(recipe.synthesis, batch_size=100, steps=10)
    distill = replace(recipe.distill, steps=40, held_out=100, pool=100)
    return replace(recipe, synthesis=small, distill=distill)


RECIPE = Recipe(
    name="zskd_fashion_mnist",
    data="fashion_mnist",
    teacher="lenet5_fashion_mnist",
    student="dreamstill.nets.lenet:lenet5_half",
    method="zskd",
    synthesis=ZskdSettings(steps=100),
    distill=DistillSettings(
        steps=4000,
        batch_size=64,
        lr=3e-3,
        pool=8000,
        held_out=1000,
        augment=Augmentation(shift=0.15, rotate=20, scale=0.2, noise=0.2, flip=True, mix=True),
    ),
    structured=StructuredNoiseSettings(oversample=4, drawing=Drawing(stroke_share=0.3)),
    published={"ZSKD": 79.62, "real": 89.66},
    tiny=tiny,
)

if __name__ == "__main__":
    main(RECIPE)
