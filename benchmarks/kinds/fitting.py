"""Train a network on real images, where a benchmark's network is none of the teachers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.input_spec import InputSpec

__all__ = ["fit"]


def fit(
    model: nn.Module,
    spec: InputSpec,
    x: Tensor,
    y: Tensor,
    steps: int,
    rng: torch.Generator,
    *,
    batch_size: int = 64,
    weight_decay: float = 0.0,
) -> None:
    """Train `model` in place on uint8 images and labels: Adam at 1e-3, brought to 0 by a cosine."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(len(x), (batch_size,), generator=rng)
        optimizer.zero_grad()
        F.cross_entropy(model(spec.encode(x[index])), y[index]).backward()
        optimizer.step()
        schedule.step()
