"""The student's optimizer and its learning-rate schedule."""

from collections.abc import Iterable

import torch
from torch import nn

from dreamstill.distillation.config import FinetuneConfig, Optimizer


def optimizer_of(
    parameters: Iterable[nn.Parameter], config: FinetuneConfig
) -> torch.optim.Optimizer:
    """Return Adam, or SGD with momentum."""
    lr, decay = config.lr, config.weight_decay
    if config.optimizer is Optimizer.ADAM:
        return torch.optim.Adam(parameters, lr, weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, lr, config.momentum, weight_decay=decay, fused=True)


def schedule_of(
    optimizer: torch.optim.Optimizer, config: FinetuneConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of the learning rate: steps down, a cosine to 0, or none."""
    if config.drops:
        milestones = [round(share * config.steps) for share in config.drops]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    if config.anneal:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
