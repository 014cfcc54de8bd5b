"""Losses that keep a batch of synthetic images class-balanced."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["information_entropy", "sample_diversity"]


def information_entropy(logits: Tensor) -> Tensor:
    """Negative entropy of the batch's mean class probability, in nats.

    Chen et al. 2019 (DAFL), equation 4. In [-log K, 0]; the minimum is a batch that the teacher
    spreads evenly over the K classes.

    Args:
        logits: (N, K).

    """
    # above 0, where the gradient of x log x is no number
    mean = F.softmax(logits, dim=1).mean(0).clamp_min(1e-30)
    entropy: Tensor = torch.special.xlogy(mean, mean).sum()
    return entropy


def sample_diversity(images: Tensor, probabilities: Tensor) -> Tensor:
    """How little the images of a batch differ for how much the teacher's answers do.

    Han et al. 2021 (RDSKD): 1 / (||x2 - x1|| / ||p2 - p1||), Frobenius norms between the two halves
    of the batch.

    Args:
        images: (N, C, H, W), N even.
        probabilities: the teacher's (N, K).

    """
    half = len(images) // 2
    change = (images[half : 2 * half] - images[:half]).norm()
    answer = (probabilities[half : 2 * half] - probabilities[:half]).norm()
    ratio: Tensor = answer / change.clamp_min(1e-12)
    return ratio
