"""Record the inputs of layers during a forward pass; always unhooked on leaving."""

from collections.abc import Callable, Mapping
from types import TracebackType

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Probe", "batch_norm_layers"]


class Probe:
    """Context manager that keeps the first positional input of each named layer.

    A layer that runs several times in one forward pass keeps its last input.

    >>> import torch
    >>> layer = nn.Linear(2, 1)
    >>> with Probe({"layer": layer}) as probe:
    ...     _ = nn.Sequential(layer)(torch.tensor([[1.0, 2.0]]))
    >>> probe.inputs["layer"].tolist()
    [[1.0, 2.0]]
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.inputs: dict[str, Tensor] = {}
        self._layers = layers

    def __enter__(self) -> "Probe":
        self._handles = [
            layer.register_forward_pre_hook(self._recorder(name))
            for name, layer in self._layers.items()
        ]
        return self

    def _recorder(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.inputs[name] = args[0]

        return record

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()


def batch_norm_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm layers that carry running statistics, by name, in definition order."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }
