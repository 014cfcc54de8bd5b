"""Factorize layers: one of them becomes two or three of low rank.

Sources: Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient
Evaluation", 2014 (SVD of linear layers, and of convolutions of 1x1, which are linear at every
position); Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power
Mobile Applications", 2016 (Tucker-2 of other convolutions: 1x1, k x k, 1x1). These read the weights
alone; with images what stays is what they are given and make: of outputs the principal directions
of the responses, as Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification
and Detection", 2015, section 3.1, without the mean; of a larger convolution's inputs those of the
weights times the root of the inputs' second moments. Then each factor is solved for what it would
make at full rank, from what it is given after those before it: the asymmetric form of Zhang et al.,
section 3.3, by `reconstruct`. A layer is left whole where its factors would not be smaller or have
no fewer multiply-accumulates, where another shares its weight, and inside torch's attention, which
reads its weights itself. Ours is how a target is met: each layer loses what is cheapest for what it
saves, at one price for all.
"""

import copy
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.errors import SettingsError
from dreamstill.evaluate import measure_cost
from dreamstill.probe import eval_mode, shown_at_once
from dreamstill.settings import at_least, no_effect, within
from dreamstill.tasks.graph import map_modules, plain_layers, shared_weights
from dreamstill.tasks.reconstruct import reconstruct
from dreamstill.teacher import InputSpec

__all__ = ["FactorizeSettings", "RankRecord", "factorize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorizeSettings:
    """Settings of factorization."""

    energy: float = 0.99
    """Share of the squares of a layer's responses (`responses` 0: of its weights) to keep in every
    mode, on average; in (0, 1]. In place of a target."""
    macs: float | None = None
    """Target: this share of the multiply-accumulates, at most; in (0, 1]."""
    parameters: float | None = None
    """Target: this share of the parameters, at most; in (0, 1]."""
    first_layer: bool = False
    """Factorize the first layer too: it is small and its errors reach all others."""
    responses: int = 2048
    """Images whose responses say what to keep of a layer; at least 0: its weights alone say it."""
    reconstruct: int = 2048
    """Images on which the factors are solved, and the layers that stay; at least 0: they are left
    as they are cut."""

    def __post_init__(self) -> None:
        at_least(self, 0, "responses", "reconstruct")
        given = [n for n in ("macs", "parameters") if getattr(self, n) is not None]
        within(self, 1e-6, 1, "energy", *given)
        if len(given) > 1:
            raise SettingsError(
                f"give one target, macs or parameters; got {self.macs} and {self.parameters}"
            )
        if given:
            no_effect(self, "beside a target", "energy")


@dataclass(frozen=True)
class RankRecord:
    """Ranks of a factorized layer: (r,) of a matrix, (inputs, outputs) of other convolutions."""

    layer: str
    full: tuple[int, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Mode:
    """Directions of a layer's input or output channels C, those of most energy first."""

    energy: Tensor
    """(n,)"""
    into: Tensor
    """(n, C): from channels to directions."""
    back: Tensor
    """(C, n): the inverse of `into`."""


Modes = tuple[Mode, ...]
"""(outputs,) of a matrix, (inputs, outputs) of other convolutions."""
RIDGE = 1e-2
"""Added to the inputs' second moments, in units of their mean: few images leave some unseen."""


def is_matrix(layer: nn.Conv2d | nn.Linear) -> bool:
    """Whether one matrix is all that a layer does at every position: linear ones and 1x1."""
    return isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)


def principal(moment: Tensor) -> Mode:
    """Principal directions of a second moment (C, C)."""
    energy, vectors = torch.linalg.eigh(moment)
    vectors = vectors.flip(1)
    return Mode(energy.flip(0).clamp_min(0), vectors.T, vectors)


def unfold(weight: Tensor, mode: int) -> Tensor:
    """Matrix whose rows run over one mode of a tensor."""
    return weight.movedim(mode, 0).flatten(1)


def modes_of(
    layer: nn.Conv2d | nn.Linear, given: Tensor | None = None, made: Tensor | None = None
) -> Modes:
    """By energy in the responses, or in the weights.

    Args:
        layer: a linear layer, or a convolution without groups.
        given: second moments (I, I) of the input channels; None: all count the same. Of a matrix
            they say nothing more than `made`.
        made: second moments (O, O) of the outputs less the bias; None: those of the weights.

    """
    weight = layer.weight.double()
    out = unfold(weight, 0)
    outputs = principal(out @ out.T if made is None else made)
    if is_matrix(layer):
        return (outputs,)
    across = unfold(weight, 1)
    if given is None:
        return principal(across @ across.T), outputs
    raised = given.clone()
    raised.diagonal().add_(RIDGE * given.diagonal().mean().clamp_min(1e-12))
    values, vectors = torch.linalg.eigh(raised)
    root = vectors * values.sqrt() @ vectors.T
    inputs = principal(root @ across @ across.T @ root)
    into = inputs.into @ (vectors / values.sqrt() @ vectors.T)
    length = into.norm(dim=1)  # of 1, as of outputs: factors of one size are trained alike
    return Mode(inputs.energy, into / length[:, None], root @ inputs.back * length), outputs


def split_matrix(layer: nn.Conv2d | nn.Linear, modes: Modes, rank: int) -> nn.Sequential:
    """Two layers of the kind, of `rank` between: the best in squared error."""
    (outputs,) = modes
    first: nn.Conv2d | nn.Linear
    second: nn.Conv2d | nn.Linear
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    else:  # the stride comes first: what it leaves out is not computed
        first = nn.Conv2d(
            layer.in_channels,
            rank,
            1,
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            bias=False,
            padding_mode=layer.padding_mode,
        )
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
    into = outputs.into[:rank] @ layer.weight.double().flatten(1)
    first.weight.copy_(into.view_as(first.weight))
    second.weight.copy_(outputs.back[:, :rank].reshape(second.weight.shape))
    if layer.bias is not None:
        assert second.bias is not None
        second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).to(layer.weight.device)


