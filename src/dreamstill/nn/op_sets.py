"""Sets of operations, grouped by their effect on channels and values."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["POSITIVE"]

RELUS = (
    *(F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.prelu, F.elu),  # ReLU6 is a hardtanh
    *(torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
)


NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm")
POOLS = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "dropout")
"""Name prefixes; pools end with their number of dimensions, as in max_pool2d."""
SHAPES = ("flatten", "reshape", "view", "squeeze", "unsqueeze", "permute", "transpose")
RECTIFIERS = (
    *("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "_threshold", "threshold_"),
    *("clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_"),
)
"""Functions that are or can act as a ReLU."""

LARGEST: tuple[Any, ...] = (
    *(nn.MaxPool2d, nn.AdaptiveMaxPool2d),
    *(F.max_pool2d, F.adaptive_max_pool2d, torch.max_pool2d),
)
AVERAGE: tuple[Any, ...] = (
    *(nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    *(F.avg_pool2d, F.adaptive_avg_pool2d),
)
MEAN: tuple[Any, ...] = (torch.mean, "mean")
MOVES: tuple[Any, ...] = (
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten, nn.ZeroPad2d),
    *(nn.Upsample, nn.PixelShuffle, nn.ChannelShuffle),
    *(F.dropout, F.pad, F.interpolate),
    *(torch.flatten, torch.cat, torch.chunk, torch.split, torch.transpose),
    *(operator.getitem, getattr, "chunk", "split", "transpose", "permute", "contiguous"),
    *("flatten", "view", "reshape", "size", "dim", "squeeze", "unsqueeze"),
)
"""Operations that only move values."""
KNOWN = (*LARGEST, *AVERAGE, *MEAN, *MOVES)

RELU: tuple[Any, ...] = (nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
POSITIVE: tuple[Any, ...] = (
    *RELU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Dropout,
    nn.Identity,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.dropout,
)
"""Operations that commute with a positive factor on each channel."""
