"""Networks kept whole in files, and read back with classes of known origin alone."""

import io
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from dreamstill.errors import RunError, TeacherError, first_line
from dreamstill.folder import write_atomically

__all__ = ["check_keepable", "read_network", "save_network"]


def check_keepable(networks: Sequence[nn.Module]) -> None:
    """TeacherError where a network cannot be kept in a file.

    Its parts must be of torch.nn, of this package or of the packages of `networks`.
    """
    for network in networks:
        file = io.BytesIO()
        try:
            torch.save(network, file)
        except Exception as error:  # pickle raises what the network's own attributes make it
            raise TeacherError(
                f"{type(network).__name__} cannot be kept between links ({error}): give its "
                "functions names in their module"
            ) from error
        file.seek(0)
        if odd := _strangers(file, networks):
            raise TeacherError(
                f"{type(network).__name__} cannot be kept between links: it holds {odd[0]}, which "
                "is neither of torch.nn nor of the package of its factory"
            )


def save_network(network: nn.Module, path: Path) -> None:
    """Write it, whole or not at all."""
    write_atomically(path, lambda temporary: torch.save(network, temporary))


def read_network(path: Path, kin: Sequence[nn.Module]) -> nn.Module:
    """A network whose parts are of torch.nn, of this package or of the packages of `kin`.

    Raises:
        RunError: the file is damaged, or holds anything else.

    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if odd := _strangers(path, kin):
            raise RunError(f"{path} holds {odd[0]}, which is neither ours nor of a named factory")
        found = [resolve_name(name) for name in names]
        for name, value in zip(names, found, strict=True):
            if name.startswith("dreamstill.") and not isinstance(value, type):
                raise RunError(f"{path} calls {name}, which no network of ours does")
        with torch.serialization.safe_globals(found):
            network: nn.Module = torch.load(path, weights_only=True)
            return network
    except RunError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise RunError(f"cannot read {path}: {first_line(error)}") from error


def _strangers(file: Any, networks: Sequence[nn.Module]) -> list[str]:
    """What a saved network holds that is not of torch.nn, of ours or of the networks' packages."""
    modules = {type(module).__module__ for network in networks for module in network.modules()}
    packages = {name.partition(".")[0] for name in modules} - {"torch", "builtins"}
    known = {"torch.nn", "dreamstill"} | modules | packages
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    return [name for name in names if not any(name.startswith(f"{root}.") for root in known)]
