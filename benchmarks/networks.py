"""Networks that the library was not made for, and their halves: teachers of `any_teacher`.

Each function without `_half` returns a network to train, the other the same with half of every
width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.nn.plain_cnn import PlainCNN

__all__ = [
    "alexnet",
    "alexnet_half",
    "attributes_cnn",
    "attributes_cnn_half",
    "encoder_decoder",
    "encoder_decoder_half",
    "group_norm_cnn",
    "group_norm_cnn_half",
    "kegnet_resnet14",
    "kegnet_resnet14_half",
    "strided_cnn",
    "strided_cnn_half",
    "tiny_imagenet_cnn",
    "tiny_imagenet_cnn_half",
    "vit",
    "vit_half",
]


class KegBlock(nn.Module):
    """Residual block whose shortcut takes every second pixel and adds zero channels at the end."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.padding = (1, 0) if inputs == outputs else (2, outputs - inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H / stride, W / stride) for (N, inputs, H, W)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(out + x)


class KegResNet(nn.Module):
    """ResNet-14 of one channel, with the names that KegNet's authors gave its layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.layers1 = nn.Sequential(KegBlock(width, width), KegBlock(width, width))
        self.layers2 = nn.Sequential(KegBlock(width, 2 * width), KegBlock(2 * width, 2 * width))
        self.layers3 = nn.Sequential(KegBlock(2 * width, 4 * width), KegBlock(4 * width, 4 * width))
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) for images (N, 1, 32, 32)."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.layers3(self.layers2(self.layers1(x)))
        logits: Tensor = self.linear(F.avg_pool2d(x, 8).flatten(1))
        return logits


class AlexNet(nn.Module):
    """AlexNet in one tower, for 64 pixels: five convolutions, three linear layers, dropout."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        wide = 4 * width
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 3 * width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(3 * width, wide, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(wide, 3 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(3 * width * 4 * 4, 8 * width),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(8 * width, 8 * width),
            nn.ReLU(),
            nn.Linear(8 * width, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K) for images (N, 3, 64, 64)."""
        logits: Tensor = self.layers(x)
        return logits


class GroupNormCNN(nn.Module):
    """CNN of one channel with GroupNorm and SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
            self.layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            self.layers.append(nn.GroupNorm(4, outputs))
            self.layers.append(nn.SiLU())
            self.layers.append(nn.MaxPool2d(2))
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) for images (N, 1, H, W) of at least 8 pixels a side."""
        logits: Tensor = self.linear(self.layers(x).mean((2, 3)))
        return logits


class StridedCNN(nn.Module):
    """CNN of one channel with strides in place of pooling, and no normalization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(2 * width * 4 * 4, 4 * width)
        self.fc2 = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) for images (N, 1, 16, 16)."""
        x = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), 0.1)), 0.1)
        logits: Tensor = self.fc2(F.leaky_relu(self.fc1(x.flatten(1)), 0.1))
        return logits


class EncoderDecoder(nn.Module):
    """Classes of pixels: three levels of convolutions with BatchNorm, down and up again.

    Each level on the way up is shown what the level on the way down was; the logits of half of the
    resolution are enlarged.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = self._convs(3, width, stride=2)
        self.down1 = self._convs(width, 2 * width, stride=2)
        self.down2 = self._convs(2 * width, 4 * width, stride=2)
        self.up1 = self._convs(6 * width, 2 * width)
        self.up2 = self._convs(3 * width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    @staticmethod
    def _convs(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        layers = nn.Sequential()
        for given, step in ((inputs, stride), (outputs, 1)):
            layers.append(nn.Conv2d(given, outputs, 3, step, padding=1, bias=False))
            layers.extend([nn.BatchNorm2d(outputs), nn.ReLU()])
        return layers

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K, H, W) for images (N, 3, H, W), H and W multiples of 8."""
        fine = self.stem(x)
        middle = self.down1(fine)
        coarse = F.interpolate(self.down2(middle), scale_factor=2.0)
        middle = F.interpolate(self.up1(torch.cat([middle, coarse], 1)), scale_factor=2.0)
        logits = self.head(self.up2(torch.cat([fine, middle], 1)))
        return F.interpolate(logits, scale_factor=2.0, mode="bilinear")


class Attention(nn.Module):
    """Self-attention of `heads` heads of 16 values each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, width) for tokens (N, T, width)."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens: Tensor = self.out(mixed)
        return tokens


class Encoder(nn.Module):
    """Layer of a transformer: attention and two linear layers, each after LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, width) for tokens (N, T, width)."""
        x = x + self.attention(self.norm1(x))
        tokens: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return tokens


class ViT(nn.Module):
    """Vision transformer of one channel: patches of 4 pixels, four layers, mean of the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.layers = nn.Sequential(*(Encoder(width, heads) for _ in range(4)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) for images (N, 1, 28, 28)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.linear(self.norm(self.layers(tokens)).mean(1))
        return logits


def kegnet_resnet14() -> KegResNet:
    """Return the ResNet-14 whose weights KegNet's authors published: 0.17 M parameters."""
    return KegResNet(16)


def kegnet_resnet14_half() -> KegResNet:
    """Return the same with half of every width."""
    return KegResNet(8)


def group_norm_cnn() -> GroupNormCNN:
    """Return a CNN with GroupNorm: 24,000 parameters."""
    return GroupNormCNN(16)


def group_norm_cnn_half() -> GroupNormCNN:
    """Return the same with half of every width."""
    return GroupNormCNN(8)


def strided_cnn() -> StridedCNN:
    """Return a CNN without normalization: 38,000 parameters."""
    return StridedCNN(16)


def strided_cnn_half() -> StridedCNN:
    """Return the same with half of every width."""
    return StridedCNN(8)


def encoder_decoder() -> EncoderDecoder:
    """Return an encoder and decoder for the 11 classes of CamVid: 0.27 M parameters."""
    return EncoderDecoder(24, 11)


def encoder_decoder_half() -> EncoderDecoder:
    """Return the same with half of every width."""
    return EncoderDecoder(12, 11)


def alexnet() -> AlexNet:
    """Return AlexNet for two classes with three quarters of its widths: 2.0 M parameters."""
    return AlexNet(48, 2)


def alexnet_half() -> AlexNet:
    """Return the same with half of every width."""
    return AlexNet(24, 2)


def attributes_cnn() -> PlainCNN:
    """Return a CNN for the 40 attributes of CelebA: 0.6 M parameters."""
    return PlainCNN((32, 64, 128, 128), num_classes=40)


def attributes_cnn_half() -> PlainCNN:
    """Return the same with half of every width."""
    return PlainCNN((16, 32, 64, 64), num_classes=40)


def vit() -> ViT:
    """Return a vision transformer: 0.14 M parameters."""
    return ViT(64, 4)


def vit_half() -> ViT:
    """Return the same with half of its width and of its heads."""
    return ViT(32, 2)


def tiny_imagenet_cnn() -> PlainCNN:
    """Return a CNN for 20 classes of Tiny-ImageNet: 0.6 M parameters."""
    return PlainCNN((32, 64, 128, 128), num_classes=20)


def tiny_imagenet_cnn_half() -> PlainCNN:
    """Return the same with half of every width."""
    return PlainCNN((16, 32, 64, 64), num_classes=20)
