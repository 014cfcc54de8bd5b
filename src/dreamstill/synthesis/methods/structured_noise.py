"""Structured noise: random shapes, balanced over the classes that the teacher predicts.

Source: ours. From a large draw of `random_shapes`, those are selected that spread most evenly over
the classes. It needs no optimization, and is a strong baseline.
"""

from dreamstill.data.batch import Batch
from dreamstill.synthesis.balanced_draws import BalancedDraws
from dreamstill.synthesis.config import StructuredNoiseConfig
from dreamstill.synthesis.random_shapes import structured_images

__all__ = ["StructuredNoise", "StructuredNoiseConfig"]


class StructuredNoise(BalancedDraws):
    """Method that draws class-balanced random shapes."""

    config: StructuredNoiseConfig

    def draw(self, num: int) -> Batch:
        """Draw random shapes, and ask the teacher about them."""
        spec = self.teacher.input_spec
        images = spec.normalize(structured_images(num, spec, self.config.shapes, self.rng))
        return Batch(images, self.teacher(images))
