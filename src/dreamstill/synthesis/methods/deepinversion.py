"""DeepInversion: optimize pixels to match the teacher's BatchNorm statistics.

Source: Yin et al., "Dreaming to Distill", CVPR 2020, equations 2 to 4, and the authors' CIFAR-10
code. `competition` above 0 is Adaptive DeepInversion, equations 6 and 7, against the live student.

Differences from the authors' code:

- Pixels are clipped to the valid range at every step, and half of the steps flip the images.
- The best iterate is copied; theirs is an alias of the last.
- At low resolution the pooled images are enlarged again, for networks of fixed input size.
- The KL of the competition is from P and Q to their mean M, as in the paper.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.errors import ConfigError
from dreamstill.losses.logits import js_divergence
from dreamstill.losses.priors import l2_norm, total_variation
from dreamstill.losses.statistics import statistics_distance
from dreamstill.nn.hooks import eval_mode
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.batch_norm_statistics import Moments, batch_moments, norms_of
from dreamstill.synthesis.class_balance import Turns
from dreamstill.synthesis.config import DeepInversionConfig
from dreamstill.synthesis.pixel_optimization import halved, jittered, optimize_pixels, start_images
from dreamstill.teacher import Teacher

__all__ = ["DeepInversion", "DeepInversionConfig", "inversion_loss"]


def inversion_loss(
    images: Tensor,
    logits: Tensor,
    targets: Tensor,
    moments: Moments,
    norms: Mapping[str, Any],
    config: DeepInversionConfig,
) -> Tensor:
    """Return equation 2: cross-entropy, image priors and the distance of BatchNorm statistics.

    Args:
        images: (N, C, H, W), for the priors.
        logits: (N, K).
        targets: class indices (N,).
        moments: of the inputs of the BatchNorm layers.
        norms: BatchNorm layers by name.
        config: weights of the terms.

    """
    distance = images.new_zeros(())
    for index, (name, layer) in enumerate(norms.items()):
        weight = config.first_batch_norm if index == 0 else 1.0
        distance = distance + weight * statistics_distance(
            layer.running_mean, layer.running_var, *moments[name]
        )
    return (
        F.cross_entropy(logits, targets)
        + config.batch_norm * distance
        + config.total_variation * total_variation(images)
        + config.l2 * l2_norm(images)
    )


class DeepInversion(Method):
    """Method that optimizes each batch from noise, with classes in turn."""

    config: DeepInversionConfig
    needs = ("classes", "gradient", "batch_norm")
    state = ("turns",)

    def __init__(
        self, teacher: Teacher, config: DeepInversionConfig, *, rng: torch.Generator
    ) -> None:
        super().__init__(teacher, config, rng=rng)
        self.norms = norms_of(teacher)
        self.turns = Turns(teacher.num_classes, rng.device)

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Optimize a batch, and return the iterate with the lowest loss."""
        config, teacher = self.config, self.teacher
        if config.competition and student is None:
            raise ConfigError("deepinversion competes with a student: hand one to next_batch")
        targets = self.turns.take(config.batch_size)

        def objective(images: Tensor, *, low_resolution: bool) -> Tensor:
            jitter = config.jitter // 2 if low_resolution else config.jitter
            images = halved(images) if low_resolution else images
            images = jittered(images, jitter, flip=config.flip, rng=self.rng)
            shown = (
                F.interpolate(images, teacher.input_spec.shape[1:]) if low_resolution else images
            )
            with batch_moments(self.norms) as moments:
                logits = teacher(shown)
            loss = inversion_loss(images, logits, targets, moments, self.norms, config)
            if student is not None and config.competition:
                with eval_mode(student):
                    rival = teacher.run(student, shown)
                loss = loss + config.competition * (1 - js_divergence(rival, logits, 3.0))
            return loss

        images = start_images(targets, teacher, config.start, config.shapes, self.rng)
        low = config.low_resolution_steps
        stages = ((True, low), (False, config.steps - low))
        for low_resolution, steps in (stage for stage in stages if stage[1]):
            images = optimize_pixels(
                images,
                partial(objective, low_resolution=low_resolution),
                spec=teacher.input_spec,
                steps=steps,
                lr=config.lr,
                warm_up=config.lr_warm_up,
                cosine=config.cosine,
                betas=config.betas,
                best=not low_resolution,
            )
        return answered(teacher, images)
