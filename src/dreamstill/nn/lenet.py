"""LeNet-5 with the layer sizes of DAFL (Chen et al., ICCV 2019) and ZSKD, for 28 x 28 images."""

from torch import Tensor, nn

__all__ = ["LeNet5", "lenet5", "lenet5_bn", "lenet5_half", "lenet5_half_bn"]


class LeNet5(nn.Module):
    """LeNet-5: three 5x5 convolutions and two linear layers.

    Args:
        widths: output channels of the three convolutions and size of the hidden linear layer.
        in_channels: channels of the input (N, in_channels, 28, 28).
        num_classes: number of logits.
        batch_norm: add a BatchNorm2d after every convolution, as DeepInversion needs.

    """

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (6, 16, 120, 84),
        *,
        in_channels: int = 1,
        num_classes: int = 10,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        first, second, third, hidden = widths

        def block(inputs: int, outputs: int, padding: int = 0) -> list[nn.Module]:
            norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
            return [nn.Conv2d(inputs, outputs, 5, padding=padding), *norm, nn.ReLU()]

        self.features = nn.Sequential(
            *block(in_channels, first, padding=2),
            nn.MaxPool2d(2),
            *block(first, second),
            nn.MaxPool2d(2),
            *block(second, third),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(third, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, C, 28, 28)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def lenet5() -> LeNet5:
    """Return LeNet-5: 61,706 parameters, 416,520 multiply-accumulates."""
    return LeNet5()


def lenet5_half() -> LeNet5:
    """Return LeNet-5 with half of every width: 15,738 parameters."""
    return LeNet5((3, 8, 60, 42))


def lenet5_bn() -> LeNet5:
    """Return LeNet-5 with a BatchNorm2d after every convolution."""
    return LeNet5(batch_norm=True)


def lenet5_half_bn() -> LeNet5:
    """Return LeNet-5-Half with a BatchNorm2d after every convolution."""
    return LeNet5((3, 8, 60, 42), batch_norm=True)
