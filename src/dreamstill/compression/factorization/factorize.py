"""Factorize layers: replace a layer by two or three layers of low rank.

Sources: Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient
Evaluation", 2014 (SVD of linear layers and 1x1 convolutions); Kim et al., "Compression of Deep
Convolutional Neural Networks for Fast and Low Power Mobile Applications", 2016 (Tucker-2 of other
convolutions: 1x1, k x k, 1x1). Both use the weights alone. With images, the factors approximate the
responses, as in Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and
Detection", 2015 (see `factors`), and `reconstruct` fits each factor to its full-rank outputs given
the inputs from the layers already factorized (asymmetric reconstruction, section 3.3). Not
factorized are layers whose factors would not have fewer parameters and MACs, layers that share
their weight, and layers inside torch's attention, which reads their weights directly. Ranks for a
target come from `rank_selection`, which is not from these papers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamstill.compression.config import FactorizeConfig
from dreamstill.compression.factorization.factors import modes_by_responses, modes_of, with_factors
from dreamstill.compression.factorization.rank_selection import (
    RankChoices,
    positions_of,
    rank_choices,
    ranks_by_cost,
    ranks_by_energy,
)
from dreamstill.distillation.layer_reconstruction import reconstruct
from dreamstill.errors import ConfigError
from dreamstill.graph.modules import plain_layers, shared_weights
from dreamstill.input_spec import InputSpec
from dreamstill.nn.hooks import eval_mode, shown_at_once, some_of
from dreamstill.nn.seeded import rng_kept
from dreamstill.profiling import count_macs

__all__ = ["FactorizeConfig", "RankRecord", "factorize"]


@dataclass(frozen=True)
class RankRecord:
    """Ranks of a factorized layer: (r,) for a matrix, (inputs, outputs) for Tucker-2."""

    layer: str
    full: tuple[int, ...]
    ranks: tuple[int, ...]


def ranks_of(
    layers: dict[str, RankChoices], config: FactorizeConfig, model: nn.Module, spec: InputSpec
) -> dict[str, tuple[int, ...]]:
    """Return the ranks of the layers to factorize; raise ConfigError if none meet the target."""
    target, share = config.target.value, config.keep
    if share is None:
        found = {name: ranks_by_energy(choices, config.energy) for name, choices in layers.items()}
        taken = {name: index for name, index in found.items() if index is not None}
    else:
        parameters = sum(p.numel() for p in model.parameters())
        whole = count_macs(model, spec) if target == "macs" else parameters
        free = sum(choices.whole[target] for choices in layers.values())
        taken = ranks_by_cost(layers, target, free - (1 - share) * whole)
        if not taken and share < 1:
            raise ConfigError(f"no rank brings {target} to {share:.3g} of the network's {whole:,}")
    return {name: tuple(layers[name].ranks[index].tolist()) for name, index in taken.items()}


@rng_kept()  # initialization of the new layers draws random numbers
@torch.no_grad()
def factorize(
    model: nn.Module,
    spec: InputSpec,
    config: FactorizeConfig,
    images: Tensor | None = None,
    *,
    rng: torch.Generator | None = None,
) -> tuple[nn.Module, list[RankRecord]]:
    """Return a factorized copy of a network and the ranks of its factorized layers.

    Args:
        model: network; not modified.
        spec: input of the network.
        config: see FactorizeConfig.
        images: uint8 (N, C, H, W), synthetic or real, for responses and layer reconstruction; None:
            factorize from the weights alone, without reconstruction.
        rng: draws the positions used for layer reconstruction; default: seed 0.

    Raises:
        ConfigError: no ranks meet the target.

    """
    device = next(model.parameters()).device
    every, tied = plain_layers(model), shared_weights(model)
    positions = positions_of(model, every, torch.zeros(1, *spec.shape, device=device))
    called = list(positions)[0 if config.first_layer else 1 :]
    plain = {
        name: layer
        for name, layer in ((name, every[name]) for name in called)
        if name not in tied and (isinstance(layer, nn.Linear) or layer.groups == 1)
    }
    if images is None or config.responses == 0:
        modes = {name: modes_of(layer) for name, layer in plain.items()}
    else:
        shown = some_of(images, config.responses)
        batches = (spec.encode(part.to(device)) for part in shown.split(shown_at_once(spec.shape)))
        with eval_mode(model):
            modes = modes_by_responses(model, plain, batches)
    layers = {
        name: rank_choices(layer, modes[name], positions[name]) for name, layer in plain.items()
    }
    ranks = ranks_of(layers, config, model, spec)
    factorized = with_factors(model, modes, ranks)
    if ranks and images is not None and config.reconstruct:
        full = {name: tuple(len(mode.energy) for mode in modes[name]) for name in ranks}
        kept = {
            f"{name}.{factor}": torch.arange(rank)
            for name, of in ranks.items()
            for factor, rank in enumerate(of)
        }
        shown = spec.encode(some_of(images, config.reconstruct).to(device))
        rng = rng or torch.Generator().manual_seed(0)
        reconstruct(with_factors(model, modes, full), factorized, kept, shown, rng=rng)
    return factorized, [RankRecord(name, layers[name].full, of) for name, of in ranks.items()]
