"""Losses that keep a batch of synthetic images class-balanced."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["information_entropy", "sample_diversity"]


def information_entropy(logits: Tensor) -> Tensor:
    """Return the negative entropy of the batch's mean class probabilities, in nats.

    Chen et al. 2019 (DAFL), equation 4. The value is in [-log K, 0], with the minimum for a batch
    spread evenly over the K classes.

    Args:
        logits: the teacher's (N, K).

    """
    # the gradient of x log x is not finite at 0
    mean = F.softmax(logits, dim=1).mean(0).clamp_min(1e-30)
    entropy: Tensor = torch.special.xlogy(mean, mean).sum()
    return entropy


def sample_diversity(images: Tensor, probabilities: Tensor) -> Tensor:
    """Return the change of the teacher's outputs relative to that of the images in a batch.

    Han et al. 2021 (RDSKD): 1 / (||x2 - x1|| / ||p2 - p1||), with Frobenius norms between the two
    halves of the batch.

    Args:
        images: (N, C, H, W), N even.
        probabilities: the teacher's (N, K).

    """
    half = len(images) // 2
    change = (images[half : 2 * half] - images[:half]).norm()
    answer = (probabilities[half : 2 * half] - probabilities[:half]).norm()
    ratio: Tensor = answer / change.clamp_min(1e-12)
    return ratio
