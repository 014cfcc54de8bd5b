"""Hinton's MLPs for MNIST: 784-1200-1200-10 and its smaller student (Hinton et al. 2015)."""

from torch import Tensor, nn

__all__ = ["HintonNet", "hinton_net", "hinton_net_small"]


class HintonNet(nn.Module):
    """Two hidden layers with ReLU.

    Args:
        hidden: neurons of each hidden layer.
        inputs: pixels of an image, all channels.
        num_classes: K.

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
        """(N, C, H, W) -> (N, num_classes) logits."""
        logits: Tensor = self.head(self.body(x))
        return logits


def hinton_net() -> HintonNet:
    """784-1200-1200-10: 2.4 M parameters."""
    return HintonNet(1200)


def hinton_net_small() -> HintonNet:
    """784-800-800-10: 1.3 M parameters."""
    return HintonNet(800)
