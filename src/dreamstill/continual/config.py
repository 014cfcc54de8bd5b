"""Configuration of learning new classes."""

from enum import StrEnum
from typing import Annotated

from dreamstill.config import Float, Int, above, at_least, config_class, no_effect

__all__ = ["LearnClassesConfig", "Recipe"]


class Recipe(StrEnum):
    """Recipe against forgetting the old classes."""

    INVERSION = "inversion"
    ABD = "abd"
    LWF = "lwf"
    FINETUNE = "finetune"


@config_class
class LearnClassesConfig:
    """Configuration of learning new classes without the data of the old ones."""

    recipe: Recipe = Recipe.ABD
    """abd or inversion (both use synthetic images), lwf (no synthetic images), or finetune (no
    protection of the old classes)."""
    steps: Annotated[Int, at_least(1)] = 1000
    """Training steps; at least 1."""
    batch_size: Annotated[Int, at_least(2)] = 64
    """New images per step, and as many synthetic ones; at least 2."""
    lr: Annotated[Float, above(0)] = 1e-3
    """Learning rate of Adam, annealed to 0 by a cosine; above 0."""
    old_weight: Annotated[Float, at_least(0)] = 1.0
    """Weight of the losses that protect the old classes; at least 0."""
    temperature: Annotated[Float, above(0)] = 2.0
    """Temperature of the distillation in inversion and lwf; above 0."""

    def __post_init__(self) -> None:
        where = f"on {self.recipe.value}"
        if self.recipe is Recipe.FINETUNE:
            no_effect(self, where, "old_weight")
        if self.recipe in (Recipe.FINETUNE, Recipe.ABD):
            no_effect(self, where, "temperature")

    @property
    def reads_images(self) -> bool:
        """Whether the recipe uses synthetic images of the old classes."""
        return self.recipe in (Recipe.INVERSION, Recipe.ABD)
