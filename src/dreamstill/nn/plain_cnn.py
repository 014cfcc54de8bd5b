"""Plain 8-layer CNN for 32-pixel images, without shortcuts.

Source: similar to the networks of cifar10-airbench (Jordan 2024), whose convolutions are wide and
few, and fast on processors with matrix units.
"""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PlainCNN", "plain_cnn", "plain_cnn_half", "small_plain_cnn", "small_plain_cnn_half"]


class Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, the first one followed by max pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H/2, W/2) for (N, inputs, H, W)."""
        x = F.relu(self.bn1(F.max_pool2d(self.conv1(x), 2)))
        return F.relu(self.bn2(self.conv2(x)))


class PlainCNN(nn.Module):
    """CNN of a stem, three blocks of two convolutions, global max pooling and a linear layer.

    Args:
        widths: channels of the stem and of the three blocks.
        channels: channels of the image.
        num_classes: number of logits.

    """

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (32, 64, 256, 256),
        *,
        channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*(Block(*widths[i : i + 2]) for i in range(3)))
        self.linear = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, C, H, W) of at least 8 pixels a side."""
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        logits: Tensor = self.linear(F.adaptive_max_pool2d(x, 1).flatten(1))
        return logits


def plain_cnn() -> PlainCNN:
    """Return the CNN with 1.98 M parameters."""
    return PlainCNN()


def small_plain_cnn() -> PlainCNN:
    """Return a CNN of one channel and five classes with 114,000 parameters."""
    return PlainCNN((16, 32, 48, 64), channels=1, num_classes=5)


def small_plain_cnn_half() -> PlainCNN:
    """Return the same CNN with half of every width."""
    return PlainCNN((8, 16, 24, 32), channels=1, num_classes=5)


def plain_cnn_half() -> PlainCNN:
    """Return the CNN with half of every width: 0.5 M parameters."""
    return PlainCNN((16, 32, 128, 128))
