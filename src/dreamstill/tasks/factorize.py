"""Factorize layers: one of them becomes two or three of low rank, from the weights alone.

Sources: Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient
Evaluation", 2014 (SVD of linear layers); Kim et al., "Compression of Deep Convolutional Neural
Networks for Fast and Low Power Mobile Applications", 2016 (Tucker-2 of convolutions: 1x1, k x k,
1x1). A layer is left whole where its factors would not be smaller or have no fewer multiply-
accumulates, and inside torch's attention, which reads its weights itself.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamstill.errors import SettingsError
from dreamstill.evaluate import measure_cost
from dreamstill.probe import Probe
from dreamstill.settings import within
from dreamstill.tasks.graph import map_modules, plain_layers
from dreamstill.teacher import InputSpec

__all__ = ["FactorizeSettings", "RankRecord", "factorize", "factorize_to"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorizeSettings:
    """Settings of factorization."""

    energy: float = 0.9
    """Share of each layer's squared singular values to keep; in (0, 1]. Without a target."""
    macs: float | None = None
    """Target: this share of the multiply-accumulates, at most; in (0, 1]."""
    parameters: float | None = None
    """Target: this share of the parameters, at most; in (0, 1]."""
    first_layer: bool = False
    """Factorize the first layer too: it is small and its errors reach all others."""

    def __post_init__(self) -> None:
        given = [n for n in ("macs", "parameters") if getattr(self, n) is not None]
        within(self, 1e-6, 1, "energy", *given)
        if len(given) > 1:
            raise SettingsError(
                f"give one target, macs or parameters; got {self.macs} and {self.parameters}"
            )


@dataclass(frozen=True)
class RankRecord:
    """Ranks of a factorized layer: (r,) of a linear one, (inputs, outputs) of a convolution."""

    layer: str
    full: tuple[int, ...]
    ranks: tuple[int, ...]


def rank_of(singular_values: Tensor, energy: float) -> int:
    """The smallest rank that keeps this share of the squared singular values.

    >>> rank_of(torch.tensor([3.0, 1.0, 0.0]), 0.9), rank_of(torch.tensor([3.0, 1.0, 0.0]), 0.95)
    (1, 2)
    """
    kept = singular_values.double().pow(2).cumsum(0)
    return int((kept < energy * kept[-1] * (1 - 1e-12)).sum()) + 1


def split_linear(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Two linear layers of `rank` between: the best in squared error."""
    u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
    root = s[:rank].sqrt()
    first = nn.Linear(layer.in_features, rank, bias=False)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    first.weight.copy_(root[:, None] * v[:rank])
    second.weight.copy_(u[:, :rank] * root)
    if layer.bias is not None:
        second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).to(layer.weight.device)


def weights_of(layers: nn.Sequential) -> list[Tensor]:
    """Weights in order, no biases."""
    return [value for name, value in layers.named_parameters() if name.endswith("weight")]


def unfold(weight: Tensor, mode: int) -> Tensor:
    """Matrix whose rows run over one mode of a tensor."""
    return weight.movedim(mode, 0).flatten(1)


def split_convolution(layer: nn.Conv2d, ranks: tuple[int, int]) -> nn.Sequential:
    """Tucker-2: 1x1 to ranks[0] channels, the k x k core, 1x1 from ranks[1] channels."""
    weight = layer.weight
    outputs = torch.linalg.svd(unfold(weight, 0), full_matrices=False)[0][:, : ranks[1]]
    inputs = torch.linalg.svd(unfold(weight, 1), full_matrices=False)[0][:, : ranks[0]]
    core = torch.einsum("oikl,op,iq->pqkl", weight, outputs, inputs)
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
    first.weight.copy_(inputs.T[:, :, None, None])
    middle.weight.copy_(core)
    last.weight.copy_(outputs[:, :, None, None])
    if layer.bias is not None:
        assert last.bias is not None
        last.bias.copy_(layer.bias)
    return nn.Sequential(first, middle, last).to(weight.device)


@torch.no_grad()
def factorize(
    model: nn.Module, spec: InputSpec, settings: FactorizeSettings, *, energy: float | None = None
) -> tuple[nn.Module, list[RankRecord]]:
    """A new network whose layers are factorized by energy, and the ranks of those that were.

    Args:
        model: left as it was.
        spec: its input.
        settings: see FactorizeSettings; targets are `factorize_to`'s.
        energy: in place of the settings'.

    """
    keep = settings.energy if energy is None else energy
    layers = plain_layers(model)
    with Probe(layers) as probe:
        model.eval()(torch.zeros(1, *spec.shape, device=next(model.parameters()).device))
    called = list(probe.inputs)  # in order, whatever the order of their definition
    skipped = () if settings.first_layer else called[:1]
    records = []

    def change(name: str, module: nn.Module) -> nn.Module | None:
        if name in skipped or name not in layers:
            return None
        if isinstance(module, nn.Linear):
            ranks: tuple[int, ...] = (rank_of(torch.linalg.svdvals(module.weight), keep),)
            full: tuple[int, ...] = (min(module.weight.shape),)
            new = split_linear(module, ranks[0])
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            inputs, outputs = (
                rank_of(torch.linalg.svdvals(unfold(module.weight, mode)), keep) for mode in (1, 0)
            )
            ranks, full = (inputs, outputs), (module.in_channels, module.out_channels)
            new = split_convolution(module, (inputs, outputs))
        else:
            return None
        if sum(p.numel() for p in new.parameters()) >= sum(p.numel() for p in module.parameters()):
            return None
        if isinstance(module, nn.Conv2d) and name in probe.inputs:
            before, after = (x[name].shape[2:].numel() for x in (probe.inputs, probe.outputs))
            # the first of the three works before any stride
            work = [p.numel() * (after if i else before) for i, p in enumerate(weights_of(new))]
            if sum(work) >= module.weight.numel() * after:
                return None
        records.append(RankRecord(name, full, ranks))
        return new

    return map_modules(copy.deepcopy(model), change), records


def factorize_to(
    model: nn.Module, spec: InputSpec, settings: FactorizeSettings
) -> tuple[nn.Module, list[RankRecord]]:
    """Factorize to the settings' target: the largest energy that meets it, to 1/1000.

    Raises:
        SettingsError: no energy meets the target.

    """
    name = "macs" if settings.macs is not None else "parameters"
    share = getattr(settings, name)
    if share is None:
        return factorize(model, spec, settings)
    whole = getattr(measure_cost(model, spec, num_runs=1), name)
    low, high, found = 0, 1000, None
    while low <= high:
        middle = (low + high) // 2
        candidate = factorize(model, spec, settings, energy=max(middle / 1000, 1e-6))
        if getattr(measure_cost(candidate[0], spec, num_runs=1), name) <= share * whole:
            found, low = candidate, middle + 1
        else:
            high = middle - 1
    if found is None:
        raise SettingsError(f"no rank brings {name} to {share} of the network's {whole}")
    return found
