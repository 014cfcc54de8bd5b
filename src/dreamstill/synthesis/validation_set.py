"""The images on which students are compared: one set for a teacher, whatever they learn from.

Source: ours. Drawn images that fit the teacher, balanced over its classes, are steered a few steps
toward its BatchNorm statistics and toward certainty. Without this, a student that knows nothing of
the teacher's data can agree on them as often as one that does. A quarter of them is then mixed with
another one each: on certain images alone nearly every network agrees.
"""

from dataclasses import dataclass
from statistics import mean
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamstill.data.batch import answered
from dreamstill.nn.hooks import probed_at_once, shown_at_once
from dreamstill.output_spec import OutputKind, decisions
from dreamstill.progress import OnProgress, Progress
from dreamstill.synthesis.batch_norm_statistics import batch_norm_divergence, measured_divergence
from dreamstill.synthesis.methods.image_programs import ImagePrograms, ImageProgramsConfig
from dreamstill.teacher import Teacher

__all__ = ["ValidationSet", "validation_set"]

SEED = 0x5E7
"""Seed of the images: another one than users take for training images."""
STEPS, LR, CERTAINTY = 5, 0.03, 0.3
"""Steps of steering, Adam's learning rate for pixels in [0, 1], and weight of the certainty."""
MIXED = 4
"""One image of so many is mixed."""
TOGETHER = 32
"""Fewest images to steer together: fewer tell little of statistics."""


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """Validation images, with the teacher's answers."""

    images: Tensor
    """uint8 (N, C, H, W), on the teacher's device."""
    logits: Tensor
    """Outputs of the teacher, (N, K) or (N, K, H, W)."""
    divergence: float | None = None
    """BNS divergence of the images before they were steered: how near drawn images come to the
    teacher's statistics. None without BatchNorm."""


_made: WeakKeyDictionary[Teacher, dict[int, ValidationSet]] = WeakKeyDictionary()


def validation_set(
    teacher: Teacher, num: int, on_progress: OnProgress = lambda progress: None
) -> ValidationSet:
    """Return the teacher's `num` validation images; they are made in the first call."""
    made = _made.setdefault(teacher, {})
    if num not in made:
        made[num] = _make(teacher, num, on_progress)
    return made[num]


def _make(teacher: Teacher, num: int, on_progress: OnProgress) -> ValidationSet:
    spec, rng = teacher.input_spec, torch.Generator(teacher.device).manual_seed(SEED)
    together = min(num, max(TOGETHER, probed_at_once(spec.shape)))
    method = ImagePrograms(teacher, ImageProgramsConfig(batch_size=together), rng=rng)
    parts: list[Tensor] = []
    divergences: list[float] = []
    while together * len(parts) < num:
        inputs = method.next_batch().images
        divergences += measured_divergence(teacher, inputs)
        parts.append(spec.decode(steered(teacher, inputs)))
        on_progress(Progress("validation images", min(num, together * len(parts)), num, {}))
    images = torch.cat(parts)[:num]
    if _can_be_steered(teacher):
        images[num - num // MIXED :] = _mixed(images, num // MIXED, rng)
    shown = images.split(shown_at_once(spec.shape))
    logits = [answered(teacher, spec.encode(part)).logits for part in shown]
    return ValidationSet(images, torch.cat(logits), mean(divergences) if divergences else None)


def _mixed(images: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """Return uint8 images (num, C, H, W), each a mixture of two in shares from 0 to 1."""
    device = rng.device
    one, other = (torch.randint(len(images), (num,), generator=rng, device=device) for _ in "ab")
    share = torch.rand(num, 1, 1, 1, generator=rng, device=device)
    return images[other].float().lerp(images[one].float(), share).round().to(torch.uint8)


def _can_be_steered(teacher: Teacher) -> bool:
    able = teacher.capabilities
    certain = teacher.output_kind is not OutputKind.VALUES
    return able.gradient and able.budget is None and (certain or bool(able.batch_norm))


def steered(teacher: Teacher, inputs: Tensor) -> Tensor:
    """Return inputs (N, C, H, W) a few steps nearer to the BatchNorm statistics and to certainty.

    Certainty is that of the class that the teacher gives an image at first, or of each decision;
    values have none. A teacher without gradients at its input, or with a budget, gets the inputs
    back, and so does one of values without BatchNorm.
    """
    if not _can_be_steered(teacher):
        return inputs
    able, kind, spec = teacher.capabilities, teacher.output_kind, teacher.input_spec
    pixels = spec.denormalize(inputs).clamp(0, 1).requires_grad_()
    optimizer = torch.optim.Adam([pixels], LR)
    certain = kind is not OutputKind.VALUES
    classes = decisions(answered(teacher, inputs).logits, kind).argmax(1) if certain else None
    with torch.enable_grad():
        for _ in range(STEPS):
            shown = spec.normalize(pixels)
            if able.batch_norm:
                loss, logits = batch_norm_divergence(teacher, shown)
            else:
                loss, logits = torch.zeros(()), teacher(shown)
            if classes is not None:
                loss = loss + CERTAINTY * F.cross_entropy(decisions(logits, kind), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            pixels.detach().clamp_(0, 1)
    return spec.normalize(pixels.detach())
