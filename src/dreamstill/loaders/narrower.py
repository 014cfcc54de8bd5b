"""Build a student that is its teacher with fewer channels in every layer."""

import logging
from typing import Any

import torch
from torch import nn

from dreamstill.errors import ConfigError, TeacherError
from dreamstill.files.reading import StrPath
from dreamstill.graph.channel_groups import ROOTS
from dreamstill.graph.channel_removal import Cut, followed
from dreamstill.graph.config import kept_share
from dreamstill.loaders.state_dict import filled, load_weights
from dreamstill.nn.copying import copy_network
from dreamstill.nn.seeded import rng_kept
from dreamstill.teacher import Teacher

__all__ = ["load_narrower", "narrower"]

log = logging.getLogger(__name__)


def narrower(teacher: Teacher, share: float) -> nn.Module:
    """Return a copy of a teacher's network with a share of every width and random weights.

    The logits stay as many, and a layer keeps its width where its channels cannot be followed to
    all that reads them, which is logged. The architecture depends on the teacher and the share
    alone; the weights are drawn by each layer's `reset_parameters`, from torch's global generator,
    and parameters of layers without one stay as they are.

    Args:
        teacher: not changed.
        share: of the channels of every layer to keep, at least one each; in (0, 1).

    Raises:
        TeacherError: no layer can lose channels.

    """
    network, spec = teacher.module, teacher.input_spec
    inputs = spec.encode(spec.noise(3).to(teacher.device))
    gone = {}
    for group in Cut(copy_network(network), inputs[:1]).groups():
        size = group.width // group.sections
        if (kept := max(1, round(share * size))) < size:
            gone[group.name] = group.at(torch.arange(kept, size))
    cut, wrong = followed(network, inputs, gone)
    whole = [name for name, layer in cut.model.named_modules() if _as_wide(layer, name, network)]
    if not gone.keys() - wrong.keys():
        reason = next(iter(wrong.values()), "none of its layers can be followed")
        raise TeacherError(f"{type(network).__name__} has no narrower copy: {reason}")
    if kept_whole := [name for name in whole if name not in cut.last]:
        more = f" and {len(kept_whole) - 3} more" if len(kept_whole) > 3 else ""
        log.info("These layers keep their width: %s%s.", ", ".join(kept_whole[:3]), more)
    for module in cut.model.modules():
        for name in ("reset_parameters", "_reset_parameters"):  # the latter of nn.Transformer
            if callable(reset := getattr(module, name, None)):
                reset()
    return cut.model


def _as_wide(layer: nn.Module, name: str, network: nn.Module) -> bool:
    """Tell whether a layer has as many outputs as the one of the same name in a network."""
    before: Any = network.get_submodule(name)
    return isinstance(layer, ROOTS) and layer.weight.shape[0] == before.weight.shape[0]


def load_narrower(teacher: Teacher, student: str, weights: StrPath) -> nn.Module:
    """Return the student auto:SHARE of a teacher with the weights of a file.

    Raises ConfigError for another name, and TeacherError if the weights are not of this student.
    """
    if (share := kept_share(student)) is None:
        raise ConfigError(f"a narrower copy of a teacher is named auto:SHARE; got {student!r}")
    with rng_kept():
        network = narrower(teacher, share)
    return filled(network, load_weights(weights), weights, f"{student} of this teacher")
