"""Restore the activations of a network that lost channels, layer by layer, by least squares.

Source: He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017,
section 3.1 (ii), in the asymmetric form: each layer is fitted to what it put out in the whole
network, given what it is fed in the narrow one, after the layers before it. Here the images are
synthetic, and the fit is a ridge regression toward the weights that were left, whose strength is
chosen by cross-validation between the two halves of the images. The running statistics of the
BatchNorm layers stay right: they describe what the layers put out in the whole network.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.errors import DataError, NonFiniteError
from dreamstill.graph.modules import shared_weights
from dreamstill.nn.hooks import eval_mode, first_input, watched

__all__ = ["reconstruct"]

Layer = nn.Conv2d | nn.Linear
POSITIONS = 32
"""Positions of a map that are looked at in each image."""
MOST_INPUTS = 4608
"""Inputs of a layer that is reconstructed: the cost is their cube."""
MOST_VALUES = 2**26
"""Values in the images together, and in the patches of a layer at once: bounds the memory."""
RIDGES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
"""Ridge strengths to choose from, in units of the inputs' mean square."""


@torch.no_grad()
def reconstruct(
    whole: nn.Module,
    narrow: nn.Module,
    channels: Mapping[str, Tensor],
    inputs: Tensor,
    *,
    rng: torch.Generator,
) -> None:
    """Reconstruct the weights and biases of `narrow`, in place.

    Linear layers and convolutions without groups are, that run once, on maps of one size in both
    networks, with at most 4,608 inputs and a weight of their own; others stay.

    Args:
        whole: the network before; left as it was.
        narrow: the same layers by name, each as wide or narrower.
        channels: by layer, which output channels of `whole` are left, in order; all where absent.
        inputs: (N, C, H, W) in the input space; as many as 2^26 values hold are looked at.
        rng: draws the positions.

    Raises:
        DataError: fewer than 2 images.
        NonFiniteError: a layer's solution is not finite.

    """
    if len(inputs) < 2:
        raise DataError(f"layers are reconstructed on at least 2 images; got {len(inputs)}")
    inputs = inputs[: max(2, MOST_VALUES // inputs[0].numel())]
    tied = shared_weights(narrow)
    layers = {
        name: layer
        for name, layer in narrow.named_modules()
        if _can_be_reconstructed(layer) and name not in tied
    }
    targets = _targets(whole, layers, channels, inputs, rng)

    def solve(name: str, given: Tensor) -> None:
        if target := targets.pop(name, None):
            where, wanted, positions = target
            if _patches(given[:1], layers[name]).shape[1] == positions:
                _solve(name, layers[name], given, where.to(given.device), wanted)

    with ExitStack() as stack, eval_mode(narrow):
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(
                lambda layer, args, kwargs, name=name: solve(name, first_input(args, kwargs)),
                with_kwargs=True,
            )
            stack.callback(hook.remove)
        narrow(inputs)


def _targets(
    whole: nn.Module,
    layers: Mapping[str, Layer],
    channels: Mapping[str, Tensor],
    inputs: Tensor,
    rng: torch.Generator,
) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Record what each layer that runs once puts out in the whole network.

    Returns:
        By layer, positions (N, P), its outputs there (N P, channels), the number of positions.

    """
    targets: dict[str, tuple[Tensor, Tensor, int]] = {}
    calls = Counter[str]()

    def look(name: str, given: Tensor, output: Tensor) -> None:
        calls[name] += 1
        rows = _rows(output, layers[name])
        size = (len(rows), min(POSITIONS, rows.shape[1]))
        where = torch.randint(rows.shape[1], size, generator=rng, device=rng.device)
        wanted = _at(rows, where.to(rows.device))
        if name in channels:
            wanted = wanted[:, channels[name].to(wanted.device)]
        targets[name] = where, wanted, rows.shape[1]

    with eval_mode(whole), watched({name: whole.get_submodule(name) for name in layers}, look):
        whole(inputs)
    return {name: target for name, target in targets.items() if calls[name] == 1}


def _can_be_reconstructed(layer: Any) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.weight[0].numel() <= MOST_INPUTS
    return type(layer) is nn.Linear and layer.in_features <= MOST_INPUTS


def _rows(output: Tensor, layer: Layer) -> Tensor:
    """Reshape what a layer puts out to (N, positions, channels)."""
    if isinstance(layer, nn.Linear):
        return output.reshape(len(output), -1, output.shape[-1])
    return output.flatten(2).transpose(1, 2)


def _at(rows: Tensor, where: Tensor) -> Tensor:
    """Select positions (N, P) of rows (N, L, C): (N P, C)."""
    index = where[:, :, None].expand(-1, -1, rows.shape[2])
    return rows.gather(1, index).flatten(0, 1)


def _patches(given: Tensor, layer: Layer) -> Tensor:
    """Unfold what a layer multiplies with its weights: (N, positions, inputs)."""
    if isinstance(layer, nn.Linear):
        return given.reshape(len(given), -1, given.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(given, layer._reversed_padding_repeated_twice, mode=mode)
    columns = F.unfold(padded, layer.kernel_size, layer.dilation, stride=layer.stride)
    return columns.transpose(1, 2)


def _solve(name: str, layer: Layer, given: Tensor, where: Tensor, wanted: Tensor) -> None:
    """Fit the layer's weights to put out `wanted` (N P, outputs) for what it is given."""
    weight = layer.weight.flatten(1)
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias[:, None]], 1)
    half, each = len(given) // 2, where.shape[1]
    products = [
        _products(layer, weight, given[part], where[part], wanted[part.start * each :])
        for part in (slice(0, half), slice(half, len(given)))
    ]
    change = _ridge_regression(products).T.to(weight.dtype)
    if not change.isfinite().all():
        raise NonFiniteError(f"{name} was reconstructed with weights that are not finite")
    if layer.bias is not None:
        layer.bias += change[:, -1]
        change = change[:, :-1]
    layer.weight += change.reshape(layer.weight.shape)


def _products(
    layer: Layer, weight: Tensor, given: Tensor, where: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum the products of inputs with themselves, (I, I), and with the residuals, (I, outputs)."""
    gram = given.new_zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    cross = given.new_zeros(weight.shape[1], len(weight), dtype=torch.float64)
    at_once = max(1, MOST_VALUES // _patches(given[:1], layer).numel())
    for start in range(0, len(given), at_once):
        at = where[start : start + at_once]
        rows = _at(_patches(given[start : start + at_once], layer), at)
        if layer.bias is not None:
            rows = F.pad(rows, (0, 1), value=1)
        missing = wanted[start * at.shape[1] :][: len(rows)] - rows @ weight.T
        gram += rows.double().T @ rows.double()
        cross += rows.double().T @ missing.double()
    return gram, cross


def _ridge_regression(products: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the change (I, outputs) at the ridge with which each half predicts the other best."""

    def solved(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
        raised = gram.clone()
        raised.diagonal().add_(ridge * gram.diagonal().mean().clamp_min(1e-12))
        factor, _ = torch.linalg.cholesky_ex(raised)
        return torch.cholesky_solve(cross, factor)

    def error(ridge: float) -> float:
        total = 0.0
        for (gram, cross), (other_gram, other_cross) in (products, products[::-1]):
            change = solved(gram, cross, ridge)
            total += (change * (other_gram @ change - 2 * other_cross)).sum().item()
        return total

    best = min(RIDGES, key=error)
    (gram, cross), (other_gram, other_cross) = products
    return solved(gram + other_gram, cross + other_cross, best)
