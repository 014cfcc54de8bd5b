"""Torch-Pruning on random input, for it has no images of its own: no layer is trained afterwards.

Options: `keep`, the share of the MACs to keep; `importance`, "magnitude" or "taylor", of the cross
entropy of `num_inputs` [64] random inputs and the network's own answers; `ignored`, patterns of
names of layers to leave whole, beside the last one [none].
"""

from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from benchmarks.peers.task import Task, export, main, open_network, random_inputs

STEPS = 200


def make(task: Task) -> dict[str, Any]:
    """Prune step by step until no more than `keep` of the MACs is left, as its examples do."""
    network, example = open_network(task), torch.randn(1, *task.shape)
    inputs = random_inputs(task, "normal", task.options.get("num_inputs", 64))
    taylor = task.options["importance"] == "taylor"
    *_, last = (layer for layer in network.modules() if isinstance(layer, nn.Linear))
    ignored = [
        layer
        for name, layer in network.named_modules()
        if any(fnmatchcase(name, pattern) for pattern in task.options.get("ignored", []))
    ]
    kind = tp.importance.GroupTaylorImportance if taylor else tp.importance.GroupMagnitudeImportance
    pruner = tp.pruner.BasePruner(
        network,
        example,
        kind(),
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[last, *ignored],
    )
    with torch.no_grad():
        answers = network(inputs).argmax(1)
    whole = left = tp.utils.count_ops_and_params(network, example)[0]
    steps = 0
    while left > task.options["keep"] * whole:
        if taylor:
            network.zero_grad()
            F.cross_entropy(network(inputs), answers).backward()
        pruner.step()
        left = tp.utils.count_ops_and_params(network, example)[0]
        steps += 1
    export(network.eval(), task)
    return task.options | {"steps": f"{steps} of {STEPS}", "macs_kept": round(left / whole, 4)}


if __name__ == "__main__":
    main(make, "torch-pruning", "torch")