def split_convolution(layer: nn.Conv2d, modes: Modes, ranks: tuple[int, int]) -> nn.Sequential:
    """Tucker-2: 1x1 to ranks[0] channels, the k x k core, 1x1 from ranks[1] channels."""
    inputs, outputs = modes
    core = torch.einsum(
        "oikl,po,iq->pqkl",
        layer.weight.double(),
        outputs.into[: ranks[1]],
        inputs.back[:, : ranks[0]],
    )
    first = nn.Conv2d(layer.in_channels, ranks[0], 1, bias=False)
    middle = nn.Conv2d(
        ranks[0],
        ranks[1],
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        bias=False,
        padding_mode=layer.padding_mode,
    )
    last = nn.Conv2d(ranks[1], layer.out_channels, 1, bias=layer.bias is not None)
    first.weight.copy_(inputs.into[: ranks[0], :, None, None])
    middle.weight.copy_(core)
    last.weight.copy_(outputs.back[:, : ranks[1], None, None])
    if layer.bias is not None:
        assert last.bias is not None
        last.bias.copy_(layer.bias)
    return nn.Sequential(first, middle, last).to(layer.weight.device)


def split(layer: nn.Module, modes: Modes, ranks: tuple[int, ...]) -> nn.Sequential:
    """The factors of a layer."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if is_matrix(layer):
        return split_matrix(layer, modes, ranks[0])
    assert isinstance(layer, nn.Conv2d)
    return split_convolution(layer, modes, (ranks[0], ranks[1]))


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

    def look(name: str, layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        entering, leaving = (
            value.numel() // channels
            for value, channels in zip((args[0], output), layer.weight.shape[1::-1], strict=True)
        )
        before = found.get(name, (0, 0))
        found[name] = before[0] + entering, before[1] + leaving

    with ExitStack() as stack, eval_mode(model):
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(partial(look, name)).remove)
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


def second_moment(values: Tensor, channels: int, less: Tensor | None = None) -> Tensor:
    """(C, C) summed over all but the axis of the channels, in double precision."""
    rows = values.movedim(channels, -1).flatten(0, -2).double()
    rows = rows if less is None else rows - less
    return rows.T @ rows


def modes_by_responses(
    model: nn.Module, layers: Mapping[str, nn.Conv2d | nn.Linear], batches: Iterable[Tensor]
) -> dict[str, Modes]:
    """Of layers on batches (N, C, H, W) in the input space; the model is in its eval mode."""
    given, made = dict[str, Tensor](), dict[str, Tensor]()

    def look(name: str, layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        channels = -1 if isinstance(layer, nn.Linear) else 1
        made[name] = second_moment(output, channels, layer.bias) + made.get(name, 0)
        if not is_matrix(layer):
            given[name] = second_moment(args[0], 1) + given.get(name, 0)

    with ExitStack() as stack:  # at once: what follows a layer may change both in place
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(partial(look, name)).remove)
        for batch in batches:
            model(batch)
    return {name: modes_of(layer, given.get(name), made[name]) for name, layer in layers.items()}


def ranks_of(
    layers: dict[str, Choices], settings: FactorizeSettings, model: nn.Module, spec: InputSpec
) -> dict[str, tuple[int, ...]]:
    """Of the layers that are not left whole. SettingsError: no ranks meet the target."""
    target = "macs" if settings.macs is not None else "parameters"
    share = getattr(settings, target)
    if share is None:
        found = {
            name: ranks_by_energy(choices, settings.energy) for name, choices in layers.items()
        }
        taken = {name: index for name, index in found.items() if index is not None}
    else:
        whole = getattr(measure_cost(model, spec, num_runs=1), target)
        free = sum(choices.whole[target] for choices in layers.values())
        taken = ranks_by_price(layers, target, free - (1 - share) * whole)
        if not taken and share < 1:
            raise SettingsError(f"no rank brings {target} to {share} of the network's {whole}")
    return {name: tuple(layers[name].ranks[index].tolist()) for name, index in taken.items()}


def with_factors(
    model: nn.Module, modes: Mapping[str, Modes], ranks: Mapping[str, tuple[int, ...]]
) -> nn.Module:
    """A copy of a network in which the layers of `ranks` are factors."""

    def change(name: str, layer: nn.Module) -> nn.Module | None:
        return split(layer, modes[name], ranks[name]) if name in ranks else None

    return map_modules(copy.deepcopy(model), change)


@torch.no_grad()
def factorize(
    model: nn.Module,
    spec: InputSpec,
    settings: FactorizeSettings,
    images: Tensor | None = None,
    *,
    rng: torch.Generator | None = None,
) -> tuple[nn.Module, list[RankRecord]]:
    """A new network whose layers are factorized, and the ranks of those that were.

    Args:
        model: left as it was.
        spec: its input.
        settings: see FactorizeSettings.
        images: uint8 (N, C, H, W), synthetic or not, whose responses say what to keep, and on which
            factors are solved; None: the weights alone say it, and nothing is solved.
        rng: draws the positions in the images at which factors are solved; default: of seed 0.

    Raises:
        SettingsError: no ranks meet the target.

    """
    device = next(model.parameters()).device
    every, tied = plain_layers(model), shared_weights(model)
    positions = positions_of(model, every, torch.zeros(1, *spec.shape, device=device))
    called = list(positions)[0 if settings.first_layer else 1 :]
    plain = {
        name: layer
        for name, layer in ((name, every[name]) for name in called)
        if name not in tied and (isinstance(layer, nn.Linear) or layer.groups == 1)
    }
    if images is None or settings.responses == 0:
        modes = {name: modes_of(layer) for name, layer in plain.items()}
    else:
        shown = images[:: max(1, len(images) // settings.responses)][: settings.responses]
        batches = (spec.encode(part.to(device)) for part in shown.split(shown_at_once(spec.shape)))
        with eval_mode(model):
            modes = modes_by_responses(model, plain, batches)
    layers = {
        name: choices_of(layer, modes[name], positions[name]) for name, layer in plain.items()
    }
    ranks = ranks_of(layers, settings, model, spec)
    factorized = with_factors(model, modes, ranks)
    if ranks and images is not None and settings.reconstruct:
        full = {name: tuple(len(mode.energy) for mode in modes[name]) for name in ranks}
        kept = {
            f"{name}.{factor}": torch.arange(rank)
            for name, of in ranks.items()
            for factor, rank in enumerate(of)
        }
        shown = spec.encode(images[: settings.reconstruct].to(device))
        rng = rng or torch.Generator().manual_seed(0)
        reconstruct(with_factors(model, modes, full), factorized, kept, shown, rng=rng)
    return factorized, [RankRecord(name, layers[name].full, of) for name, of in ranks.items()]
