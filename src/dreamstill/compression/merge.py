"""Merge similar neurons and filters: a smaller network from its weights alone.

Sources: Srinivas and Babu, "Data-free Parameter Pruning for Deep Neural Networks", BMVC 2015, for
linear layers; Kim et al., "Neuron Merging: Compensating for Pruned Neurons", NeurIPS 2020, for
convolutions, where the filters of the smallest l1 norm are merged into the most similar remaining
filter, scaled by their norms, or dropped. Differences: norms include folded BatchNorm;
`turning_point` chooses the cut-off of the saliency curve; if images are given, `reconstruct` then
fits the layers to their original outputs.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.compression.config import MergeConfig
from dreamstill.distillation.layer_reconstruction import reconstruct
from dreamstill.errors import ConfigError, TeacherError
from dreamstill.graph.batch_norm_folding import batch_norms, fold_batch_norm
from dreamstill.graph.layer_pairs import Pair, pairs
from dreamstill.graph.modules import replace_module
from dreamstill.graph.tracing import trace, written_size
from dreamstill.input_spec import InputSpec
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import some_of

__all__ = [
    "LayerRecord",
    "MergeConfig",
    "check_mergeable",
    "filter_partners",
    "merge",
    "merge_order",
]


@dataclass(frozen=True)
class LayerRecord:
    """Widths of a layer before and after merging."""

    layer: str
    before: int
    after: int
    saliency: tuple[float, ...]
    """Saliency of each removal in order, for linear layers; empty for convolutions."""


def merge_order(
    weight: Tensor, bias: Tensor, outgoing: Tensor
) -> tuple[list[tuple[int, int]], list[float]]:
    """Return the order in which neurons are removed: Srinivas and Babu, eq. 8 and algorithm 1.

    Args:
        weight, bias: the layer's parameters (n, d) and (n,).
        outgoing: the next layer's weights (m, n).

    Returns:
        n - 1 pairs (kept i, removed j) and their saliencies mean(a_j^2) * ||w_i - w_j||^2, where
        a_j is column j of `outgoing`; every step replaces a_i by a_i + a_j.

    """
    augmented = torch.cat([weight, bias[:, None]], 1).double()
    distance = torch.cdist(augmented, augmented, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    distance.fill_diagonal_(torch.inf)
    outgoing = outgoing.double().clone()
    nearest, partner = distance.min(0)
    strength = outgoing.pow(2).mean(0)
    alive = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    order, saliencies = [], []
    for _ in range(len(weight) - 1):
        saliency = torch.where(alive, strength * nearest, torch.inf)
        removed = int(saliency.argmin())
        kept = int(partner[removed])
        order.append((kept, removed))
        saliencies.append(float(saliency[removed]))
        alive[removed] = False
        outgoing[:, kept] += outgoing[:, removed]
        strength[kept] = outgoing[:, kept].pow(2).mean()
        distance[removed] = torch.inf
        orphans = (alive & (partner == removed)).nonzero().flatten()
        if len(orphans):
            nearest[orphans], partner[orphans] = distance[:, orphans].min(0)
    return order, saliencies


def turning_point(saliencies: list[float]) -> int:
    """Return the number of neurons to remove before the saliency curve rises.

    The cut-off, which is not the paper's, is 1.1 times the median of the first half of the curve;
    later saliencies grow because the remaining neurons have absorbed others.

    >>> turning_point([0.1, 0.1, 0.1, 0.1, 0.2, 0.5, 2.0, 9.0])
    4
    """
    first = sorted(saliencies[: (len(saliencies) + 1) // 2])
    cutoff = first[len(first) // 2] if first else 0.0
    return sum(saliency <= 1.1 * cutoff + 1e-12 for saliency in saliencies)


def filter_partners(
    weight: Tensor, bias: Tensor, remove: int, config: MergeConfig, *, batch_norm: bool
) -> list[tuple[int, int, float]]:
    """Match each removed filter with a remaining one: Kim et al., algorithm 3.

    Args:
        weight, bias: parameters of a convolution (n, ...) and (n,), with BatchNorm folded in.
        remove: number of filters to remove, in [0, n).
        config: `threshold` and `cosine_share` are used.
        batch_norm: whether the layer had BatchNorm. If so, the cosine is of the weights alone and
            biases are compared separately; otherwise the bias counts as one more weight.

    Returns:
        Triples (kept i, removed j, factor): a_i becomes a_i + factor * a_j. The factor is 0 where
        the cosine similarity of i and j is below the threshold.

    """
    rows = weight.flatten(1).double()
    order = rows.abs().sum(1).argsort()
    gone, kept = order[:remove], order[remove:].sort().values
    bias = bias.double()
    if not batch_norm:
        rows = torch.cat([rows, bias[:, None]], 1)
    norms = rows.norm(dim=1).clamp_min(1e-12)
    cosine = F.normalize(rows[gone], dim=1) @ F.normalize(rows[kept], dim=1).T
    distance = 1 - cosine
    if batch_norm:
        share = config.cosine_share
        # if w_j = s w_i, then b_j = s b_i + rest
        scaled = bias[gone, None] * norms[kept] / norms[gone, None]
        rest = (scaled - bias[kept]).abs()
        least, most = rest.amin(1, keepdim=True), rest.amax(1, keepdim=True)
        distance = share * distance + (1 - share) * (rest - least) / (most - least + 1e-12)
    partners = distance.argmin(1)
    similar = cosine.gather(1, partners[:, None])[:, 0] >= config.threshold
    factors = torch.where(similar, norms[gone] / norms[kept[partners]], 0)
    return list(zip(kept[partners].tolist(), gone.tolist(), factors.tolist(), strict=True))


def _count(keep: float, width: int) -> int:
    """Return how many of `width` neurons can be removed to keep at least the share `keep`.

    >>> _count(0.71, 100)
    29
    """
    return min(int((1 - keep) * width + 1e-9), width - 1)


def _narrow(
    model: nn.Module, pair: Pair, config: MergeConfig, *, batch_norm: bool
) -> tuple[LayerRecord, Tensor]:
    """Narrow one layer in place; return its record and the indices of the remaining outputs."""
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    assert isinstance(first, nn.Conv2d | nn.Linear)
    assert isinstance(second, nn.Conv2d | nn.Linear)
    width = first.weight.shape[0]
    bias = first.bias.detach() if first.bias is not None else first.weight.new_zeros(width)
    saliencies: list[float] = []
    # (m, n, rest): outgoing weights of each neuron, for either kind of second layer
    outgoing = second.weight.detach().reshape(second.weight.shape[0], width, -1).clone()
    if isinstance(first, nn.Linear):
        flat = outgoing.transpose(1, 2).reshape(-1, width)
        order, saliencies = merge_order(first.weight.detach(), bias, flat)
        keep = config.keep
        remove = turning_point(saliencies) if keep is None else _count(keep, width)
        removals = [(kept, removed, 1.0) for kept, removed in order[:remove]]
    else:
        count = _count(0.5 if config.keep is None else config.keep, width)
        removals = filter_partners(
            first.weight.detach(), bias, count, config, batch_norm=batch_norm
        )
    stay = torch.ones(width, dtype=torch.bool)
    for kept, removed, factor in removals:
        stay[removed] = False
        if config.compensate:
            outgoing[:, kept] += factor * outgoing[:, removed]
    shape = list(second.weight.shape)
    shape[1] = int(stay.sum()) * pair.positions
    replace_module(model, pair.first, _with_weights(first, first.weight[stay], bias[stay]))
    narrowed = outgoing[:, stay].reshape(shape)
    replace_module(model, pair.second, _with_weights(second, narrowed, second.bias))
    left = stay.nonzero().flatten()
    return LayerRecord(pair.first, width, len(left), tuple(saliencies)), left


def _with_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a copy of a convolution or linear layer with other weights and matching sizes."""
    new = copy.deepcopy(layer)
    assert isinstance(new, nn.Conv2d | nn.Linear)
    new.weight = nn.Parameter(weight.detach().clone())
    new.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    names = (
        ("out_features", "in_features")
        if isinstance(layer, nn.Linear)
        else ("out_channels", "in_channels")
    )
    for name, size in zip(names, weight.shape[:2], strict=True):
        setattr(new, name, size)
    return new


