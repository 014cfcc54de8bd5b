"""Weigh drawn images, so that together they resemble what a teacher was trained on.

Source: ours. Of all weights of the images, wanted are those with which the classes are even and the
inputs of every BatchNorm layer have its running mean and variance, and which stay near equal
weights:

    minimize over weights w:   missing class entropy + BNS divergence + VARIETY * KL(w || equal)

The first two terms depend on w only through means of per-image moments m: class probabilities, and
the means and mean squares of each channel. So the best weights are exponential in the moments,
w ~ exp(-m . slopes), and slopes fitted on some images weigh all others.
"""

import torch
from torch import Tensor

from dreamstill.nn.hooks import shown_at_once, watched
from dreamstill.synthesis.batch_norm_statistics import norms_of
from dreamstill.teacher import Teacher

__all__ = ["answers_and_moments", "fit_slopes", "log_weights"]

VARIETY = 0.1
"""Weight of the divergence from equal weights: variety teaches more than the moments can tell."""
STEPS, LR = 300, 0.1


@torch.no_grad()
def answers_and_moments(teacher: Teacher, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the teacher's answers (N, K) and the moments (N, K + 2 F) of inputs (N, C, H, W).

    Dense answers are those for whole images, see `OutputSpec.whole`. F is the number of channels of
    all BatchNorm layers with running statistics, 0 without any.
    Moments are the probabilities of classes or labels, of values none, and then, of each channel's
    input standardized by the running statistics, the mean and the mean square.
    """
    norms = norms_of(teacher)
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str, given: Tensor, _: Tensor) -> None:
        layer = norms[name]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        flat = given.float().flatten(2) if given.dim() > 2 else given.float().unsqueeze(2)
        mean, square = flat.mean(2), flat.square().mean(2)
        running, variance = layer.running_mean, layer.running_var + layer.eps
        found[name] = (
            (mean - running) / variance.sqrt(),
            (square - 2 * mean * running + running**2) / variance,
        )

    logits, moments = [], []
    with watched(norms, look):
        for part in inputs.split(shown_at_once(teacher.input_spec.shape)):
            answer = teacher.output_spec.whole(teacher(part))
            columns = [
                teacher.output_spec.probabilities(answer),
                *(found[n][0] for n in norms),
                *(found[n][1] for n in norms),
            ]
            logits.append(answer)
            moments.append(torch.cat(columns, 1))
    return torch.cat(logits), torch.cat(moments)


def fit_slopes(teacher: Teacher, moments: Tensor) -> Tensor:
    """Return the slopes (K + 2 F,) of the best log weights of images with moments (N, K + 2 F)."""
    norms = norms_of(teacher).values()
    channels = [
        1 / (len(norms) * layer.num_features) for layer in norms for _ in range(layer.num_features)
    ]
    share = torch.tensor(channels, device=moments.device)
    sizes = [moments.shape[1] - 2 * len(share), len(share), len(share)]

    def distance(mixture: Tensor) -> Tensor:
        classes, mean, square = mixture.split(sizes)
        missing = teacher.output_spec.unevenness(classes)
        variance = (square - mean**2).clamp_min(1e-6)
        divergence = 0.5 * (variance.log() - 1 + (1 + mean**2) / variance)
        total: Tensor = missing + (share * divergence).sum()
        return total

    scores = torch.zeros(len(moments), device=moments.device, requires_grad=True)
    optimizer = torch.optim.Adam([scores], LR)
    with torch.enable_grad():
        for _ in range(STEPS):
            weights = scores.softmax(0)
            uneven = (weights * (weights * len(weights)).clamp_min(1e-20).log()).sum()
            loss = distance(weights @ moments) + VARIETY * uneven
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mixture = (scores.detach().softmax(0) @ moments).requires_grad_()
        (slopes,) = torch.autograd.grad(distance(mixture), mixture)
    return slopes / VARIETY


def log_weights(moments: Tensor, slopes: Tensor) -> Tensor:
    """Return the log weights (N,) of images with moments (N, K + 2 F), up to a constant."""
    return -moments @ slopes
