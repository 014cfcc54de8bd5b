"""Examine a network once, on opening: what it answers, alone and among others, again, in training.

Every check returns or raises before any work starts, and says what would be right.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.errors import TeacherError, first_line
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import Probe

__all__ = ["check_logits", "check_steady", "logits_of", "obstacle_to_training", "probing_images"]


def probing_images(shape: tuple[int, int, int]) -> Tensor:
    """Draw four images (4, C, H, W) of pixels in [0, 1] that differ in brightness and contrast.

    Noise of full, low and high brightness, and an even gray that grows lighter downwards: a network
    that looks at the others of a batch answers differently beside them.
    """
    noise = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    slope = torch.linspace(0, 1, shape[1]).view(1, -1, 1).expand(shape)
    return torch.stack([noise[0], 0.2 * noise[1], 0.7 + 0.3 * noise[2], slope])


def logits_of(output: Any) -> Any:
    """Return the logits among what a network returns: GoogLeNet's, Inception's and their like.

    A tensor is returned as it is; else the entry `logits` or `out`, or the first of a sequence, as
    networks with auxiliary outputs return them in train mode.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        if isinstance(output, Mapping) and name in output:
            return output[name]
        if hasattr(output, name):
            return getattr(output, name)
    return output[0] if isinstance(output, list | tuple) and output else output


def check_logits(network: nn.Module, inputs: Tensor, logits: Any, role: str, last: Any) -> None:
    """Check that what a network returned for `inputs` are finite logits (N, K), K >= 2.

    Args:
        network: in eval mode.
        inputs: (N, C, H, W).
        logits: what it returned.
        role: what messages call it.
        last: the linear layer that makes the logits, if one does: then no activation follows.

    Raises:
        TeacherError: of another shape, not finite, or probabilities or their logarithms.

    """
    num = len(inputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != num:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TeacherError(f"the {role} must return (N, K) logits; got {got} for N = {num}")
    if logits.shape[1] < 2:
        raise TeacherError(f"the {role} must have at least 2 classes; got {logits.shape[1]}")
    if not logits.is_floating_point():
        raise TeacherError(f"the {role} must return logits; got {logits.dtype} values")
    if not torch.isfinite(logits).all():
        raise TeacherError(f"the {role}'s logits are not finite on random pixels")
    if last is not None:
        return
    with torch.no_grad():  # what grows with the input is no probability
        shown = torch.cat([logits, network(1000 * inputs)]).double()
    shown = shown[shown.isfinite().all(1)]
    if ((shown.exp().sum(1) - 1).abs() < 1e-3).all():
        raise TeacherError(
            f"the {role} returns logarithms of probabilities: return what enters LogSoftmax"
        )
    total = shown.sum(1)
    if (shown >= 0).all() and (total - total[0]).abs().max() < 1e-3 * total[0]:  # also percents
        raise TeacherError(f"the {role} returns probabilities: return the logits before softmax")
    if ((shown >= 0) & (shown <= 1)).all():
        raise TeacherError(
            f"the {role} returns values in [0, 1] whatever it is shown: return what enters the "
            "sigmoid (networks of several labels at once are not supported yet)"
        )


def check_steady(network: nn.Module, inputs: Tensor, logits: Tensor, role: str) -> None:
    """Check that a network gives one image one answer: twice, and alone or among others.

    Args:
        network: in eval mode.
        inputs: (N, C, H, W) images that differ, N >= 2.
        logits: (N, K), what it answered for them.
        role: what messages call it.

    Raises:
        TeacherError: it does not; names the layers where that can be said.

    """
    leaves = {
        name: part for name, part in network.named_modules() if not list(part.children()) and name
    }
    for name, layer in leaves.items():
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise TeacherError(
                f"the {role}'s answer for an image depends on the others of its batch: {name} is "
                "BatchNorm without running statistics; train it with track_running_stats=True"
            )
    with torch.no_grad():
        with Probe(leaves, copy=True) as together:
            again = network(inputs)
        if not _same(again, logits):
            raise TeacherError(
                f"the {role} answers differently when it is asked again, in eval mode: give "
                "F.dropout training=self.training, and keep nothing from one call to the next"
            )
        for image in (0, len(inputs) - 1):  # each may see the one before or behind it alone
            try:
                with Probe(leaves, copy=True) as alone:
                    answer = network(inputs[image : image + 1])
            except Exception as error:  # the user's own code: anything can come out of it
                raise TeacherError(
                    f"the {role} runs on {len(inputs)} images and not on one: {first_line(error)}"
                ) from error
            wanted = logits[image : image + 1]
            if answer.shape == wanted.shape and _same(answer, wanted):
                continue
            differing = (
                name
                for name, output in alone.outputs.items()
                if _differs(output, together.outputs[name], image)
            )
            where = next(differing, None)
            raise TeacherError(
                f"the {role}'s answer for an image depends on the others of its batch"
                + (f", from {where} on" if where else "")
                + ": let its code work on each image alone"
            )


def _same(answer: Tensor, wanted: Tensor) -> bool:
    return (answer - wanted).abs().max().item() <= 1e-3 * wanted.abs().max().item() + 1e-5


def _differs(alone: Any, together: Any, image: int) -> bool:
    """Whether a layer puts out for one image alone what it does not among others."""
    if not isinstance(alone, Tensor) or not isinstance(together, Tensor):
        return False
    if len(alone) != 1 or len(together) <= image or alone.shape[1:] != together.shape[1:]:
        return False
    return not _same(alone, together[image : image + 1])


def obstacle_to_training(network: nn.Module, inputs: Tensor) -> str | None:
    """Say why a network cannot be trained as it is; None where it can.

    A copy is run in train mode, but for torch's own layers: dropout and batch statistics would
    change its answers, and it is these that say which of several outputs are the logits.

    Args:
        network: answers in eval mode; left as it was.
        inputs: (N, C, H, W).

    """
    trained = copy_network(network).requires_grad_(True)
    for part in trained.modules():
        part.training = not type(part).__module__.startswith("torch.nn.")
    try:
        with torch.no_grad():
            wanted = network(inputs)
        with torch.enable_grad():
            output = trained(inputs)
    except Exception as error:  # the user's own code: anything can come out of it
        return f"in train mode it fails: {first_line(error)}"
    logits = logits_of(output)
    if not isinstance(logits, Tensor) or logits.shape != wanted.shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        return (
            f"in train mode it returns {got}, in eval mode {tuple(wanted.shape)}: let it return "
            "its logits in both"
        )
    if logits is not output and not _same(logits.detach(), wanted):
        return (
            "in train mode it returns several outputs, and the first is not what it returns in "
            "eval mode: let it return its logits alone"
        )
    if not logits.requires_grad:
        return (
            "its answers cannot be differentiated: take torch.no_grad, detach and .data out of its "
            "forward"
        )
    return None
