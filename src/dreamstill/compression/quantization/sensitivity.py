"""Choose the bits of each layer by the effect of its quantization alone on the outputs.

Source: Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020: the sensitivity of
a layer is KL(full precision || only this layer at low bits). Difference: the size is met by a
greedy search instead of a Pareto frontier, see `mixed_bits`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dreamstill.errors import ConfigError
from dreamstill.evaluation import divergence, predict
from dreamstill.input_spec import InputSpec
from dreamstill.nn.hooks import some_of
from dreamstill.nn.quantized import best_step, fake_quantize
from dreamstill.output_spec import OutputKind

__all__ = ["mixed_bits", "sensitivities"]


@torch.no_grad()
def sensitivities(
    model: nn.Module,
    spec: InputSpec,
    images: Tensor,
    names: Iterable[str],
    candidates: tuple[int, ...] = (2, 3, 4, 6, 8),
    *,
    per_channel: bool,
    kind: OutputKind = OutputKind.CLASSES,
) -> dict[str, dict[int, float]]:
    """Return mean KL(model || model with one layer's weight quantized), by layer and bits.

    Args:
        model: network; its layers are changed one at a time and restored.
        spec: input of the network.
        images: uint8 (N, C, H, W), of which at most 512 are used.
        names: layers to measure.
        candidates: numbers of bits.
        per_channel: whether each output channel has its own step size.
        kind: what the outputs say.

    """
    shown = some_of(images, 512)
    whole = predict(model, spec, shown)
    table: dict[str, dict[int, float]] = {}
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
        weight = layer.weight.detach().clone()
        table[name] = {}
        for bits in candidates:
            high = 2 ** (bits - 1) - 1
            step = best_step(weight, bits, per_channel=per_channel)
            layer.weight.copy_(fake_quantize(weight, step, -high - 1, high))
            table[name][bits] = divergence(predict(model, spec, shown), whole, kind)
        layer.weight.copy_(weight)
    return table


def mixed_bits(
    table: dict[str, dict[int, float]], sizes: dict[str, int], share: float
) -> dict[str, int]:
    """Return the bits of each layer that meet a size, by greedy search.

    Starting at the most bits, lower the layer whose KL rises least per bit saved until the size is
    met; then spend the remaining bits where the KL falls most.

    Args:
        table: result of `sensitivities`.
        sizes: number of weights of each layer.
        share: largest share of the size at 8 bits.

    Raises:
        ConfigError: the fewest bits exceed the size.

    """
    bits = {name: max(choices) for name, choices in table.items()}
    budget = share * 8 * sum(sizes.values())
    while sum(sizes[name] * b for name, b in bits.items()) > budget:
        steps = []
        for name, now in bits.items():
            lower = [b for b in table[name] if b < now]
            if lower:
                bits_below = max(lower)
                rise = table[name][bits_below] - table[name][now]
                steps.append((rise / (sizes[name] * (now - bits_below)), name, bits_below))
        if not steps:
            least = sum(sizes[name] * b for name, b in bits.items()) / (8 * sum(sizes.values()))
            raise ConfigError(
                f"keep {share} cannot be met: with the fewest bits, and first_last_bits where they "
                f"count, it is {least:.3f}"
            )
        _, name, lower_bits = min(steps)
        bits[name] = lower_bits
    while True:
        room = budget - sum(sizes[name] * b for name, b in bits.items())
        falls = [
            (table[name][now] - kl, name, more)
            for name, now in bits.items()
            for more, kl in table[name].items()
            if 0 < sizes[name] * (more - now) <= room and kl < table[name][now]
        ]
        if not falls:
            return bits
        _, name, more_bits = max(falls)
        bits[name] = more_bits
