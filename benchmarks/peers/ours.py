"""Dreamstill, in Python.

Options: `task`, "int8" or "prune"; `method` [the default]; `num_images` [1000]; `prune`, settings
of pruning, in one round without fine-tuning.
"""

from typing import Any

import dreamstill as ds
from benchmarks.peers.task import Task, main
from dreamstill.exporters.int8 import export_int8


def make(task: Task) -> dict[str, Any]:
    """Write the int8 file, or the pruned network in floats."""
    options = task.options
    teacher = ds.load_teacher(task.weights)
    drawn = {key: options[key] for key in ("method", "num_images") if key in options}
    images = ds.synthesize(teacher, **drawn)
    if options["task"] == "int8":
        export_int8(teacher.module, teacher.input_spec, images, task.out)
    else:
        config = ds.PruneConfig(rounds=1, finetune=None, **options["prune"])
        pruned = ds.prune(teacher, images, config).model
        ds.export(pruned, task.out, teacher.input_spec)
        options = options | {"rounds": 1, "finetune": None}
    return {"method": "image_programs", "num_images": 1000} | options


if __name__ == "__main__":
    main(make, "dreamstill", "torch", "onnxruntime")