@torch.no_grad()
def check_mergeable(model: nn.Module, config: MergeConfig) -> dict[str, Pair]:
    """Return the layers to narrow, each paired with the one it feeds; raise as `merge` does."""
    graph = trace(model)
    found = {pair.first: pair for pair in pairs(graph) if pair.relu}
    if not found:
        raise TeacherError("no layer feeds one other layer alone through a ReLU: nothing to merge")
    if missing := [name for name in config.layers if name not in found]:
        raise ConfigError(f"cannot make {missing[0]!r} narrower; known: {', '.join(found)}")
    for name in (names := config.layers or tuple(found)):
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        if written := written_size(graph, name, len(weight)):
            raise TeacherError(f"{name} cannot be made narrower: {written}")
    return {name: found[name] for name in names}


def merge(
    model: nn.Module,
    spec: InputSpec,
    config: MergeConfig,
    images: Tensor | None = None,
    *,
    rng: torch.Generator | None = None,
) -> tuple[nn.Module, list[LayerRecord]]:
    """Merge similar neurons and filters, chosen from the weights alone.

    Args:
        model: traceable network; not modified. BatchNorm is folded first.
        spec: input of the network.
        config: see MergeConfig.
        images: uint8 (N, C, H, W) for layer reconstruction; None skips it.
        rng: draws the positions used for layer reconstruction; default: seed 0.

    Returns:
        A new network and the records of its narrowed layers, in order.

    Raises:
        TeacherError: the network cannot be traced, has no layer that feeds exactly one other,
            hard-codes a layer's width, or computes something else with BatchNorm folded.
        ConfigError: a layer named in `config` cannot be narrowed.

    """
    folded = fold_batch_norm(model, spec)
    normed = batch_norms(trace(model))
    narrow, records, kept = copy_network(folded), [], {}
    for name, pair in check_mergeable(folded, config).items():
        record, kept[name] = _narrow(narrow, pair, config, batch_norm=name in normed)
        records.append(record)
    if images is not None and config.reconstruct:
        device = next(model.parameters()).device
        shown = spec.encode(some_of(images, config.reconstruct).to(device))
        rng = rng or torch.Generator().manual_seed(0)
        reconstruct(folded, narrow, kept, shown, rng=rng)
    return narrow, records
