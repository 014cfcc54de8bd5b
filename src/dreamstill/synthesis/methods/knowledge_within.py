"""The Knowledge Within: Inception, BNS and BNS+I images, and a measure of data similarity.

Source: Haroush et al., "The Knowledge Within: Methods for Data-Free Model Compression", CVPR 2020,
sections 3 and 4, without code. The weights, the prior (distance to a 3x3 blur), the learning rate,
the steps and the batch size are ours. Pixels are clipped to the valid range at each step. The
paper's Gaussian scheme is the method `noise` with `distill.freeze_batch_norm`.
"""

import torch
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.errors import TeacherError
from dreamstill.losses.priors import smoothness
from dreamstill.nn.hooks import probed_at_once
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.batch_norm_statistics import (
    batch_moments,
    batch_norm_divergence,
    divergence_of,
    norms_of,
)
from dreamstill.synthesis.class_balance import Turns
from dreamstill.synthesis.config import KnowledgeWithinConfig, Scheme
from dreamstill.synthesis.pixel_optimization import optimize_pixels, start_images
from dreamstill.teacher import Teacher

__all__ = ["KnowledgeWithin", "KnowledgeWithinConfig", "Scheme", "data_similarity"]


@torch.no_grad()
def data_similarity(teacher: Teacher, images: Tensor) -> float:
    """Return the BNS divergence of images (section 4); 0 means as similar as training data.

    Images optimized for it score low without looking real.

    Args:
        teacher: network with BatchNorm; otherwise TeacherError is raised.
        images: (N, C, H, W) in the teacher's input space, a few hundred or more.

    """
    if not teacher.capabilities.batch_norm:
        raise TeacherError("data_similarity needs BatchNorm layers; the teacher has none")
    norms, num = norms_of(teacher), len(images)
    first = {name: torch.zeros(()) for name in norms}
    second = dict(first)
    for part in images.split(probed_at_once(teacher.input_spec.shape)):
        with batch_moments(norms) as part_moments:
            teacher(part)
        for name in norms:
            mean, variance = (moment.cpu().double() for moment in part_moments[name])
            first[name] = first[name] + mean * len(part) / num
            second[name] = second[name] + (variance + mean**2) * len(part) / num
    moments = {n: (first[n], second[n] - first[n] ** 2) for n in norms}
    on = {
        n: (m.float().to(images.device), v.float().to(images.device))
        for n, (m, v) in moments.items()
    }
    return divergence_of(on, norms).item()


class KnowledgeWithin(Method):
    """Method that optimizes each batch from noise, with classes in turn."""

    config: KnowledgeWithinConfig
    needs = (
        "classes",
        "gradient",
    )
    state = ("turns",)

    def __init__(
        self, teacher: Teacher, config: KnowledgeWithinConfig, *, rng: torch.Generator
    ) -> None:
        if config.scheme is not Scheme.INCEPTION and not teacher.capabilities.batch_norm:
            raise TeacherError(
                f"knowledge_within's scheme {config.scheme} needs batch_norm, which the teacher "
                f"lacks; {Scheme.INCEPTION} can do without"
            )
        super().__init__(teacher, config, rng=rng)
        self.turns = Turns(teacher.num_classes, rng.device)

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Optimize and return a batch."""
        config, teacher = self.config, self.teacher
        classes = self.turns.take(config.batch_size)

        def objective(images: Tensor) -> Tensor:
            if config.scheme is Scheme.INCEPTION:
                divergence, logits = images.new_zeros(()), teacher(images)
            else:
                divergence, logits = batch_norm_divergence(teacher, images)
            if config.scheme is Scheme.BNS:
                return divergence
            inception = -config.inception * logits.gather(1, classes[:, None]).mean()
            return inception + config.prior * smoothness(images) + divergence

        images = optimize_pixels(
            start_images(classes, teacher, config.start, config.shapes, self.rng),
            objective,
            spec=teacher.input_spec,
            steps=config.steps,
            lr=config.lr,
        )
        return answered(teacher, images)
