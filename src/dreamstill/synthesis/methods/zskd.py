"""ZSKD: Data Impressions, images optimized toward soft targets from a Dirichlet distribution.

Source: Nayak et al., "Zero-Shot Knowledge Distillation in Deep Networks", ICML 2019, sections 3.1
to 3.3. Differences: pixels are clipped to the valid range after each step, where the authors' code
rescales the batch by its minimum and maximum, and the defaults are fewer and larger steps than the
authors', which are a preset. The structured start is ours.
"""

import torch
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.losses.logits import soft_cross_entropy
from dreamstill.nn.seeded import seeded
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import ZskdConfig
from dreamstill.synthesis.pixel_optimization import optimize_pixels, start_images
from dreamstill.teacher import Teacher

__all__ = ["Zskd", "ZskdConfig", "class_similarity", "concentration"]


def class_similarity(weight: Tensor) -> Tensor:
    """Return the cosine similarities (K, K) of the classes, equation 3, rescaled to [0, 1].

    `weight` is that of the last linear layer, (K, D). The scale is the same for all classes.
    """
    unit = weight / weight.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosine = unit @ unit.T
    low, high = cosine.min(), cosine.max()
    rescaled: Tensor = (cosine - low) / (high - low).clamp_min(1e-12)
    return rescaled


def by_row(similarity: Tensor) -> Tensor:
    """Rescale each row of similarities (K, K) to [0, 1]."""
    low, high = similarity.amin(1, keepdim=True), similarity.amax(1, keepdim=True)
    rescaled: Tensor = (similarity - low) / (high - low).clamp_min(1e-12)
    return rescaled


def concentration(similarity: Tensor, beta: float) -> Tensor:
    """Return the Dirichlet parameters of each class, beta * similarity (K, K), above 0.

    Similarities are rescaled before the multiplication, as in the paper. The authors' code rescales
    after it, which cancels beta.
    """
    return beta * similarity + 1e-4


class Zskd(Method):
    """Method that draws soft targets, with classes and betas in turn, and optimizes pixels."""

    config: ZskdConfig
    needs = ("classes", "gradient", "last_linear")
    state = ("drawn",)

    def __init__(self, teacher: Teacher, config: ZskdConfig, *, rng: torch.Generator) -> None:
        super().__init__(teacher, config, rng=rng)
        similarity = class_similarity(teacher.last_linear.weight.detach())
        self.similarity = by_row(similarity) if config.rescale_rows else similarity
        self.drawn = 0

    def draw_targets(self, num: int) -> Tensor:
        """Draw soft targets (num, K): class 0 with every beta, then class 1, and so on."""
        index = torch.arange(self.drawn, self.drawn + num)
        self.drawn += num
        betas = self.config.betas
        alphas = torch.stack([concentration(self.similarity.cpu(), beta) for beta in betas])
        alpha = alphas[index % len(betas), index // len(betas) % self.teacher.num_classes]
        with seeded(self.rng):
            return torch.distributions.Dirichlet(alpha).sample().to(self.rng.device)

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Optimize and return a batch of Data Impressions."""
        config, teacher = self.config, self.teacher
        targets = self.draw_targets(config.batch_size)

        def objective(images: Tensor) -> Tensor:
            loss = soft_cross_entropy(teacher(images), targets, config.temperature)
            # a sum over the batch, so that an image's gradient does not depend on the batch size
            return loss * len(images)

        images = optimize_pixels(
            start_images(targets.argmax(1), teacher, config.start, config.shapes, self.rng),
            objective,
            spec=teacher.input_spec,
            steps=config.steps,
            lr=config.lr,
        )
        return answered(teacher, images)
