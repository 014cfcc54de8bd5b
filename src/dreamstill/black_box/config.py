"""Configuration of a teacher of which only the answers are known."""

from enum import StrEnum
from typing import Annotated

from dreamstill.config import Float, Int, Text, above, at_least, config_class, within
from dreamstill.errors import ConfigError

__all__ = ["Answers", "BlackBoxConfig", "ImageFormat", "NUM_EXAMINED", "check_pays"]

NUM_EXAMINED = 3
"""Queries of the examination of a black box when it is opened."""


def check_pays(budget: int, num_validation: int) -> None:
    """Raise ConfigError if a budget pays for no image beside a validation set."""
    spent = NUM_EXAMINED + num_validation
    if budget <= spent:
        raise ConfigError(
            f"black_box.budget {budget:,} pays for no image to learn from: {spent:,} queries are "
            "of the examination and the validation set; give more, or lower num_validation"
        )


class Answers(StrEnum):
    """Kind of answer for each image."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    LABELS = "labels"


class ImageFormat(StrEnum):
    """Form in which each image is sent, (C, H, W)."""

    INPUTS = "inputs"
    """float32, normalized by mean and std."""
    PIXELS = "pixels"
    """uint8."""


@config_class
class BlackBoxConfig:
    """Configuration of asking a teacher of which only the answers are known."""

    answers: Answers = Answers.LOGITS
    """Kind of answer for each image: logits, probabilities, or labels, numbered from 0."""
    images: ImageFormat = ImageFormat.INPUTS
    """Form of the images that are sent: inputs, float32 and normalized, or pixels, uint8."""
    budget: Annotated[Int, at_least(1)] = 100_000
    """Most images ever sent, those that are sent again after a failure included; at least 1."""
    cache: Text | None = None
    """File (SQLite) of answers, from which this and later runs take them. Default: in memory."""
    batch_size: Annotated[Int, at_least(1)] = 256
    """Most images of a request; at least 1."""
    rate: Annotated[Float, at_least(0)] = 0.0
    """Most requests per second; 0 for no limit."""
    retries: Annotated[Int, within(0, 20)] = 5
    """Times that a request is sent again after a time-out, a broken connection or a server's error
    (5xx, 429); 0 to 20."""
    wait: Annotated[Float, within(0, 60)] = 1.0
    """Seconds before the first of these, doubled before each further one up to a minute; 0 to
    60."""
    timeout: Annotated[Float, above(0)] = 30.0
    """Seconds to wait for an HTTP endpoint; above 0."""
    gradient_directions: Annotated[Int, within(0, 1000)] = 0
    """Random directions per image in which gradients are estimated, for methods with generators;
    each is a query. 0: there are no gradients."""

    def __post_init__(self) -> None:
        if self.gradient_directions and self.answers is Answers.LABELS:
            raise ConfigError(
                f"gradient_directions {self.gradient_directions} has no effect on labels, which a "
                "small change of an image does not change: leave it out"
            )
