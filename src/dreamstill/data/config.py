"""Configuration of augmentation."""

from typing import Annotated

from dreamstill.config import Bool, Float, config_class, within

__all__ = ["Augmentation"]


@config_class
class Augmentation:
    """Random augmentation of replayed images; the teacher labels the augmented images again."""

    shift: Annotated[Float, within(0, 1)] = 0.0
    """Largest shift, as a fraction of the side; 0 to 1."""
    rotate: Annotated[Float, within(0, 180)] = 0.0
    """Largest rotation in degrees; 0 to 180."""
    scale: Annotated[Float, within(0, 0.99)] = 0.0
    """Largest relative change of size; 0 to below 1."""
    noise: Annotated[Float, within(0, 1)] = 0.0
    """Largest standard deviation of Gaussian noise on pixels in [0, 1]; 0 to 1."""
    flip: Bool = False
    """Mirror half of the images left to right. Leave it off for digits and text."""
    mix: Bool = False
    """Mix pairs of images with weights drawn uniformly from [0, 1]."""
