"""Pack a network: few weights, of few values, for a small file.

Source: Han, Mao and Dally, "Deep Compression", ICLR 2016. Where this differs: the re-training after
pruning and after sharing is distillation from the network itself on images that need not be real;
densities are chosen over all layers together by LAMP (Lee et al. 2021), not by hand. The file is
`packed`'s.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from dreamstill.compression.config import PackConfig
from dreamstill.distillation.finetune import finetune
from dreamstill.errors import TeacherError
from dreamstill.graph.modules import shared_weights
from dreamstill.nn.copying import copy_network
from dreamstill.progress import Progress
from dreamstill.teacher import Teacher

__all__ = ["PackConfig", "pack", "weights_of"]


class Mask(nn.Module):
    """Weights that were pruned stay zero."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its zeros."""
        masked: Tensor = weight * self.mask
        return masked


class Shared(nn.Module):
    """A weight whose entries are those of a codebook; the codebook is what is trained."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, codebook: Tensor) -> Tensor:
        """(entries,) with 0 first -> the weight."""
        fixed = torch.cat([codebook.new_zeros(1), codebook[1:]])
        weight: Tensor = fixed[self.codes]
        return weight


def weights_of(model: nn.Module) -> dict[str, _ConvNd | nn.Linear]:
    """Layers whose weights are pruned and shared, by name; weights of two layers stay whole."""
    tied = shared_weights(model)
    return {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, _ConvNd | nn.Linear) and (n not in tied or parametrize.is_parametrized(m))
    }


def lamp_masks(weights: dict[str, Tensor], density: float) -> dict[str, Tensor]:
    """Keep the largest LAMP scores over all layers: w^2 over the sum of squares not below it."""
    scores = {}
    for name, weight in weights.items():
        squares, order = weight.flatten().double().pow(2).sort()
        tails = squares.flip(0).cumsum(0).flip(0)
        score = torch.empty_like(squares)
        score[order] = squares / tails.clamp_min(1e-30)
        scores[name] = score.view(weight.shape)
    joined = torch.cat([score.flatten() for score in scores.values()])
    keep = max(len(scores), round(density * len(joined)))
    threshold = joined.topk(keep).values[-1]
    return {name: score >= threshold for name, score in scores.items()}


def codebook_of(values: Tensor, size: int, *, iterations: int = 50) -> tuple[Tensor, Tensor]:
    """k-means in one dimension from centroids spread evenly: section 3.2.

    Args:
        values: (n,).
        size: centroids; fewer where there are fewer distinct values.

    Returns:
        Sorted centroids (k,) and the index of each value's (n,).

    """
    size = min(size, len(values.unique()))
    centroids = torch.linspace(float(values.min()), float(values.max()), size, device=values.device)
    for _ in range(iterations):
        index = torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)
        counts = torch.bincount(index, minlength=size)
        sums = torch.zeros(size, device=values.device).index_add_(0, index, values)
        moved = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids, torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)


def pack(
    teacher: Teacher,
    images: Tensor,
    config: PackConfig,
    *,
    rng: torch.Generator,
    model: nn.Module | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> nn.Module:
    """A copy of a network with few, shared weights, ready for `save_packed`.

    Args:
        teacher: what the copy is fine-tuned towards.
        images: uint8 (N, C, H, W) to fine-tune on, synthetic or not.
        config: see PackConfig.
        rng: of the fine-tuning.
        model: what is packed; default: the teacher itself. Left as it was.
        on_progress: called after each step.

    Raises:
        DataError: fewer than 8 images.
        ConfigError: `finetune` asks for images to be synthesized, or for a distillation loss that
            finds nothing to compare in the two networks.
        NonFiniteError: a loss of the fine-tuning is not finite.
        TeacherError: no layer of weights of its own.

    """
    model = copy_network(teacher.module if model is None else model).requires_grad_(True)
    if not weights_of(model):
        raise TeacherError("there is no convolution or linear layer that can be packed")

    def tune(model: nn.Module) -> nn.Module:
        if config.finetune is None:
            return model
        return finetune(teacher, model, images, config.finetune, rng=rng, on_progress=on_progress)

    for step in range(1, config.rounds + 1):
        done = step / config.rounds
        density = config.keep + (1 - config.keep) * (1 - done) ** 3
        weights = {name: layer.weight.detach() for name, layer in weights_of(model).items()}
        masks = lamp_masks(weights, density)
        for name, layer in weights_of(model).items():
            if parametrize.is_parametrized(layer):
                parametrize.remove_parametrizations(layer, "weight")
            parametrize.register_parametrization(layer, "weight", Mask(masks[name]))
        model = tune(model)
    for layer in weights_of(model).values():
        parametrize.remove_parametrizations(layer, "weight")
        linear = isinstance(layer, nn.Linear)
        bits = config.linear_bits if linear else config.convolution_bits
        share(layer, bits)
    model = tune(model)
    return model.eval().requires_grad_(False)


def share(layer: _ConvNd | nn.Linear, bits: int) -> None:
    """Replace a layer's weight by a codebook of 2^bits entries, zero the first, in place."""
    weight = layer.weight
    codes = torch.zeros(weight.shape, dtype=torch.long, device=weight.device)
    kept = weight.detach() != 0
    codebook = torch.zeros(1, device=weight.device)
    if kept.any():
        centroids, index = codebook_of(weight.detach()[kept], 2**bits - 1)
        codes[kept] = index + 1
        codebook = torch.cat([codebook, centroids])
    layer.weight = nn.Parameter(codebook)
    parametrize.register_parametrization(layer, "weight", Shared(codes), unsafe=True)
