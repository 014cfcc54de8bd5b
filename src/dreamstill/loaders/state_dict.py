"""Open a state dict: find it in a checkpoint, and match its names to a network."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamstill.errors import ConfigError, TeacherError
from dreamstill.files.reading import StrPath, check_file, reading, understood
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.factory import build
from dreamstill.loaders.loaded import Loaded
from dreamstill.nn.copying import make_weights_plain

__all__ = ["filled", "find_state_dict", "fit_to", "load", "load_module", "load_weights"]

CHECKPOINTS = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params")
"""Usual keys of the state dict in a checkpoint."""
AVERAGES = ("model_ema", "ema", "state_dict_ema", "ema_state_dict", "module")
"""Keys of averaged weights or of their wrapper, used if no key of CHECKPOINTS is present."""
EXTRAS = ("n_averaged", "total_ops", "total_params", "initted", "step", "num_updates", "decay")
"""Last parts of names that weight averaging and operation counters add, to be dropped."""


def find_state_dict(loaded: Any, source: Any) -> dict[str, Tensor]:
    """Return the state dict in a loaded file, with sparse and quantized tensors made dense floats.

    Args:
        loaded: a state dict, a module, or a checkpoint with either as an entry.
        source: name of the file in messages.

    Raises:
        TeacherError: there is no state dict, a name is not a string, or a tensor is complex.

    """
    state = loaded.state_dict() if isinstance(loaded, nn.Module) else loaded
    for _ in range(3):  # averaged weights may be nested
        inside = _inside(state)
        if inside is None:
            break
        state = inside
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        names = f" of {', '.join(map(str, state))}" if isinstance(state, Mapping) else ""
        got = type(state).__name__ + names
        got = got if len(got) <= 200 else f"{got[:200]}..."
        raise TeacherError(f"{source} must hold a state dict of tensors; got {got}")
    if odd := [name for name in state if not isinstance(name, str)]:
        raise TeacherError(
            f"{source} names a tensor {odd[0]!r}: the names of a state dict are strings, as "
            "module.state_dict() gives them"
        )
    return {name: _dense(name, value, source) for name, value in state.items()}


def _inside(state: Any) -> Any:
    """Return the state dict in an entry of a checkpoint, or None if there is no such entry."""
    if isinstance(state, nn.Module):
        return state.state_dict()
    if not isinstance(state, Mapping):
        return None
    for name in (*CHECKPOINTS, *AVERAGES):
        if isinstance(state.get(name), Mapping | nn.Module):
            return state[name]
    return None


def _dense(name: str, value: Tensor, source: Any) -> Tensor:
    if value.is_complex():
        raise TeacherError(
            f"{name} in {source} is complex, and networks of complex weights are not supported"
        )
    if value.is_quantized:
        value = value.dequantize()
    return value.to_dense() if value.layout is not torch.strided else value


def fit_to(
    expected: Mapping[str, Tensor], state: dict[str, Tensor], source: Any, factory: str
) -> dict[str, Tensor]:
    """Match the names of a state dict to those of a network.

    Strips the prefixes of wrappers (DataParallel, torch.compile, Lightning, averages, a larger
    network), drops the entries in EXTRAS, and applies masks of torch.nn.utils.prune if the network
    has none.

    Args:
        expected: state dict of the network.
        state: state dict of the file.
        source: name of the file in messages.
        factory: name of the network in messages.

    Raises:
        TeacherError: a tensor is missing, unexpected or of another shape.

    """
    if not any(name.endswith("_mask") for name in expected):
        state = _masked(state)
    state = _without_wrapper(expected, state, source)
    for name in expected.keys() - state.keys():
        if name.endswith("num_batches_tracked"):  # absent before torch 0.4.1
            state[name] = expected[name]
    if missing := sorted(expected.keys() - state.keys()):
        raise TeacherError(f"{source} lacks {missing[0]!r}, which {factory} has")
    unexpected = sorted(state.keys() - expected.keys())
    if unexpected := [name for name in unexpected if name.rpartition(".")[2] not in EXTRAS]:
        raise TeacherError(f"{source} has {unexpected[0]!r}, which {factory} lacks")
    for name, wanted in expected.items():
        if state[name].shape != wanted.shape:
            raise TeacherError(
                f"{name} is {tuple(state[name].shape)} in {source} and {tuple(wanted.shape)} in "
                f"{factory}"
            )
    return {name: state[name] for name in expected}


def _masked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace `weight_orig` and `weight_mask` of torch.nn.utils.prune by their product."""
    masks = {
        name.removesuffix("_mask"): value for name, value in state.items() if name.endswith("_mask")
    }
    masks = {name: mask for name, mask in masks.items() if f"{name}_orig" in state}
    parts = {f"{name}{end}" for name in masks for end in ("_orig", "_mask")}
    return {name: value for name, value in state.items() if name not in parts} | {
        name: state[f"{name}_orig"] * mask for name, mask in masks.items()
    }


