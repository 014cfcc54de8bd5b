"""Replace convolutions that pad their input in code of their own by plain ones.

TensorFlow's padding `same` is not symmetric where the stride is 2, and networks that came from it,
such as EfficientNets, have a subclass of nn.Conv2d for it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from dreamstill.nn.copying import is_hooked
from dreamstill.nn.hooks import eval_mode, first_input, watched

__all__ = ["copy_padding", "make_padding_plain", "pad_around"]

Around = tuple[int, int, int, int]
"""Rows and columns of zeros left, right, above and below a map."""


class _Convolved(TorchFunctionMode):
    """Context manager that records what each call of F.conv2d is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call every function unchanged."""
        if func is F.conv2d:
            self.inputs.append(first_input(args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def make_padding_plain(network: nn.Module, inputs: Tensor) -> None:
    """Replace subclasses of nn.Conv2d that pad with zeros and convolve, in place.

    Others, such as those that change their weight first, stay; so do those that pad maps of several
    sizes differently.

    Args:
        network: network to modify.
        inputs: (N, C, H, W) in the input space.

    """
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and type(layer) is not nn.Conv2d and not is_hooked(layer)
    }
    if not layers:
        return
    maps = {name: dict[torch.Size, Tensor]() for name in layers}
    with eval_mode(network), watched(layers, lambda name, x, _: maps[name].update({x.shape: x})):
        network(inputs)
    for name, layer in layers.items():
        plain = _plain(layer, list(maps[name].values()))
        if plain is not None:
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, plain)


def _plain(layer: nn.Conv2d, maps: list[Tensor]) -> nn.Conv2d | None:
    """Return a plain convolution that does the same with maps (N, C, H, W) of these sizes."""
    rng = torch.Generator().manual_seed(0)  # 1 to 2: no pixel is taken for padding
    maps = [(1 + torch.rand(x.shape, generator=rng)).to(x) for x in maps]
    found = {_around(layer, x) for x in maps}
    around = found.pop() if len(found) == 1 else None
    if around is None:
        return None
    kernel: Any = layer.kernel_size
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, kernel, device="meta")
    plain.stride, plain.dilation = tuple(layer.stride), tuple(layer.dilation)
    plain.groups = layer.groups
    plain.weight, plain.bias = layer.weight, layer.bias
    plain.train(layer.training)
    pad_around(plain, around)
    same = all(torch.allclose(plain(x), layer(x), rtol=1e-4, atol=1e-5) for x in maps)
    return plain if same else None


def _around(layer: nn.Conv2d, x: Tensor) -> Around | None:
    """Return the padding that a layer gives a map of positive pixels, None if that is unclear."""
    with _Convolved() as seen:
        layer(x)
    if len(seen.inputs) != 1 or isinstance(layer.padding, str):
        return None
    padded, height, width = seen.inputs[0], *x.shape[2:]
    rows, columns = (padded.abs().sum(dims).nonzero() for dims in ((0, 1, 3), (0, 1, 2)))
    above, left = int(rows.min()), int(columns.min())
    below, right = (padded.shape[2] - height - above, padded.shape[3] - width - left)
    own_height, own_width = layer.padding
    return left + own_width, right + own_width, above + own_height, below + own_height


def pad_around(layer: _ConvNd, around: Sequence[int]) -> None:
    """Set the padding of a plain convolution, as torch itself does for padding="same".

    Args:
        layer: convolution of any number of axes; changed.
        around: zeros before and behind the last axis, then the one before it, as for F.pad.

    """
    before, behind = tuple(around[::2]), tuple(around[1::2])
    layer.padding = before[::-1]
    layer._reversed_padding_repeated_twice = [*around]
    if before != behind:
        layer.padding_mode = "constant"  # type: ignore[assignment]  # so that they are read


def copy_padding(layer: nn.Conv2d, new: nn.Conv2d) -> None:
    """Give a convolution the padding of another."""
    new.padding, new.padding_mode = layer.padding, layer.padding_mode
    new._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice
