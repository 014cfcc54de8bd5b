"""Find the state dict in a checkpoint, make its tensors plain, and fit its names to a network."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamstill.errors import TeacherError
from dreamstill.files.reading import StrPath, reading, understood
from dreamstill.loaders.factory import build
from dreamstill.nn.copying import make_weights_plain

__all__ = ["find_state_dict", "fit_to", "load_module", "load_weights"]

CHECKPOINTS = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params")
"""Names under which torch files hold a state dict among other things."""
AVERAGES = ("model_ema", "ema", "state_dict_ema", "ema_state_dict", "module")
"""Names of averaged weights, or of their wrapper: taken where there are no others."""
EXTRAS = ("n_averaged", "total_ops", "total_params", "initted", "step", "num_updates", "decay")
"""Last parts of names that averaging and counting of operations add, and no layer has."""


def find_state_dict(loaded: Any, source: Any) -> dict[str, Tensor]:
    """Find the state dict in what a file held: itself, a module's, or an entry of a checkpoint.

    Sparse and quantized tensors become dense ones of floats.

    Args:
        loaded: what was loaded.
        source: what messages call the file.

    Raises:
        TeacherError: there is none, or a name or a tensor in it is of no use to a network.

    """
    state = loaded.state_dict() if isinstance(loaded, nn.Module) else loaded
    for _ in range(3):  # an average may be wrapped once more
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
    """The state dict in an entry of a checkpoint; None where this is one, or has none."""
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
    """Bring the names of a state dict to those that a network has.

    Wrappers put something before every name (DataParallel, torch.compile, Lightning, averages, a
    network that was part of a larger one); counters of averaging and of operations are dropped, and
    masks of torch.nn.utils.prune applied where the network has none.

    Args:
        expected: the network's own state dict.
        state: of the file.
        source: what messages call the file.
        factory: what they call the network.

    Raises:
        TeacherError: a tensor is missing, unexpected, of another shape, or not finite.

    """
    if not any(name.endswith("_mask") for name in expected):
        state = _masked(state)
    state = _without_wrapper(expected, state, source)
    for name in expected.keys() - state.keys():
        if name.endswith("num_batches_tracked"):  # files of before torch 0.4.1 have none
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
    """Apply the masks of torch.nn.utils.prune: `weight_orig` and `weight_mask` become `weight`."""
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
    """Take off what stands before the names of the network that is meant."""
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
    """By what stands before a wanted name, a dot at its end, how many wanted names it precedes."""
    found = Counter[str]()
    for name in names:
        cuts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        found.update(name[:cut] for cut in cuts if name[cut:] in wanted)
    return found


def load_weights(path: StrPath, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from a torch file.

    Args:
        path: the file. A torch file may hold the state dict itself, or an entry of a checkpoint.
        allow_pickle: run the code that a full pickle carries. Never for a file you do not trust.

    Raises:
        TeacherError: there is no such file, or it holds no state dict.

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


def load_module(factory: str, weights: StrPath, *, allow_pickle: bool = False) -> nn.Module:
    """Build by `module:function` and load weights; names, shapes and finiteness are checked.

    Weights are float32 whatever the file has, and those that torch's utilities compute, as
    weight_norm does, become plain.

    Raises:
        TeacherError: the factory fails, or the file is not weights of what it builds.

    """
    module = build(factory)
    state = load_weights(weights, allow_pickle=allow_pickle)
    with understood(weights, TeacherError, f"does not load into {factory}"):
        _fill(module, state, weights, factory)
    make_weights_plain(module)
    return module.float()


def _fill(module: nn.Module, state: dict[str, Tensor], weights: StrPath, factory: str) -> None:
    """Load a state dict whose names, shapes and values are checked."""
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
