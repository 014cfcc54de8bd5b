"""Metadata distillation: optimize images to match activations drawn from recorded statistics.

Source: Lopes, Fenu & Starner, "Data-Free Knowledge Distillation for Deep Neural Networks", 2017,
section 3, and the authors' code. The objective is the sum over layers of the mean squared
difference of activations after the ReLU, divided again by their number, as in the code. The file
determines the scheme; see `dreamstill.synthesis.activation_statistics`. Differences: pixels start
from N(0, 1) in the input space, because the authors' N(0.15, 0.1) is specific to MNIST, and are
clipped to the valid range at each step.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.errors import ConfigError
from dreamstill.synthesis.activation_statistics import activations, load_metadata
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.class_balance import Turns
from dreamstill.synthesis.config import MetadataConfig
from dreamstill.synthesis.pixel_optimization import optimize_pixels, start_images
from dreamstill.teacher import Teacher

__all__ = ["MetadataImages", "MetadataConfig"]


class MetadataImages(Method):
    """Method that draws activations for classes in turn, and fits images to them."""

    config: MetadataConfig
    needs = (
        "classes",
        "gradient",
    )
    state = ("turns",)

    def __init__(self, teacher: Teacher, config: MetadataConfig, *, rng: torch.Generator) -> None:
        if not config.file:
            raise ConfigError("metadata needs synthesis.file: what the teacher's owner recorded")
        super().__init__(teacher, config, rng=rng)
        self.metadata = load_metadata(Path(config.file), teacher)
        self.turns = Turns(teacher.num_classes, rng.device)

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Optimize and return a batch."""
        config, teacher = self.config, self.teacher
        classes = self.turns.take(config.batch_size)
        wanted = [(view, view.sample(classes, self.rng)) for view in self.metadata.views]

        def objective(images: Tensor) -> Tensor:
            recorded, _ = activations(teacher, images)
            loss = images.new_zeros(())
            for view, target in wanted:
                loss = loss + F.mse_loss(view.read(recorded), target) / target.shape[1]
            # a sum over the batch, so that an image's gradient does not depend on the batch size
            return loss * len(images)

        images = optimize_pixels(
            start_images(classes, teacher, config.start, config.shapes, self.rng),
            objective,
            spec=teacher.input_spec,
            steps=config.steps,
            lr=config.lr,
        )
        return answered(teacher, images)
