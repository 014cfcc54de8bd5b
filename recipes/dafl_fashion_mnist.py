"""DAFL on Fashion-MNIST, LeNet-5 to LeNet-5-Half: no published row; ZSKD has 79.62.

    python -m recipes.dafl_fashion_mnist --data FOLDER_WITH_FASHION_MNIST_NPZ [--tiny]

As `dafl_mnist`, with the same settings.
"""

from dataclasses import replace

from benchmarks.protocol import Recipe, main

from dreamstill.synthesis.dafl import MNIST
from dreamstill.synthesis.drawings import Drawing
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.tasks.distill import DistillSettings


def tiny(recipe: Recipe) -> Recipe:
    """A few batches and steps."""
    return replace(recipe, distill=replace(recipe.distill, steps=40, held_out=256))


RECIPE = Recipe(
    name="dafl_fashion_mnist",
    data="fashion_mnist",
    teacher="lenet5_fashion_mnist",
    student="dreamstill.nets.lenet:lenet5_half",
    method="dafl",
    synthesis=replace(MNIST, batch_size=128, widths=(32, 16)),
    distill=DistillSettings(steps=4000, batch_size=64, lr=3e-3),
    structured=StructuredNoiseSettings(oversample=4, drawing=Drawing(stroke_share=0.3)),
    published={"ZSKD": 79.62, "real": 89.66},
    tiny=tiny,
)

if __name__ == "__main__":
    main(RECIPE)
