"""Images of a smoothed teacher: what they share with networks that are not brittle."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import toys
from dreamstill.synthesis.pixels import smoothed
from dreamstill.synthesis.zskd import Zskd, ZskdSettings
from dreamstill.teacher import InputSpec, open_teacher


class Brittle(nn.Module):
    """The brightest quadrant, and waves of every pixel that sway the classes and mean nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4 + 64, 4)
        with torch.no_grad():
            sway = 0.3 * torch.randn(4, 64, generator=rng())
            self.head.weight.copy_(torch.cat([5 * torch.eye(4), sway], 1))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.sin(12 * x.flatten(1))
        logits: Tensor = self.head(torch.cat([F.avg_pool2d(x, 4).flatten(1), waves], 1))
        return logits


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_noise_has_the_deviation_in_units_that_fit_any_range() -> None:
    for spec, scale in ((toys.SPEC, 1.0), (InputSpec.from_range((1, 8, 8), 0, 255), 255 / 4)):
        images = spec.normalize(torch.full((500, 1, 8, 8), 0.5))
        noise = smoothed(images, spec, 0.3, rng()) - images
        assert abs(noise.mean().item()) < 0.01 * scale
        assert noise.std().item() == pytest.approx(0.3 * scale, rel=0.02)
        assert smoothed(images, spec, 0.0, rng()) is images


def test_a_smoothed_teacher_draws_what_others_see() -> None:
    brittle, calm = open_teacher(Brittle(), toys.SPEC), toys.quadrant_teacher()
    seen = []
    for smooth in (0.0, 0.5):
        settings = ZskdSettings(batch_size=80, steps=100, lr=0.2, smooth=smooth)
        batch = Zskd(brittle, settings, rng=rng()).next_batch()
        agree = calm(batch.images).argmax(1) == batch.logits.argmax(1)
        seen.append(agree.float().mean().item())
    assert seen[1] > seen[0] + 0.2
