"""Copy networks, and turn weights that are computed before each forward pass into parameters."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from dreamstill.output_spec import logits_of

__all__ = [
    "as_its_class",
    "copy_network",
    "is_hooked",
    "like_known",
    "make_linear_plain",
    "make_output_plain",
    "make_weights_plain",
]


def copy_network(network: nn.Module) -> nn.Module:
    """Return an independent copy of a network.

    Results of a forward pass that the network stores (`self.features = x`) are detached in the
    copy, because `copy.deepcopy` rejects tensors with a gradient history.

    Raises:
        TeacherError: an attribute cannot be copied, such as a lock, or a layer's `forward` was
            replaced by a closure, which would still call the original layer.

    """
    for name, module in network.named_modules():
        own = vars(module).get("forward")
        if isinstance(own, FunctionType) and own.__closure__:  # deepcopy does not copy closures
            raise TeacherError(
                f"{name or type(network).__name__} has been given a forward that would call the "
                "old layer from a copy: write a subclass with that forward"
            )
    kept = {id(value): value.detach().clone() for value in _results_in(network, set())}
    try:
        return copy.deepcopy(network, dict[int, Any](kept))
    except Exception as error:  # user attributes may raise anything
        raise TeacherError(
            f"{type(network).__name__} cannot be copied ({first_line(error)}): keep what cannot be "
            "copied out of its attributes"
        ) from error


def _results_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield all tensors with a gradient history in an object's attributes and containers."""
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
    """Return whether a module has forward hooks or a `forward` that was replaced on the instance.

    Such a layer cannot be replaced by one that computes only with its weight and input.
    """
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def make_output_plain(network: nn.Module, inputs: Tensor) -> None:
    """Let a network return its logits alone where it returns them among others, in place.

    torchvision's segmentation networks return a table, which no file has. The network keeps its
    layers and their names.

    Args:
        network: network to modify.
        inputs: (N, C, H, W) in the input space.

    """
    with eval_mode(network), torch.no_grad():
        if not isinstance(network(inputs), Mapping):
            return
    network.__class__ = _returning_logits(type(network))


@contextmanager
def as_its_class(network: nn.Module) -> Iterator[None]:
    """Let a network be of the class that its author wrote in the body, as files name it."""
    kind = type(network)
    if RETURNS_LOGITS in vars(kind):
        network.__class__ = kind.__base__  # type: ignore[assignment]
    try:
        yield
    finally:
        network.__class__ = kind


def like_known(network: nn.Module, known: Sequence[nn.Module]) -> nn.Module:
    """Let a network that was read from a file return its logits alone, as one of those known."""
    for other in known:
        if RETURNS_LOGITS in vars(type(other)) and type(other).__base__ is type(network):
            network.__class__ = type(other)
    return network


RETURNS_LOGITS = "_dreamstill_returns_logits"
"""Attribute of the classes that `make_output_plain` makes."""


