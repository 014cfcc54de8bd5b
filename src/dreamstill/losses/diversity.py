"""Losses that keep a batch of synthetic images class-balanced."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["information_entropy"]


def information_entropy(logits: Tensor) -> Tensor:
    """Negative entropy of the batch's mean class probability, in units of log10.

    Chen et al. 2019 (DAFL), equation 4; the authors' code uses log10. In [-log10 K, 0]; the
    minimum is a batch that the teacher spreads evenly over the K classes.

    Args:
        logits: (N, K).

    """
    mean = F.softmax(logits, dim=1).mean(0)
    entropy: Tensor = torch.special.xlogy(mean, mean).sum() / torch.log(mean.new_tensor(10.0))
    return entropy
