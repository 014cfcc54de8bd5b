"""Configuration of augmentation."""

from typing import Annotated

from dreamstill.config import Bool, Float, config_class, within
from dreamstill.errors import ConfigError

__all__ = ["NO_AUGMENTATION", "Augmentation"]


@config_class
class Augmentation:
    """Random augmentation of training images; the teacher labels the augmented images again."""

    shift: Annotated[Float, within(0, 1)] = 0.1
    """Largest shift, as a fraction of the side; 0 to 1."""
    rotate: Annotated[Float, within(0, 180)] = 0.0
    """Largest rotation in degrees; 0 to 180."""
    scale: Annotated[Float, within(0, 0.99)] = 0.0
    """Largest relative change of size; 0 to below 1."""
    noise: Annotated[Float, within(0, 1)] = 0.0
    """Largest standard deviation of Gaussian noise on pixels in [0, 1]; 0 to 1."""
    flip: Bool = True
    """Mirror half of the images left to right."""
    mixup: Annotated[Float, within(0, 1)] = 0.3
    """Share of the images mixed with another one, with weights drawn uniformly from [0, 1]."""
    cutmix: Annotated[Float, within(0, 1)] = 0.3
    """Share of the images that show another one through a smooth random mask; with `mixup` at most
    1."""

    def __post_init__(self) -> None:
        if self.mixup + self.cutmix > 1:
            raise ConfigError(
                "an image is mixed in one way: mixup and cutmix must be at most 1 together; got "
                f"{self.mixup} and {self.cutmix}"
            )


NO_AUGMENTATION = Augmentation(shift=0, flip=False, mixup=0, cutmix=0)