def _returning_logits(whole: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass that returns the logits alone."""

    def forward(self: nn.Module, inputs: Tensor) -> Any:
        return logits_of(whole.forward(self, inputs))

    def deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        network = whole.__new__(whole)
        memo[id(self)] = network
        vars(network).update(copy.deepcopy(vars(self), memo))
        network.__class__ = type(self)
        return network

    members = {
        "forward": forward,
        "__deepcopy__": deepcopy,
        "__module__": whole.__module__,
        RETURNS_LOGITS: True,
    }
    return type(whole.__name__, (whole,), members)


def make_weights_plain(network: nn.Module, inputs: Tensor | None = None) -> None:
    """Turn weights that are computed before each forward pass into plain parameters, in place.

    Covers parametrizations, weight_norm, spectral_norm, the masks of torch.nn.utils.prune, and
    other forward pre-hooks that set a weight, such as an equalized learning rate. The tensors that
    the weights were computed from are removed.

    Args:
        network: network to modify.
        inputs: (N, C, H, W) in the input space, N >= 2, to run other pre-hooks on. None: other
            pre-hooks are kept.

    Raises:
        TeacherError: a pre-hook sets a weight and also changes the layer's input, or a weight
            depends on the input.

    """
    with eval_mode(network), torch.no_grad():  # in train mode, spectral_norm updates its state
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


@torch.no_grad()
def make_linear_plain(network: nn.Module, inputs: Tensor) -> None:
    """Replace subclasses of nn.Linear that do what nn.Linear does, as timm's, in place.

    Args:
        network: network to modify.
        inputs: (N, C, H, W) in the input space.

    """
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
        and not type(layer).__module__.startswith("torch.")
        and isinstance(layer.weight, nn.Parameter)
        and not is_hooked(layer)
    }
    if not layers:
        return
    same = dict[str, bool]()

    def looking(name: str) -> Callable[..., None]:
        def look(layer: nn.Module, given: tuple[Any, ...], named: Any, output: Any) -> None:
            try:
                plain = not named and torch.equal(nn.Linear.forward(layer, *given), output)  # type: ignore[arg-type]
            except (TypeError, RuntimeError, AttributeError):  # it takes or returns something else
                plain = False
            same[name] = same.get(name, True) and plain

        return look

    with eval_mode(network), ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_hook(looking(name), with_kwargs=True)
            stack.callback(hook.remove)
        network(inputs)
    for name, layer in layers.items():
        if same.get(name):
            plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
            plain.weight, plain.bias = layer.weight, layer.bias
            network.set_submodule(name, plain.train(layer.training))


def _apply_known(network: nn.Module) -> None:
    """Turn weights that torch's own utilities compute into parameters."""
    for module in list(network.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
        loading: dict[int, Any] = module._load_state_dict_pre_hooks
        for key, hook in list(loading.items()):
            # a hook that cannot be pickled
            if getattr(hook.hook, "__qualname__", "").startswith("weight_norm."):
                del loading[key]
        for computing in list(module._forward_pre_hooks.values()):
            if isinstance(computing, WeightNorm):
                nn.utils.remove_weight_norm(module, computing.name)
            elif isinstance(computing, SpectralNorm):
                nn.utils.remove_spectral_norm(module, computing.name)
            elif isinstance(computing, prune.BasePruningMethod):
                prune.remove(module, computing._tensor_name)


def _apply_own_hooks(network: nn.Module, inputs: Tensor) -> None:
    """Run each other pre-hook once, keep the weights that it sets, and remove it."""
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
    """Turn a tensor attribute into a parameter; remove the tensors that it was computed from."""
    if name in owner._parameters:
        return  # changed in place
    value = getattr(owner, name).detach().clone()
    delattr(owner, name)
    for source in [*owner._parameters, *owner._buffers]:
        if source.startswith(f"{name}_"):
            delattr(owner, source)
    owner.register_parameter(name, nn.Parameter(value, requires_grad=False))


class _Watch:
    """Wrapper of a pre-hook that records which weights it sets."""

    def __init__(self, name: str, module: nn.Module, key: int) -> None:
        self.name, self.module, self.key = name or type(module).__name__, module, key
        self.hook: Callable[..., Any] = module._forward_pre_hooks[key]
        self.weights: list[tuple[nn.Module, str]] = []
        self.changes_input = False

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        """Run the hook on perturbed weights to see which it sets, then on the original ones."""
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
        """Yield the parameters of the module and its parts, and tensors computed from them."""
        for part in self.module.modules():
            for name, value in [*part._parameters.items(), *vars(part).items()]:
                sources = (n for n in [*part._parameters, *part._buffers] if n != name)
                stands_in = name in ("weight", "bias") or any(
                    source.startswith(f"{name}_") for source in sources
                )
                if isinstance(value, Tensor) and (name in part._parameters or stands_in):
                    yield part, name, value

    def remove(self) -> None:
        """Remove the hook from its module."""
        self.module._forward_pre_hooks.pop(self.key, None)
        self.module._forward_pre_hooks_with_kwargs.pop(self.key, None)


@contextmanager
def _watched_hooks(network: nn.Module) -> Iterator[list[_Watch]]:
    """Replace every forward pre-hook by a `_Watch` inside the context."""
    watches = []
    with ExitStack() as stack:
        for name, module in network.named_modules():
            for key in list(module._forward_pre_hooks):
                watch = _Watch(name, module, key)
                stack.callback(module._forward_pre_hooks.__setitem__, key, watch.hook)
                module._forward_pre_hooks[key] = watch
                watches.append(watch)
        yield watches
