"""Select the ranks of factorized layers: by energy, or by a Lagrange multiplier on the cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamstill.compression.factorization.factors import Modes, is_matrix
from dreamstill.nn.hooks import eval_mode, watched

__all__ = ["RankChoices", "rank_choices", "positions_of", "ranks_by_cost", "ranks_by_energy"]


@dataclass(frozen=True)
class RankChoices:
    """All n choices of ranks that make a layer smaller and faster."""

    full: tuple[int, ...]
    """Full ranks."""
    whole: dict[str, float]
    """Values of `parameters` and `macs` of the original layer, without its bias."""
    ranks: Tensor
    """Ranks (n, 1) of a matrix, (n, 2) of other convolutions."""
    lost: Tensor
    """Loss (n,): -log of the share of energy kept, summed over modes."""
    cost: dict[str, Tensor]
    """Values (n,) of `parameters` and `macs`."""


def loss_of_ranks(energy: Tensor) -> Tensor:
    """Return -log of the share of energy that ranks 1, 2, ... keep; it adds up over layers.

    >>> (-loss_of_ranks(torch.tensor([9.0, 1.0, 0.0]))).exp().round(decimals=6).tolist()
    [0.9, 1.0, 1.0]
    """
    kept = energy.double().cumsum(0)
    return -(kept / kept[-1].clamp_min(1e-30)).clamp(1e-12, 1).log()


Positions = tuple[int, int]
"""Numbers of positions in a layer's inputs and outputs for one image, over all its calls."""


def positions_of(
    model: nn.Module, layers: Mapping[str, nn.Conv2d | nn.Linear], image: Tensor
) -> dict[str, Positions]:
    """Return the positions of each layer, in the order of their first calls on one image."""
    found: dict[str, Positions] = {}

    def look(name: str, given: Tensor, made: Tensor) -> None:
        entering, leaving = (
            value.numel() // channels
            for value, channels in zip((given, made), layers[name].weight.shape[1::-1], strict=True)
        )
        before = found.get(name, (0, 0))
        found[name] = before[0] + entering, before[1] + leaving

    with watched(layers, look), eval_mode(model):
        model(image)
    return found


def rank_choices(layer: nn.Conv2d | nn.Linear, modes: Modes, positions: Positions) -> RankChoices:
    """Return the choices of ranks for a layer without groups."""
    weight = layer.weight
    if is_matrix(layer):
        lost = loss_of_ranks(modes[0].energy)[: min(weight.shape[:2])]
        ranks = torch.arange(1, len(lost) + 1)[:, None]
        parameters = ranks[:, 0] * sum(weight.shape[:2])
        macs, work = parameters * positions[1], weight.numel() * positions[1]
        full: tuple[int, ...] = (len(lost),)
    else:
        assert isinstance(layer, nn.Conv2d)
        inputs, outputs = (loss_of_ranks(mode.energy) for mode in modes)
        ranks = torch.cartesian_prod(
            torch.arange(1, len(inputs) + 1), torch.arange(1, len(outputs) + 1)
        ).view(-1, 2)
        lost = inputs[ranks[:, 0] - 1] + outputs[ranks[:, 1] - 1]
        first = ranks[:, 0] * layer.in_channels
        rest = ranks.prod(1) * weight[0, 0].numel() + ranks[:, 1] * layer.out_channels
        # the first 1x1 runs at the input's resolution
        entering, leaving = positions
        parameters, macs = first + rest, first * entering + rest * leaving
        work = weight.numel() * leaving
        full = (layer.in_channels, layer.out_channels)
    better = (parameters < weight.numel()) & (macs < work)
    return RankChoices(
        full,
        {"parameters": float(weight.numel()), "macs": float(work)},
        ranks[better],
        lost.cpu()[better],
        {"parameters": parameters[better].double(), "macs": macs[better].double()},
    )


def ranks_by_energy(choices: RankChoices, energy: float) -> int | None:
    """Return the smallest choice that keeps this energy, averaged over modes; None if none does."""
    enough = choices.lost <= -math.log(energy) * choices.ranks.shape[1] + 1e-6
    cost = choices.cost["parameters"].masked_fill(~enough, torch.inf)
    return int(cost.argmin()) if enough.any() else None


def ranks_by_cost(layers: dict[str, RankChoices], target: str, budget: float) -> dict[str, int]:
    """Return the choice of each layer to factorize such that the total cost meets a budget.

    Each layer minimizes loss + multiplier * cost; the multiplier, the same for all layers, is found
    by bisection. The remaining budget then reduces the largest losses. Empty if the budget cannot
    be met.
    """
    if not layers:
        return {}
    total = sum(choices.whole[target] for choices in layers.values())
    low, high = -8.0, 4.0  # log10 of multipliers that reduce no layer, and every layer
    taken, spent = _at_multiplier(layers, target, 10**high / total)
    if spent > budget:
        return {}
    for _ in range(40):
        middle = (low + high) / 2
        found = _at_multiplier(layers, target, 10**middle / total)
        if found[1] <= budget:
            high, (taken, spent) = middle, found
        else:
            low = middle
    return _spend_rest(layers, target, taken, budget - spent)


def _at_multiplier(
    layers: dict[str, RankChoices], target: str, multiplier: float
) -> tuple[dict[str, int], float]:
    """Return the best choices of the layers to factorize, and the total cost of all layers."""
    taken, spent = dict[str, int](), 0.0
    for name, choices in layers.items():
        objective = choices.lost + multiplier * choices.cost[target]
        whole = choices.whole[target]
        if len(objective) and objective.min() < multiplier * whole:
            taken[name] = int(objective.argmin())
            spent += float(choices.cost[target][taken[name]])
        else:
            spent += whole
    return taken, spent


def _spend_rest(
    layers: dict[str, RankChoices], target: str, taken: dict[str, int], rest: float
) -> dict[str, int]:
    """Return better choices for the rest of the budget, largest reduction of the loss first."""
    while True:
        best: tuple[float, str, int] | None = None
        for name, index in taken.items():
            choices = layers[name]
            cost, now = choices.cost[target], choices.lost[index]
            lost = choices.lost.masked_fill(cost > cost[index] + rest, torch.inf)
            better = int(lost.argmin())
            gain = float(now - lost[better])
            if gain > 1e-6 and (best is None or gain > best[0]):
                best = gain, name, better
        if best is None:
            return taken
        _, name, better = best
        rest -= float(layers[name].cost[target][better] - layers[name].cost[target][taken[name]])
        taken = taken | {name: better}
