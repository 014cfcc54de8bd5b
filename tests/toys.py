"""Networks whose right answers are known by hand, and a factory for each."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.nets.seeded import seeded
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.teacher import InputSpec, Teacher, open_teacher

SPEC = InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.25,))
SIGNAL = InputSpec(shape=(1, 1, 64), mean=(0.5,), std=(0.25,))
"""Input space [-2, 2]."""


class Quadrants(nn.Module):
    """Four classes: which quadrant of the image is the brightest. Exact by construction."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        with torch.no_grad():
            self.head.weight.copy_(5 * torch.eye(4))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(
            x.mean(1, keepdim=True), (x.shape[2] // 2, x.shape[3] // 2)
        )
        logits: Tensor = self.head(means.flatten(1))
        return logits


class SmallCnn(nn.Module):
    """A convolution with BatchNorm, pooled, and a linear layer; any input size."""

    def __init__(self, channels: int = 1, num_classes: int = 4, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm(self.conv(x)))
        logits: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))
        return logits


class MobileNet(nn.Module):
    """Inverted residuals as MobileNetV2 has them, the last one within a sum; 16 pixels or more."""

    def __init__(self, clip: Callable[[], nn.Module] = nn.ReLU6) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, size: int = 1, groups: int = 1) -> list[nn.Module]:
            padding = size // 2
            conv = nn.Conv2d(inputs, outputs, size, padding=padding, groups=groups, bias=False)
            return [conv, nn.BatchNorm2d(outputs)]

        def block() -> nn.Sequential:
            expand, depthwise, project = layer(8, 24), layer(24, 24, 3, 24), layer(24, 8)
            return nn.Sequential(*expand, clip(), *depthwise, clip(), *project)

        self.stem = nn.Sequential(*layer(3, 8, 3), clip())
        self.block, self.residual = block(), block()
        self.top, self.head = nn.Sequential(*layer(8, 32), clip()), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x))
        x = self.top(x + self.residual(x))
        logits: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Sensor(nn.Module):
    """Two convolutions with BatchNorm of a signal, which is a picture of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv1d(1, 4, 5), nn.BatchNorm1d(4)
        self.second, self.norm2 = nn.Conv1d(4, 4, 5), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x.squeeze(2))).relu()
        logits: Tensor = self.head(self.norm2(self.second(x)).relu().mean(2))
        return logits


class Recurrent(nn.Module):
    """A GRU over eight parts of a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cells(x.reshape(-1, 8, 8))
        logits: Tensor = self.head(states[:, -1])
        return logits


def small_cnn() -> SmallCnn:
    with seeded(torch.Generator().manual_seed(3)):
        model = SmallCnn()
    model.norm.running_mean.copy_(torch.linspace(-0.5, 0.5, 6))  # type: ignore[union-attr]
    return balanced(model)


@torch.no_grad()
def balanced(model: SmallCnn) -> SmallCnn:
    """Every class is named by some images."""
    size = (256, model.conv.in_channels, 8, 8)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(4))
    model.head.bias.sub_(model.eval()(noise).mean(0))
    return model.train()


def student() -> SmallCnn:
    return SmallCnn(width=4)


def seeded_student() -> SmallCnn:
    with seeded(torch.Generator().manual_seed(5)):
        return SmallCnn(width=4)


def structured(**changes: Any) -> StructuredNoiseSettings:
    return StructuredNoiseSettings(**changes)


def quadrants() -> Quadrants:
    return Quadrants()


def cnn_teacher() -> Teacher:
    return open_teacher(small_cnn(), SPEC)


def quadrant_teacher() -> Teacher:
    return open_teacher(Quadrants(), SPEC)


def forgetful_student() -> nn.Sequential:
    """A student with dropout, which draws from torch's global generator."""
    return nn.Sequential(nn.Dropout(0.2), student())
