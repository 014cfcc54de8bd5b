"""Hinton's MLPs for MNIST: 784-1200-1200-10 and its smaller student (Hinton et al. 2015)."""

from torch import Tensor, nn

__all__ = ["HintonNet", "hinton_net", "hinton_net_small"]


class HintonNet(nn.Module):
    """Multilayer perceptron with two hidden layers and ReLU.

    Args:
        hidden: neurons per hidden layer.
        inputs: values per image, C * H * W.
        num_classes: number of logits.

    """

    def __init__(self, hidden: int, *, inputs: int = 784, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, C, H, W)."""
        logits: Tensor = self.head(self.body(x))
        return logits


def hinton_net() -> HintonNet:
    """Return the MLP 784-1200-1200-10: 2.4 M parameters."""
    return HintonNet(1200)


def hinton_net_small() -> HintonNet:
    """Return the MLP 784-800-800-10: 1.3 M parameters."""
    return HintonNet(800)
