"""Generators of images from a latent vector, for any (C, H, W)."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Generator"]


class Generator(nn.Module):
    """Linear, two upsamplings, three convolutions, BatchNorm.

    The generator of DAFL and of most methods after it. The papers' widths are (128, 64); its bill
    is nearly all in the convolutions, so size it to the teacher (LeNet-5: (32, 16)).

    Args:
        latent: length of the latent vector.
        shape: (C, H, W) of the images; H and W need not be multiples of 4.
        widths: channels before and after the second convolution.
        eps: of the inner BatchNorm layers; DAFL's code has 0.8.
        bounded: end with tanh and a BatchNorm without affine, as DAFL does; else with a BatchNorm
            that learns its range, as ZSKT does.

    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, int, int],
        widths: tuple[int, int] = (128, 64),
        *,
        eps: float = 1e-5,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        wide, narrow = widths
        self.sizes = [(-(-height // part), -(-width // part)) for part in (4, 2, 1)]
        self.wide = wide
        self.linear = nn.Linear(latent, wide * self.sizes[0][0] * self.sizes[0][1])
        self.norm = nn.BatchNorm2d(wide)
        self.middle = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide, eps=eps), nn.LeakyReLU(0.2)
        )
        self.last = nn.Sequential(
            nn.Conv2d(wide, narrow, 3, padding=1),
            nn.BatchNorm2d(narrow, eps=eps),
            nn.LeakyReLU(0.2),
            nn.Conv2d(narrow, channels, 3, padding=1),
            nn.Tanh() if bounded else nn.Identity(),
            nn.BatchNorm2d(channels, affine=not bounded),
        )

    def forward(self, z: Tensor) -> Tensor:
        """(N, latent) -> (N, C, H, W) of about zero mean and unit variance per channel."""
        x = self.linear(z).view(-1, self.wide, *self.sizes[0])
        x = F.interpolate(self.norm(x), size=self.sizes[1])
        x = F.interpolate(self.middle(x), size=self.sizes[2])
        images: Tensor = self.last(x)
        return images.contiguous()  # a network may `view` its input
