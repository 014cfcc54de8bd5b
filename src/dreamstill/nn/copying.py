"""Copy networks, and turn weights that are computed before each pass into plain parameters."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dreamstill.errors import TeacherError, first_line
from dreamstill.nn.hooks import eval_mode

__all__ = ["copy_network", "is_hooked", "make_weights_plain"]


def copy_network(network: nn.Module) -> nn.Module:
    """Return an independent copy of a network.

    Results of a forward pass that the network keeps (`self.features = x`) are detached in the copy:
    `copy.deepcopy` refuses tensors that are part of a gradient's graph.

    Raises:
        TeacherError: the network holds something that cannot be copied, such as a lock, or a layer
            calls a function that another layer's forward is caught in.

    """
    for name, module in network.named_modules():
        own = vars(module).get("forward")
        if isinstance(own, FunctionType) and own.__closure__:  # which deepcopy leaves as it is
            raise TeacherError(
                f"{name or type(network).__name__} has been given a forward that would call the "
                "old layer from a copy: write a subclass with that forward"
            )
    kept = {id(value): value.detach().clone() for value in _results_in(network, set())}
    try:
        return copy.deepcopy(network, dict[int, Any](kept))
    except Exception as error:  # the network's own attributes decide what is raised
        raise TeacherError(
            f"{type(network).__name__} cannot be copied ({first_line(error)}): keep what cannot be "
            "copied out of its attributes"
        ) from error


def _results_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Find the tensors with a gradient's history below an object's attributes and containers."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield value
    elif isinstance(value, dict):
        for part in list(value.values()):
            yield from _results_in(part, seen)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _results_in(part, seen)
    elif not isinstance(value, type) and hasattr(value, "__dict__"):
        yield from _results_in(vars(value), seen)


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its class: forward hooks, or a forward of its own.

    Such a layer cannot be replaced by one that computes the same from its weight and its input.
    """
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def make_weights_plain(network: nn.Module, inputs: Tensor | None = None) -> None:
    """Make weights that are computed before each pass plain parameters, in place.

    Covers parametrizations, weight_norm, spectral_norm, the masks of torch.nn.utils.prune, and
    forward pre-hooks of any other origin that set a weight, such as an equalized learning rate.
    What they were computed from is removed: changing a network means changing its weights.

    Args:
        network: of which no computed weight is left.
        inputs: (N, C, H, W) in its input space, N >= 2; shown to it where it has pre-hooks. None:
            those are left as they are.

    Raises:
        TeacherError: a pre-hook sets a weight and changes the layer's input too, or a weight
            depends on the input.

    """
    with eval_mode(network), torch.no_grad():  # in train mode, spectral_norm takes steps
        wanted = None if inputs is None else network(inputs.flip(0, -1))
        _apply_known(network)
        if inputs is None or wanted is None:
            return
        _apply_own_hooks(network, inputs)
        if not torch.allclose(network(inputs.flip(0, -1)), wanted, rtol=1e-3, atol=1e-4):
            raise TeacherError(
                f"{type(network).__name__} computes weights before each pass that depend on its "
                "input: such a network cannot be compressed"
            )


def _apply_known(network: nn.Module) -> None:
    """Make the weights plain that torch's own utilities compute."""
    for module in list(network.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
        loading: dict[int, Any] = module._load_state_dict_pre_hooks
        for key, hook in list(loading.items()):
            if getattr(hook.hook, "__qualname__", "").startswith("weight_norm."):  # no pickle
                del loading[key]
        for computing in list(module._forward_pre_hooks.values()):
            if isinstance(computing, WeightNorm):
                nn.utils.remove_weight_norm(module, computing.name)
            elif isinstance(computing, SpectralNorm):
                nn.utils.remove_spectral_norm(module, computing.name)
            elif isinstance(computing, prune.BasePruningMethod):
                prune.remove(module, computing._tensor_name)


def _apply_own_hooks(network: nn.Module, inputs: Tensor) -> None:
    """Run each pre-hook once, keep the weights that it sets, and take it away."""
    with _watched_hooks(network) as watches:
        if not watches:
            return
        network(inputs)
    for watch in watches:
        if watch.weights and watch.changes_input:
            raise TeacherError(
                f"a forward pre-hook of {watch.name} sets its weight and changes its input: make "
                "the weight a plain parameter first"
            )
        if watch.weights:
            watch.remove()
        for owner, name in watch.weights:
            _register(owner, name)


def _register(owner: nn.Module, name: str) -> None:
    """Make a tensor that is a mere attribute a parameter; drop what it was computed from."""
    if name in owner._parameters:
        return  # changed where it is
    value = getattr(owner, name).detach().clone()
    delattr(owner, name)
    for source in [*owner._parameters, *owner._buffers]:
        if source.startswith(f"{name}_"):
            delattr(owner, source)
    owner.register_parameter(name, nn.Parameter(value, requires_grad=False))


class _Watch:
    """Stand in for a pre-hook, and note which weights it sets."""

    def __init__(self, name: str, module: nn.Module, key: int) -> None:
        self.name, self.module, self.key = name or type(module).__name__, module, key
        self.hook: Callable[..., Any] = module._forward_pre_hooks[key]
        self.weights: list[tuple[nn.Module, str]] = []
        self.changes_input = False

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        """Run the hook on spoilt weights, to see which it sets, then on the right ones."""
        right = [(part, name, value, value.detach().clone()) for part, name, value in self._all()]
        for _, _, value, kept in right:
            value.data = kept + 1
        self.hook(module, *given)
        now = {(part, name): value for part, name, value in self._all()}
        for part, name, value, kept in right:
            changed = now.pop((part, name), None)
            if changed is not value or not torch.equal(value, kept + 1):
                self._note(part, name)
            value.data = kept
            setattr(part, name, value)
        for part, name in now:  # set for the first time
            self._note(part, name)
        result = self.hook(module, *given)
        self.changes_input |= result is not None
        return result

    def _note(self, owner: nn.Module, name: str) -> None:
        if (owner, name) not in self.weights:
            self.weights.append((owner, name))

    def _all(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Yield the weights of the module and its parts: parameters, and what stands in for one."""
        for part in self.module.modules():
            for name, value in [*part._parameters.items(), *vars(part).items()]:
                sources = (n for n in [*part._parameters, *part._buffers] if n != name)
                stands_in = name in ("weight", "bias") or any(
                    source.startswith(f"{name}_") for source in sources
                )
                if isinstance(value, Tensor) and (name in part._parameters or stands_in):
                    yield part, name, value

    def remove(self) -> None:
        """Take the hook off its module."""
        self.module._forward_pre_hooks.pop(self.key, None)
        self.module._forward_pre_hooks_with_kwargs.pop(self.key, None)


@contextmanager
def _watched_hooks(network: nn.Module) -> Iterator[list[_Watch]]:
    """Put a watch in the place of every forward pre-hook while the body runs."""
    watches = []
    with ExitStack() as stack:
        for name, module in network.named_modules():
            for key in list(module._forward_pre_hooks):
                watch = _Watch(name, module, key)
                stack.callback(module._forward_pre_hooks.__setitem__, key, watch.hook)
                module._forward_pre_hooks[key] = watch
                watches.append(watch)
        yield watches
