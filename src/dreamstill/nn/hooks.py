"""Record the inputs and outputs of layers during a forward pass, with hooks that are removed."""

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
    """Context manager that records the first input and the output of each layer as float32.

    Entries are in the order in which the layers finish; the last call of a layer counts.

    Args:
        layers: layers by name.
        copy: record copies of outputs, which the network may later change in place.

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
    """Context manager that records the input of each ReLU or variant, as module or function.

    `inputs` holds float32 copies by call number: "0", "1", ...

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
        """Record a copy of a ReLU's first argument; call every function unchanged."""
        kwargs = kwargs or {}
        if func in RELUS:
            self.inputs[str(len(self.inputs))] = first_input(args, kwargs).clone().float()
        return func(*args, **kwargs)


class BeforeRelu(TorchFunctionMode):
    """Context manager that records the pre-activation of each layer: the input of its ReLU.

    Normalization, pooling, dropout and reshaping may lie between a layer and its ReLU; without a
    ReLU, the layer's own output is recorded. `outputs` holds float32 copies by name, in the order
    in which the layers finish; `rectified` holds the names of layers with a ReLU, ReLU6 or clamp at
    0, but no leaky variant. The last call of a layer counts.

    Args:
        layers: layers by name.

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
        # by id; holding the tensor prevents reuse of its id
        self._source: dict[int, tuple[Tensor, str]] = {}

    def __enter__(self) -> "BeforeRelu":
        """Register the hooks and start to intercept torch functions."""
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
        """Record a copy of a ReLU's input; call every function unchanged."""
        kwargs, called = kwargs or {}, getattr(func, "__name__", "")
        given, name = self._source.get(id(first_input(args, kwargs)), (None, ""))
        if given is None:
            return func(*args, **kwargs)
        if called in RECTIFIERS and _rectifies(func, args, kwargs):
            self.outputs[name] = _float32(given.clone())
            self.rectified.add(name)
            del self._source[id(given)]  # an in-place ReLU overwrites it
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
        """Remove the hooks."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._source.clear()
        for handle in self._handles:
            handle.remove()


def _rectifies(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a function called with these arguments maps negative values to 0."""
    below = torch.full_like(first_input(args, kwargs).detach(), -1.0)
    rest = kwargs if args else kwargs | {"input": below}
    return not func(*((below, *args[1:]) if args else ()), **rest).any()


@contextmanager
def watched(
    layers: Mapping[str, nn.Module], look: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call look(name, input, output) right after each call of a layer.

    Unlike `Probe`, this sees every call, before later operations change tensors in place.
    """

    def hook(name: str, layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        look(name, first_input(args, kwargs), output)

    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(partial(hook, name), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first positional argument of a call, or the keyword `input`, or None."""
    return args[0] if args else kwargs.get("input")


def _float32(value: Any) -> Any:
    """Convert a floating-point tensor to float32; return any other value unchanged."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def batch_norm_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return BatchNorm layers with running statistics, by name, in order of definition."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Set a module to eval mode inside the context; restore the mode of each submodule after."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def probed_at_once(shape: tuple[int, int, int]) -> int:
    """Return the batch size for images (C, H, W) while the activations of all layers are kept.

    It is 256 at most and smaller for images larger than CIFAR's: the activations of a ResNet-50
    take 45 MB per image of 224 pixels.

    >>> probed_at_once((1, 28, 28)), probed_at_once((3, 224, 224))
    (256, 5)
    """
    channels, height, width = shape
    return max(1, min(256, 256 * 3 * 32 * 32 // (channels * height * width)))


def some_of(images: Tensor, num: int) -> Tensor:
    """Return `num` of the images (N, ...), drawn with a fixed seed, or all in order if N <= num.

    The first images would not do: sets are often sorted by class.

    >>> len(set(some_of(torch.arange(9), 3).tolist())), some_of(torch.arange(2), 3).tolist()
    (3, [0, 1])
    """
    if len(images) <= num:
        return images
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:num]]


def shown_at_once(shape: tuple[int, int, int]) -> int:
    """Return the batch size for images (C, H, W) when no activations are kept.

    >>> shown_at_once((1, 28, 28)), shown_at_once((3, 224, 224))
    (500, 40)
    """
    return min(500, 8 * probed_at_once(shape))
