"""Record what enters and leaves layers during a forward pass; always unhooked on leaving."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from dreamstill.nn.op_sets import NORMS, POOLS, RECTIFIERS, RELUS, SHAPES

__all__ = [
    "BeforeRelu",
    "Probe",
    "ReluInputs",
    "batch_norm_layers",
    "eval_mode",
    "first_input",
    "probed_at_once",
    "shown_at_once",
    "some_of",
    "watched",
]


class Probe:
    """Context manager that keeps the first input and the output of each named layer.

    As float32, in the order in which the layers finish. A layer that runs several times in one
    forward pass keeps what it last had.

    Args:
        layers: by the names to record them under.
        copy: record outputs as copies, for networks that go on to change them in place.


    Example:
    >>> import torch
    >>> layer = nn.Linear(2, 1)
    >>> with Probe({"layer": layer}) as probe:
    ...     _ = nn.Sequential(layer)(torch.tensor([[1.0, 2.0]]))
    >>> probe.inputs["layer"].tolist()
    [[1.0, 2.0]]

    """

    def __init__(self, layers: Mapping[str, nn.Module], *, copy: bool = False) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._layers, self._copy = layers, copy

    def __enter__(self) -> "Probe":
        self._handles = [
            layer.register_forward_hook(self._recorder(name), with_kwargs=True)
            for name, layer in self._layers.items()
        ]
        return self

    def _recorder(self, name: str) -> Callable[[nn.Module, Any, Any, Tensor], None]:
        def record(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            copied = self._copy and isinstance(output, Tensor)
            self.outputs[name] = _float32(output.clone() if copied else output)
            if (given := first_input(args, kwargs)) is not None:
                self.inputs[name] = _float32(given)

        return record

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()


class ReluInputs(TorchFunctionMode):
    """Context manager that keeps what enters each ReLU and its kin, be it a module or a call.

    `inputs` has copies as float32, by number, in the order of the calls.

    Example:
    >>> with ReluInputs() as relus:
    ...     _ = nn.ReLU()(torch.tensor([-1.0, 2.0])) + torch.tensor([3.0]).relu()
    >>> {name: entered.tolist() for name, entered in relus.inputs.items()}
    {'0': [-1.0, 2.0], '1': [3.0]}

    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Keep a copy of the first argument of a ReLU; call every function as it is."""
        kwargs = kwargs or {}
        if func in RELUS:
            self.inputs[str(len(self.inputs))] = first_input(args, kwargs).clone().float()
        return func(*args, **kwargs)


class BeforeRelu(TorchFunctionMode):
    """Context manager that keeps what leaves each named layer, as the ReLU behind it takes it.

    Where normalization, pooling, dropout or another shape stands between a layer and its ReLU, it
    is what leaves these. A layer without a ReLU behind it keeps its own output. `outputs` has
    copies as float32, by name, in the order in which the layers finish; `rectified` names those
    with a ReLU (or ReLU6, or a clamp at 0; not its leaky kin). A layer that runs several times in
    one forward pass keeps what it last had.

    Args:
        layers: by the names to record them under.

    Example:
    >>> layer = nn.Linear(1, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0], [-1.0]])), layer.bias.data.zero_()
    >>> with BeforeRelu({"layer": layer}) as before:
    ...     _ = nn.Sequential(layer, nn.ReLU(inplace=True))(torch.tensor([[3.0]]))
    >>> before.outputs["layer"].tolist(), before.rectified
    ([[3.0, -3.0]], {'layer'})

    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.outputs: dict[str, Tensor] = {}
        self.rectified: set[str] = set()
        self._layers = layers
        # by id; the tensor is held, so that no other can have its id
        self._source: dict[int, tuple[Tensor, str]] = {}

    def __enter__(self) -> "BeforeRelu":
        """Hook the layers and watch what is called on what they put out."""
        self._handles = [
            layer.register_forward_hook(partial(self._record, name))
            for name, layer in self._layers.items()
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def _record(self, name: str, layer: nn.Module, args: Any, output: Any) -> None:
        self.outputs[name] = _float32(output.clone())
        self._source[id(output)] = output, name

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Keep a copy of what enters a ReLU; call every function as it is."""
        kwargs, called = kwargs or {}, getattr(func, "__name__", "")
        given, name = self._source.get(id(first_input(args, kwargs)), (None, ""))
        if given is None:
            return func(*args, **kwargs)
        if called in RECTIFIERS and _rectifies(func, args, kwargs):
            self.outputs[name] = _float32(given.clone())
            self.rectified.add(name)
            del self._source[id(given)]  # it may be overwritten in place
        result = func(*args, **kwargs)
        if called in NORMS + SHAPES or called.rstrip("123d") in POOLS:
            self._source[id(result)] = result, name
        return result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unhook the layers."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._source.clear()
        for handle in self._handles:
            handle.remove()


def _rectifies(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function that is called with `args` makes 0 of what is below 0."""
    below = torch.full_like(first_input(args, kwargs).detach(), -1.0)
    rest = kwargs if args else kwargs | {"input": below}
    return not func(*((below, *args[1:]) if args else ()), **rest).any()


@contextmanager
def watched(
    layers: Mapping[str, nn.Module], look: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call `look` with name, input and output after each run of a layer, at once.

    For what cannot wait for the end of the pass: what follows a layer may change both in place, and
    a layer may run more than once.
    """

    def hook(name: str, layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        look(name, first_input(args, kwargs), output)

    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(partial(hook, name), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a layer was called with, by place or as `input`; None where neither."""
    return args[0] if args else kwargs.get("input")


def _float32(value: Any) -> Any:
    """A tensor of floats as float32; anything else, as blocks give and take it, as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def batch_norm_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm layers that carry running statistics, by name, in definition order."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Run the body with the module in eval mode; each part's own mode comes back on leaving."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def probed_at_once(shape: tuple[int, int, int]) -> int:
    """Images (C, H, W) to show at once while the activations of all layers are kept.

    256 of CIFAR's size, fewer of larger ones: the activations of a ResNet-50 are 45 MB an image of
    224 pixels.

    >>> probed_at_once((1, 28, 28)), probed_at_once((3, 224, 224))
    (256, 5)
    """
    channels, height, width = shape
    return max(1, min(256, 256 * 3 * 32 * 32 // (channels * height * width)))


def some_of(images: Tensor, num: int) -> Tensor:
    """Of images (N, ...), `num` drawn by chance, always the same, or all in their order if fewer.

    Not the first: sets are often sorted by class.

    >>> len(set(some_of(torch.arange(9), 3).tolist())), some_of(torch.arange(2), 3).tolist()
    (3, [0, 1])
    """
    if len(images) <= num:
        return images
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:num]]


def shown_at_once(shape: tuple[int, int, int]) -> int:
    """Images (C, H, W) to show at once where no activation is kept.

    >>> shown_at_once((1, 28, 28)), shown_at_once((3, 224, 224))
    (500, 40)
    """
    return min(500, 8 * probed_at_once(shape))
