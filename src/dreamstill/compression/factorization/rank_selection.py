"""Which ranks the factors of a network's layers have: by energy, or by one price for all layers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamstill.compression.factorization.factors import Modes, is_matrix
from dreamstill.nn.hooks import eval_mode, watched

__all__ = ["Choices", "choices_of", "positions_of", "ranks_by_energy", "ranks_by_price"]


@dataclass(frozen=True)
class Choices:
    """Every way to factorize a layer that makes it smaller and faster."""

    full: tuple[int, ...]
    whole: dict[str, float]
    """`parameters` and `macs` of the layer as it is, without its bias."""
    ranks: Tensor
    """(n, 1) of a matrix, (n, 2) of other convolutions."""
    lost: Tensor
    """(n,) -log of the share of the energy that is kept, a sum over modes."""
    cost: dict[str, Tensor]
    """(n,) `parameters` and `macs`."""


def loss_of_ranks(energy: Tensor) -> Tensor:
    """-log of the share of the energy that ranks 1, 2, ... keep: shares of layers multiply.

    >>> (-loss_of_ranks(torch.tensor([9.0, 1.0, 0.0]))).exp().round(decimals=6).tolist()
    [0.9, 1.0, 1.0]
    """
    kept = energy.double().cumsum(0)
    return -(kept / kept[-1].clamp_min(1e-30)).clamp(1e-12, 1).log()


Positions = tuple[int, int]
"""Of the maps that enter and leave a layer on one image, over all its calls."""


def positions_of(
    model: nn.Module, layers: Mapping[str, nn.Conv2d | nn.Linear], image: Tensor
) -> dict[str, Positions]:
    """Of layers in the order in which they are first called."""
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


def choices_of(layer: nn.Conv2d | nn.Linear, modes: Modes, positions: Positions) -> Choices:
    """Of a layer without groups."""
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
        # the first of the three works before any stride
        entering, leaving = positions
        parameters, macs = first + rest, first * entering + rest * leaving
        work = weight.numel() * leaving
        full = (layer.in_channels, layer.out_channels)
    better = (parameters < weight.numel()) & (macs < work)
    return Choices(
        full,
        {"parameters": float(weight.numel()), "macs": float(work)},
        ranks[better],
        lost.cpu()[better],
        {"parameters": parameters[better].double(), "macs": macs[better].double()},
    )


def ranks_by_energy(choices: Choices, energy: float) -> int | None:
    """The cheapest choice that keeps this share, on average over modes; None: the whole layer."""
    enough = choices.lost <= -math.log(energy) * choices.ranks.shape[1] + 1e-6
    cost = choices.cost["parameters"].masked_fill(~enough, torch.inf)
    return int(cost.argmin()) if enough.any() else None


def ranks_by_price(layers: dict[str, Choices], target: str, budget: float) -> dict[str, int]:
    """Of the layers to factorize, the choices whose costs, with all others whole, meet a budget.

    At one price for a unit of cost each layer takes what is cheapest, lost weights and price
    together; the price rises until the budget is met. What is then left of it buys back the
    largest losses. Empty where no price meets it.
    """
    if not layers:
        return {}
    total = sum(choices.whole[target] for choices in layers.values())
    low, high = -8.0, 4.0  # powers of ten: of nothing, and of all that can go
    taken, spent = _at_price(layers, target, 10**high / total)
    if spent > budget:
        return {}
    for _ in range(40):
        middle = (low + high) / 2
        found = _at_price(layers, target, 10**middle / total)
        if found[1] <= budget:
            high, (taken, spent) = middle, found
        else:
            low = middle
    return _bought_back(layers, target, taken, budget - spent)


def _at_price(
    layers: dict[str, Choices], target: str, price: float
) -> tuple[dict[str, int], float]:
    """What each layer takes, if not itself, and the cost of them all."""
    taken, spent = dict[str, int](), 0.0
    for name, choices in layers.items():
        bill, whole = choices.lost + price * choices.cost[target], choices.whole[target]
        if len(bill) and bill.min() < price * whole:
            taken[name] = int(bill.argmin())
            spent += float(choices.cost[target][taken[name]])
        else:
            spent += whole
    return taken, spent


def _bought_back(
    layers: dict[str, Choices], target: str, taken: dict[str, int], room: float
) -> dict[str, int]:
    """Better choices for what is left of a budget, the one that helps most first."""
    while True:
        best: tuple[float, str, int] | None = None
        for name, index in taken.items():
            choices = layers[name]
            cost, now = choices.cost[target], choices.lost[index]
            lost = choices.lost.masked_fill(cost > cost[index] + room, torch.inf)
            better = int(lost.argmin())
            gain = float(now - lost[better])
            if gain > 1e-6 and (best is None or gain > best[0]):
                best = gain, name, better
        if best is None:
            return taken
        _, name, better = best
        room -= float(layers[name].cost[target][better] - layers[name].cost[target][taken[name]])
        taken = taken | {name: better}