def _without_wrapper(
    expected: Iterable[str], state: dict[str, Tensor], source: Any
) -> dict[str, Tensor]:
    """Strip the prefix of wrappers; raise TeacherError if several networks match."""
    wanted = {name for name in expected if not name.endswith("num_batches_tracked")}
    if not wanted or wanted & state.keys():
        return state
    parts = r"(^|\.)(module|_orig_mod)(?=\.)"  # of DataParallel and torch.compile, anywhere
    bare = {re.sub(parts, "", name).lstrip("."): value for name, value in state.items()}
    for names in (state, bare):
        found = _prefixes(wanted, names)
        whole = sorted(prefix for prefix, count in found.items() if count == len(wanted))
        if len(whole) > 1:
            raise TeacherError(
                f"{source} holds several such networks, {' and '.join(whole)}: save the state "
                "dict of the one that is meant"
            )
        if whole or (names is bare and found):
            prefix = whole[0] if whole else max(found, key=lambda p: found[p])
            return {name.removeprefix(prefix): value for name, value in names.items()}
    return state


def _prefixes(wanted: set[str], names: Iterable[str]) -> Counter[str]:
    """Count, for each prefix with its final dot, the wanted names that follow it."""
    found = Counter[str]()
    for name in names:
        cuts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        found.update(name[:cut] for cut in cuts if name[cut:] in wanted)
    return found


def load_weights(path: StrPath, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Load a state dict from a .safetensors or torch file.

    Args:
        path: file with a state dict, or a torch checkpoint with one as an entry.
        allow_pickle: run the code in a full pickle. Do not set it for a file you do not trust.

    Raises:
        TeacherError: the file is missing or damaged, or holds no state dict.

    """
    path = Path(path)
    if path.suffix == ".safetensors":
        with reading(path, TeacherError, "is not a whole safetensors file", what="weights"):
            return load_file(path)
    consent = "save a state dict, or consent to run its code with allow_pickle"
    wrong = "does not load as plain weights"
    with reading(path, TeacherError, wrong, what="weights", instead=consent):
        state = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
        return find_state_dict(state, path)


def load(file: TeacherFile, card: dict[str, Any]) -> Loaded:
    """Open a state dict with the factory that its card names."""
    check_file(file.weights, TeacherError, "weights")
    if "factory" not in card:
        raise ConfigError(
            f"no factory for {file.weights}: give one as module:function, or a card beside the "
            "weights"
        )
    factory: str = card["factory"]
    module = load_module(factory, file.weights, allow_pickle=file.allow_pickle)
    return Loaded(module, factory=factory)


def load_module(factory: str, weights: StrPath, *, allow_pickle: bool = False) -> nn.Module:
    """Build a network with `module:function` and load its weights as float32.

    Weights that are computed before each pass, as by weight_norm, become plain parameters. Raises
    TeacherError if the factory fails, or names, shapes or values of the weights are wrong.
    """
    module = build(factory)
    return filled(module, load_weights(weights, allow_pickle=allow_pickle), weights, factory)


def filled(
    module: nn.Module, state: dict[str, Tensor], weights: StrPath, factory: str
) -> nn.Module:
    """Return a network as float32 with the weights of a state dict; see `load_module`."""
    with understood(weights, TeacherError, f"does not load into {factory}"):
        _fill(module, state, weights, factory)
    make_weights_plain(module)
    return module.float()


def _fill(module: nn.Module, state: dict[str, Tensor], weights: StrPath, factory: str) -> None:
    """Load a state dict into a module; raise TeacherError if a name, shape or value is wrong."""
    state = fit_to(module.state_dict(), state, weights, factory)
    parameters = dict(module.named_parameters())
    for name, value in state.items():
        values, counts = value.float(), name in parameters or ".running_" in f".{name}"
        if (~values.isfinite() if counts else values.isnan()).any():  # a mask may hold -inf
            raise TeacherError(f"{name} in {weights} has values that are not finite")
        if name.endswith("running_var") and (values < 0).any():
            raise TeacherError(
                f"{name} in {weights} is a variance, and below 0: {values.min():.3g}"
            )
    module.load_state_dict(state)
