"""Estimate the gradient of a black box from its answers, by forward differences.

Source: Spall 1992 (simultaneous perturbation); of a black box's loss by an image, Chen et al. 2017
(ZOO) and Truong et al. 2021 (DFME), which draw directions from the sphere. Ours are signs, so that
each pixel moves by whole levels of 8 bits, and what is sent may be uint8:

    gradient of f at x  =  mean over directions u of  u * (f(x + STEP * u) - f(x)) / STEP

It is the gradient in expectation where f is linear, since E[u u'] = I.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor

from dreamstill.black_box.interface import Interface

__all__ = ["estimated"]

STEP = 4
"""Levels, of 255, that each pixel moves by."""


def estimated(interface: Interface, inputs: Tensor, num_directions: int) -> Tensor:
    """Return logits (N, K) for inputs (N, C, H, W) whose gradient is estimated.

    Each image costs 1 + num_directions queries, in the forward pass. Pixels nearer than STEP to
    black or white are moved that far inward, so that none leaves the valid range. Raises what
    `Interface.ask` raises.
    """
    logits: Tensor = _ForwardDifferences.apply(  # type: ignore[no-untyped-call]
        inputs, interface, num_directions
    )
    return logits


class _ForwardDifferences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, interface: Interface, num_directions: int) -> Tensor:
        base = interface.spec.decode(inputs).clamp(STEP, 255 - STEP)
        signs = _directions(base, num_directions)
        moved = (base + STEP * signs).to(torch.uint8)
        logits = interface.ask(torch.cat([base[None], moved]).flatten(0, 1))
        at, around = logits[: len(base)], logits[len(base) :]
        ctx.save_for_backward(signs, around.view(num_directions, *at.shape) - at)
        ctx.std = inputs.new_tensor(interface.spec.std).view(1, -1, 1, 1)
        return at

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        signs, differences = ctx.saved_tensors
        slopes = (differences * gradients[0]).sum(2) / (STEP / 255)
        by_pixel = torch.einsum("mn,mnchw->nchw", slopes, signs.float()) / len(signs)
        by_input: Tensor = by_pixel * ctx.std  # pixels are inputs * std + mean
        return by_input, None, None


def _directions(base: Tensor, num: int) -> Tensor:
    """Return signs (num, N, C, H, W), int16, drawn from a seed that uint8 images (N, ...) give.

    So a run that is resumed asks about the same images again, which are in the cache.
    """
    seed = hashlib.blake2b(base.cpu().numpy().tobytes(), digest_size=7).digest()
    rng = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
    drawn = torch.randint(0, 2, (num, *base.shape), dtype=torch.int16, generator=rng)
    return (2 * drawn - 1).to(base.device)
