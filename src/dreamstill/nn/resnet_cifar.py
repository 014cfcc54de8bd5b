"""ResNets for 32-pixel images: He et al. 2016, section 4.2, with shortcuts of option A."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResNetCifar", "resnet20", "resnet20_half", "resnet56", "resnet56_half"]


class Shortcut(nn.Module):
    """Option A shortcut: every second pixel, padded with `padding` zero channels on both sides."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C + 2 padding, H/2, W/2) for (N, C, H, W)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions with BatchNorm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else Shortcut((outputs - inputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H / stride, W / stride) for (N, inputs, H, W)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNetCifar(nn.Module):
    """ResNet of 6n + 2 layers in three groups of n blocks.

    Args:
        depth: number of layers 6n + 2: 20, 32, 56, ...
        width: channels of the first group; the others have twice and four times as many.
        num_classes: number of logits.

    """

    def __init__(self, depth: int, *, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._group(width, width, blocks, 1)
        self.layer2 = self._group(width, 2 * width, blocks, 2)
        self.layer3 = self._group(2 * width, 4 * width, blocks, 2)
        self.linear = nn.Linear(4 * width, num_classes)

    @staticmethod
    def _group(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, 3, H, W)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits


def resnet20() -> ResNetCifar:
    """Return ResNet-20: 0.27 M parameters, 41 M multiply-accumulates."""
    return ResNetCifar(20)


def resnet56() -> ResNetCifar:
    """Return ResNet-56: 0.85 M parameters, 126 M multiply-accumulates."""
    return ResNetCifar(56)


def resnet20_half() -> ResNetCifar:
    """Return ResNet-20 with half of every width: 0.07 M parameters."""
    return ResNetCifar(20, width=8)


def resnet56_half() -> ResNetCifar:
    """Return ResNet-56 with half of every width: 0.21 M parameters."""
    return ResNetCifar(56, width=8)
