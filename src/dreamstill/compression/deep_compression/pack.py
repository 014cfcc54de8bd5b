"""Pack a network into a small file: prune its weights and share the remaining ones.

Source: Han, Mao and Dally, "Deep Compression", ICLR 2016. Differences: fine-tuning after pruning
and sharing is distillation from the teacher on synthetic or real images; LAMP (Lee et al. 2021)
chooses the densities of all layers together. `file_format` writes the file.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from dreamstill.compression.config import PackConfig
from dreamstill.distillation.finetune import finetune
from dreamstill.errors import TeacherError
from dreamstill.graph.modules import shared_weights
from dreamstill.nn.copying import copy_network
from dreamstill.progress import OnProgress, under
from dreamstill.teacher import Teacher

__all__ = ["PackConfig", "pack", "weights_of"]


class Mask(nn.Module):
    """Parametrization that keeps pruned weights at zero."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked weight."""
        masked: Tensor = weight * self.mask
        return masked


class Shared(nn.Module):
    """Parametrization of a weight by indices into a trainable codebook."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, codebook: Tensor) -> Tensor:
        """Return the weight for a codebook (entries,), whose first entry counts as 0."""
        fixed = torch.cat([codebook.new_zeros(1), codebook[1:]])
        weight: Tensor = fixed[self.codes]
        return weight


def weights_of(model: nn.Module) -> dict[str, _ConvNd | nn.Linear]:
    """Return the layers to pack by name, without those that tie their weight to another's."""
    tied = shared_weights(model)
    return {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, _ConvNd | nn.Linear) and (n not in tied or parametrize.is_parametrized(m))
    }


def lamp_masks(weights: dict[str, Tensor], density: float) -> dict[str, Tensor]:
    """Return masks of the weights with the largest LAMP scores over all layers.

    The score is w^2 divided by the sum of all squares in the layer that are at least w^2.
    """
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
    """Cluster values by one-dimensional k-means from evenly spaced centroids: section 3.2.

    Args:
        values: (n,).
        size: number of centroids; reduced to the number of distinct values.

    Returns:
        Sorted centroids (k,) and the centroid index of each value (n,).

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
    on_progress: OnProgress = lambda progress: None,
) -> nn.Module:
    """Return a copy of a network with pruned and shared weights, ready for `save_packed`.

    Args:
        teacher: target of the fine-tuning.
        images: uint8 (N, C, H, W) to fine-tune on, synthetic or real.
        config: see PackConfig.
        rng: generator for the fine-tuning.
        model: network to pack, not modified; default: the teacher.
        on_progress: called after each step.

    Raises:
        DataError: fewer than 8 images.
        ConfigError: `finetune` asks for image synthesis, or for a distillation loss that does not
            apply to the two networks.
        NonFiniteError: a loss of the fine-tuning is not finite.
        TeacherError: no layer can be packed.

    """
    model = copy_network(teacher.module if model is None else model).requires_grad_(True)
    if not weights_of(model):
        raise TeacherError("there is no convolution or linear layer that can be packed")

    def tune(model: nn.Module, title: str) -> nn.Module:
        if config.finetune is None:
            return model
        told = under(title, on_progress)
        return finetune(teacher, model, images, config.finetune, rng=rng, on_progress=told)

    for step in range(1, config.rounds + 1):
        done = step / config.rounds
        density = config.keep + (1 - config.keep) * (1 - done) ** 3
        weights = {name: layer.weight.detach() for name, layer in weights_of(model).items()}
        masks = lamp_masks(weights, density)
        for name, layer in weights_of(model).items():
            if parametrize.is_parametrized(layer):
                parametrize.remove_parametrizations(layer, "weight")
            parametrize.register_parametrization(layer, "weight", Mask(masks[name]))
        model = tune(model, f"round {step} of {config.rounds}")
    for layer in weights_of(model).values():
        parametrize.remove_parametrizations(layer, "weight")
        linear = isinstance(layer, nn.Linear)
        bits = config.linear_bits if linear else config.convolution_bits
        share(layer, bits)
    model = tune(model, "shared weights")
    return model.eval().requires_grad_(False)


def share(layer: _ConvNd | nn.Linear, bits: int) -> None:
    """Replace a layer's weight in place by a codebook of 2^bits entries, the first of them 0."""
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
