"""Check a network when it is opened: whether its logits are steady and it can be trained.

Every error message says how to fix the network.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamstill.errors import TeacherError, first_line
from dreamstill.nn.closed import ClosedNetwork
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import Probe
from dreamstill.output_spec import logits_of

__all__ = ["check_steady", "obstacle_to_training", "probing_images"]


def probing_images(shape: tuple[int, int, int]) -> Tensor:
    """Return four images (4, C, H, W) in [0, 1] that differ in brightness and contrast.

    Three are noise of full, low and high brightness, one is a vertical gradient, so that a network
    whose outputs depend on the rest of the batch is detected.
    """
    noise = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    slope = torch.linspace(0, 1, shape[1]).view(1, -1, 1).expand(shape)
    return torch.stack([noise[0], 0.2 * noise[1], 0.7 + 0.3 * noise[2], slope])


def check_steady(network: nn.Module, inputs: Tensor, logits: Tensor, role: str) -> None:
    """Check that a network's logits are repeatable and do not depend on the rest of the batch.

    Args:
        network: network in eval mode.
        inputs: (N, C, H, W) images that differ, N >= 2.
        logits: (N, K), output of the network for `inputs`.
        role: name of the network in messages.

    Raises:
        TeacherError: the logits differ; names the first layer that differs if known.

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
        for image in (0, len(inputs) - 1):  # an image may depend only on the previous or next one
            try:
                with Probe(leaves, copy=True) as alone:
                    answer = network(inputs[image : image + 1])
            except Exception as error:  # user code may raise anything
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
    """Return whether a layer's output for one image alone differs from that in a batch."""
    if not isinstance(alone, Tensor) or not isinstance(together, Tensor):
        return False
    if len(alone) != 1 or len(together) <= image or alone.shape[1:] != together.shape[1:]:
        return False
    return not _same(alone, together[image : image + 1])


def obstacle_to_training(network: nn.Module, inputs: Tensor) -> str | None:
    """Return the reason why a network cannot be trained, or None if it can.

    Runs a copy in train mode, except for torch's own layers, whose dropout and batch statistics
    would change the outputs that are compared with those in eval mode.

    Args:
        network: network in eval mode; not modified.
        inputs: (N, C, H, W).

    """
    if isinstance(network, ClosedNetwork):
        return network.reason
    trained = copy_network(network).requires_grad_(True)
    for part in trained.modules():
        part.training = not type(part).__module__.startswith("torch.nn.")
    try:
        with torch.no_grad():
            wanted = network(inputs)
        with torch.enable_grad():
            output = trained(inputs)
    except Exception as error:  # user code may raise anything
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
