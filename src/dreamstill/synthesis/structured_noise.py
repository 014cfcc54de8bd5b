"""Structured noise: smooth random shapes, no optimization, kept class-balanced by the teacher.

Source: ours. In the spirit of dead-leaves images (Lee, Mumford & Huang 2001; Baradad et al. 2021,
"Learning to see by looking at noise"): a smooth random figure or texture, seen through a soft
random mask of strokes or blobs. Of a large draw as many images as possible are
kept alike for every class the teacher names. It is a strong floor and a good start for any method.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.errors import SettingsError
from dreamstill.synthesis.balance import ClassMemory, balanced, rank_in_class
from dreamstill.synthesis.contract import Batch
from dreamstill.teacher import InputSpec, Teacher

__all__ = ["StructuredNoise", "StructuredNoiseSettings", "structured_images"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredNoiseSettings:
    """Settings of structured noise; the defaults serve images of 28 to 64 pixels."""

    batch_size: int = 256
    """Images a batch; at least 1."""
    oversample: int = 2
    """Images drawn for each one kept, to balance the classes; at least 1."""
    memory: int = 5000
    """Images remembered, evenly over the classes, to fill up classes rare in a draw; at least 1."""
    mine: bool = False
    """Of a draw prefer what the live student gets most wrong, by KL: adversarial without a step."""
    cells: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Grid cells along the longer side of each random field, coarse to fine; at least 2 each."""
    shape_cells: tuple[int, ...] = (3, 5, 8)
    """Grid cells along the longer side of the fields whose level lines are shapes; as `cells`."""
    stroke_share: float = 0.9
    """Share of masks that are strokes (along a level line); the rest are blobs. 0 to 1."""
    texture_share: float = 0.3
    """Share of images that are one rough texture behind the mask; the rest are a smooth figure on
    a smooth ground. 0 to 1."""
    channel_correlation: float = 0.7
    """Correlation of the color channels. 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "oversample", "memory"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("stroke_share", "texture_share", "channel_correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} must be in [0, 1]; got {getattr(self, name)}")
        for name in ("cells", "shape_cells"):
            cells = getattr(self, name)
            if not cells or min(cells) < 2:
                raise SettingsError(f"{name} must be numbers of at least 2; got {cells}")


def interpolation(cells: int, size: int) -> Tensor:
    """(size, cells) matrix of Gaussian interpolation weights, rows of unit l2 norm.

    Unit rows keep a white grid's variance 1 at every pixel.
    """
    pixels = (torch.arange(size) + 0.5) / size * cells
    weights = torch.exp(-((pixels[:, None] - torch.arange(cells) - 0.5) ** 2))
    weights[weights < 1e-6] = 0  # the far tails are denormal numbers, which cost 6x the time
    unit: Tensor = weights / weights.norm(dim=1, keepdim=True)
    return unit


def random_fields(
    num: int, height: int, width: int, cells: tuple[int, ...], rng: torch.Generator
) -> Tensor:
    """Smooth Gaussian fields (num, height, width) of unit variance, scales weighted at random."""
    weights = torch.rand(num, len(cells), generator=rng, device=rng.device) ** 3 + 1e-3
    weights = weights / weights.norm(dim=1, keepdim=True)
    longer = max(height, width)
    total = torch.zeros(num, width, height, device=rng.device)
    for index, count in enumerate(cells):
        rows, columns = (max(2, round(count * side / longer)) for side in (height, width))
        grid = torch.randn(num, rows, columns, generator=rng, device=rng.device)
        grid *= weights[:, index, None, None]
        across = grid @ interpolation(columns, width).to(rng.device).T
        total += across.transpose(1, 2) @ interpolation(rows, height).to(rng.device).T
    return total.transpose(1, 2)


def structured_images(
    num: int, spec: InputSpec, settings: StructuredNoiseSettings, rng: torch.Generator
) -> Tensor:
    """Draw (num, C, H, W) pixels in [0, 1] on the rng's device.

    A figure shown through a mask over a dark ground; the brighter the spec's mean pixel, the more
    images are inverted.
    """
    channels, height, width = spec.shape
    rho = settings.channel_correlation

    def uniform(low: float = 0.0, high: float = 1.0, channels: int = 1) -> Tensor:
        size = (num, channels, 1, 1)
        return low + (high - low) * torch.rand(size, generator=rng, device=rng.device)

    def field(cells: tuple[int, ...]) -> Tensor:
        return random_fields(num, height, width, cells, rng)[:, None]

    def shade(low: float, high: float) -> Tensor:
        """A brightness for each image; channels differ the more, the less they correlate."""
        tint = uniform(-0.5, 0.5, channels) * (1 - rho) * (channels > 1)
        return uniform(low, high) + tint

    texture = field(settings.cells)
    if channels > 1:
        own = random_fields(num * channels, height, width, settings.cells, rng)
        texture = rho**0.5 * texture + (1 - rho) ** 0.5 * own.view(num, channels, height, width)

    level = field(settings.shape_cells) - uniform(-1, 1)
    # over its slope a field is the distance, in pixels, to its level line: strokes of even width
    slope = torch.hypot(*torch.gradient(level, dim=(2, 3))).clamp_min(0.02)
    half_width = uniform(0.018, 0.08) * max(height, width)
    stroke = torch.sigmoid(uniform(1, 4) * (half_width - level.abs() / slope))
    window = torch.sigmoid(2 * 20 ** uniform() * (field(settings.cells[:2]) - uniform(-1, 0.7)))
    stroke = torch.where(uniform() < 0.3, stroke, stroke * window)
    blob = torch.sigmoid(2 * 20 ** uniform() * level)
    mask = torch.where(uniform() < settings.stroke_share, stroke, blob)
    # the flipped texture is as good as a second one, and free
    ground = shade(-1.0, 0.3) + uniform() ** 2 * 0.5 * texture.flip(2)
    figure = shade(0.3, 1.3) + uniform() ** 2 * 0.5 * texture
    smooth = ground + mask * (figure - ground)
    rough = mask * (shade(-1.0, 1.0) + uniform(0.2, 2.2) * texture)
    images = torch.where(uniform() < settings.texture_share, rough, smooth).clamp(0, 1)
    brightness = sum(spec.mean) / len(spec.mean)
    inverted = brightness**2 * (3 - 2 * brightness)  # a mean pixel of 0.13 means hardly any
    return torch.where(uniform() < inverted, 1 - images, images)


def hardest_first(batch: Batch, student: nn.Module) -> Batch:
    """Order a batch by KL(teacher || student), the largest first."""
    was_training = student.training
    student.eval()
    try:
        log_student = F.log_softmax(student(batch.images), dim=1)
    finally:
        student.train(was_training)
    log_teacher = F.log_softmax(batch.logits, dim=1)
    kl = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
    order = kl.argsort(descending=True, stable=True)
    return Batch(batch.images[order], batch.logits[order])


class StructuredNoise:
    """Fresh class-balanced structured noise for ever."""

    streams: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, teacher: Teacher, settings: StructuredNoiseSettings, *, rng: torch.Generator
    ) -> None:
        self.teacher, self.settings, self.rng = teacher, settings, rng

        self.memory = ClassMemory(
            settings.memory, teacher.num_classes, teacher.spec.shape, rng.device
        )

    @torch.no_grad()
    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """(batch_size, C, H, W) images of even classes, as far as every class was ever seen."""
        settings, teacher = self.settings, self.teacher
        num = settings.batch_size * settings.oversample
        images = teacher.spec.normalize(structured_images(num, teacher.spec, settings, self.rng))
        drawn = Batch(images, teacher(images))
        if settings.mine and student is not None:
            drawn = hardest_first(drawn, student)
        share = -(-settings.batch_size // teacher.num_classes)
        rank = rank_in_class(drawn.logits.argmax(1), teacher.num_classes)
        fresh = Batch(drawn.images[rank < share], drawn.logits[rank < share])
        self.memory.remember(fresh)
        # fresh images come first, then remembered ones, then what the draw has beyond its share
        parts = (fresh, self.memory.draw(share, self.rng), drawn)
        images, logits = (torch.cat([getattr(p, k) for p in parts]) for k in ("images", "logits"))
        kept = balanced(logits.argmax(1), settings.batch_size, teacher.num_classes)
        return Batch(images[kept], logits[kept])

    def state_dict(self) -> dict[str, Any]:
        """The memory; what is drawn is drawn afresh."""
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the memory."""
        self.memory.load_state_dict(state["memory"])
