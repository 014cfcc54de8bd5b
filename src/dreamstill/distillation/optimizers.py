"""The student's optimizer and its learning-rate schedule."""

from collections.abc import Iterable

import torch
from torch import nn

from dreamstill.distillation.config import DistillSettings, Optimizer


def optimizer_of(
    parameters: Iterable[nn.Parameter], settings: DistillSettings
) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum."""
    lr, decay = settings.lr, settings.weight_decay
    if settings.optimizer is Optimizer.ADAM:
        return torch.optim.Adam(parameters, lr, weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, lr, settings.momentum, weight_decay=decay, fused=True)


def schedule_of(
    optimizer: torch.optim.Optimizer, settings: DistillSettings
) -> torch.optim.lr_scheduler.LRScheduler:
    """Of the learning rate: steps down, a cosine to 0, or none."""
    if settings.drops:
        milestones = [round(share * settings.steps) for share in settings.drops]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    if settings.anneal:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
