"""Generators of images from a latent vector, for any (C, H, W)."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Generator"]


class Generator(nn.Module):
    """Generator of DAFL: a linear layer, two upsamplings, three convolutions with BatchNorm.

    The papers' widths are (128, 64). The convolutions take most of the time, so choose widths that
    suit the teacher, such as (32, 16) for LeNet-5.

    Args:
        latent: length of the latent vector.
        shape: (C, H, W) of the images; H and W need not be multiples of 4.
        widths: channels before and after the second convolution.
        eps: epsilon of the inner BatchNorm layers; DAFL's code uses 0.8.
        bounded: end with tanh and a BatchNorm without affine parameters, as DAFL does; otherwise
            with an affine BatchNorm and no tanh, as ZSKT does.

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
        """Return images (N, C, H, W) of about zero mean and unit variance for z (N, latent)."""
        x = self.linear(z).view(-1, self.wide, *self.sizes[0])
        x = F.interpolate(self.norm(x), size=self.sizes[1])
        x = F.interpolate(self.middle(x), size=self.sizes[2])
        images: Tensor = self.last(x)
        return images.contiguous()  # the network may call `view` on its input
