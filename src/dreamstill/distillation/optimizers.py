"""The student's optimizer and its learning-rate schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from dreamstill.distillation.config import FinetuneConfig, Optimizer


def optimizer_of(
    parameters: Iterable[nn.Parameter], config: FinetuneConfig
) -> torch.optim.Optimizer:
    """Return Adam, or SGD with momentum."""
    lr, decay = config.lr, config.weight_decay
    if config.optimizer is Optimizer.ADAM:
        return torch.optim.Adam(parameters, lr, weight_decay=decay, fused=True)
    # not fused: torch's fails on parameters whose first gradient comes after that of others
    return torch.optim.SGD(parameters, lr, config.momentum, weight_decay=decay)


def schedule_of(optimizer: torch.optim.Optimizer, config: FinetuneConfig) -> LambdaLR:
    """Return the schedule of the learning rate: warm-up, then steps, a cosine to 0, or none."""
    warm_up = config.warm_up * config.steps
    falls = [round(share * config.steps) for share in config.drops]

    def factor(step: int) -> float:
        if step < warm_up:
            return min(1.0, (step + 1) / warm_up)
        if falls or not config.anneal:
            return 0.1 ** sum(step >= fall for fall in falls)
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1.0, config.steps - warm_up))

    return LambdaLR(optimizer, factor)
