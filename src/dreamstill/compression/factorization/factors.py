"""Split layers into low-rank factors along principal directions.

From the weights alone: SVD of a matrix (Denton et al. 2014), Tucker-2 of other convolutions (Kim et
al. 2016). From responses: output directions are the principal directions of the layer's outputs
(Zhang et al. 2015, section 3.1, without centering); input directions of Tucker-2 are those of the
weights times the square root of the inputs' second moment.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.graph.modules import map_modules
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import watched
from dreamstill.nn.padding import copy_padding

__all__ = ["Modes", "is_matrix", "modes_by_responses", "modes_of", "with_factors"]


@dataclass(frozen=True)
class Mode:
    """Directions in the space of a layer's C input or output channels, by falling energy."""

    energy: Tensor
    """Energy of each direction (n,)."""
    into: Tensor
    """Matrix (n, C) from channels to directions."""
    back: Tensor
    """Inverse (C, n) of `into`."""


Modes = tuple[Mode, ...]
"""Modes (outputs,) of a matrix or (inputs, outputs) of other convolutions."""
RIDGE = 1e-2
"""Ridge on the inputs' second moments relative to their mean, for directions without samples."""


def is_matrix(layer: nn.Conv2d | nn.Linear) -> bool:
    """Return whether a layer applies one matrix at every position: linear or 1x1 convolution."""
    return isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)


def principal(moment: Tensor) -> Mode:
    """Return the principal directions of a second moment (C, C)."""
    energy, vectors = torch.linalg.eigh(moment)
    vectors = vectors.flip(1)
    return Mode(energy.flip(0).clamp_min(0), vectors.T, vectors)


def unfold(weight: Tensor, mode: int) -> Tensor:
    """Return the matrix unfolding of a tensor whose rows run over one mode."""
    return weight.movedim(mode, 0).flatten(1)


def modes_of(
    layer: nn.Conv2d | nn.Linear, given: Tensor | None = None, made: Tensor | None = None
) -> Modes:
    """Return a layer's modes by energy in its responses or in its weights.

    Args:
        layer: a linear layer, or a convolution without groups.
        given: second moment (I, I) of the input channels; None: the identity. Not used for a
            matrix, for which `made` is enough.
        made: second moment (O, O) of the outputs without bias; None: that of the weights.

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
    length = into.norm(dim=1)  # unit length, as for outputs: factors of similar size train better
    return Mode(inputs.energy, into / length[:, None], root @ inputs.back * length), outputs


def split_matrix(layer: nn.Conv2d | nn.Linear, modes: Modes, rank: int) -> nn.Sequential:
    """Return two layers of the same kind with `rank` channels between them, by truncated modes."""
    (outputs,) = modes
    first: nn.Conv2d | nn.Linear
    second: nn.Conv2d | nn.Linear
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    else:  # stride in the first layer saves work
        stride: Any = layer.stride
        first = nn.Conv2d(layer.in_channels, rank, 1, stride, bias=False)
        copy_padding(layer, first)
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
    into = outputs.into[:rank] @ layer.weight.double().flatten(1)
    first.weight.copy_(into.view_as(first.weight))
    second.weight.copy_(outputs.back[:, :rank].reshape(second.weight.shape))
    if layer.bias is not None:
        assert second.bias is not None
        second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).to(layer.weight.device)


def split_convolution(layer: nn.Conv2d, modes: Modes, ranks: tuple[int, int]) -> nn.Sequential:
    """Return the Tucker-2 factors: 1x1 to ranks[0] channels, k x k core, 1x1 from ranks[1]."""
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
        dilation=layer.dilation,  # type: ignore[arg-type]
        bias=False,
    )
    copy_padding(layer, middle)
    last = nn.Conv2d(ranks[1], layer.out_channels, 1, bias=layer.bias is not None)
    first.weight.copy_(inputs.into[: ranks[0], :, None, None])
    middle.weight.copy_(core)
    last.weight.copy_(outputs.back[:, : ranks[1], None, None])
    if layer.bias is not None:
        assert last.bias is not None
        last.bias.copy_(layer.bias)
    return nn.Sequential(first, middle, last).to(layer.weight.device)


def split(layer: nn.Module, modes: Modes, ranks: tuple[int, ...]) -> nn.Sequential:
    """Return the factors of a layer."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if is_matrix(layer):
        return split_matrix(layer, modes, ranks[0])
    assert isinstance(layer, nn.Conv2d)
    return split_convolution(layer, modes, (ranks[0], ranks[1]))


def second_moment(values: Tensor, channels: int, less: Tensor | None = None) -> Tensor:
    """Return the second moment (C, C) along the axis `channels`, in double precision."""
    rows = values.movedim(channels, -1).flatten(0, -2).double()
    rows = rows if less is None else rows - less
    return rows.T @ rows


def modes_by_responses(
    model: nn.Module, layers: Mapping[str, nn.Conv2d | nn.Linear], batches: Iterable[Tensor]
) -> dict[str, Modes]:
    """Return the modes of layers from their responses to batches (N, C, H, W) in the input space.

    The model must be in eval mode.
    """
    given, made = dict[str, Tensor](), dict[str, Tensor]()

    def look(name: str, entering: Tensor, leaving: Tensor) -> None:
        layer = layers[name]
        channels = -1 if isinstance(layer, nn.Linear) else 1
        made[name] = second_moment(leaving, channels, layer.bias) + made.get(name, 0)
        if not is_matrix(layer):
            given[name] = second_moment(entering, 1) + given.get(name, 0)

    with watched(layers, look):
        for batch in batches:
            model(batch)
    return {name: modes_of(layer, given.get(name), made[name]) for name, layer in layers.items()}


def with_factors(
    model: nn.Module, modes: Mapping[str, Modes], ranks: Mapping[str, tuple[int, ...]]
) -> nn.Module:
    """Return a copy of a network with the layers in `ranks` factorized."""

    def change(name: str, layer: nn.Module) -> nn.Module | None:
        return split(layer, modes[name], ranks[name]) if name in ranks else None

    return map_modules(copy_network(model), change)
