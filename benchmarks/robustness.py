"""How brittle the LeNet-5s are, with BatchNorm and without: what methods that optimize images meet.

    python -m benchmarks robustness --data FOLDER

On the first 2,000 test images: the distance to the nearest other class as the gradient sees it
(margin over its gradient's norm, median), and accuracy after 20 steps of projected gradient ascent
on the cross-entropy within an L2 ball (Madry et al. 2018) and after Gaussian noise on the images.
Distances and deviations are in the teacher's input space, where the images' own deviation is 1.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamstill.data.images import load_images
from dreamstill.evaluation import accuracy
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.process import flush_denormals
from dreamstill.pipelines.run_directory import environment
from dreamstill.teacher import Teacher

NUM_IMAGES = 2000
RADII = (2.0, 4.0)
DEVIATIONS = (1.0, 2.0)
STEPS = 20


def norms(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 1, 1, 1)."""
    found: Tensor = x.flatten(1).norm(dim=1)
    return found[:, None, None, None]


def distance(teacher: Teacher, inputs: Tensor, labels: Tensor) -> float:
    """Median of margin over its gradient's norm: how far a flat boundary would be."""
    inputs = inputs.clone().requires_grad_()
    logits = teacher(inputs)
    own = logits.gather(1, labels[:, None]).squeeze(1)
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    (gradient,) = torch.autograd.grad((own - other).sum(), inputs)
    return ((own - other).detach() / norms(gradient).flatten()).median().item()


def attacked(teacher: Teacher, inputs: Tensor, labels: Tensor, radius: float) -> Tensor:
    """Inputs after projected gradient ascent within the ball and the valid range."""
    found = inputs.clone()
    for _ in range(STEPS):
        found.requires_grad_()
        loss = F.cross_entropy(teacher(found), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, found)
        moved = found.detach() + 4 * radius / STEPS * gradient / norms(gradient).clamp_min(1e-12)
        away = moved - inputs
        found = teacher.input_spec.clip(inputs + away * (radius / norms(away).clamp_min(radius)))
    return found.detach()


def measured(teacher: Teacher, inputs: Tensor, labels: Tensor) -> dict[str, float]:
    """One network's row."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(inputs.shape, generator=rng)
    shown = {"as they are": inputs}
    shown |= {
        f"attacked within {radius:g}": attacked(teacher, inputs, labels, radius) for radius in RADII
    }
    shown |= {
        f"noise of {std:g}": teacher.input_spec.clip(inputs + std * noise) for std in DEVIATIONS
    }
    row = {name: round(100 * accuracy(teacher(x), labels), 2) for name, x in shown.items()}
    return row | {"distance": round(distance(teacher, inputs, labels), 2)}


def main() -> None:
    flush_denormals()
    parser = argparse.ArgumentParser(description="How brittle the teachers are.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--teachers", type=Path, default=Path("benchmarks/teachers"))
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    record: dict[str, Any] = {
        "name": "robustness",
        "data": "accuracy in %, distance in the input space",
        "settings": {"num_images": NUM_IMAGES, "steps": STEPS},
        "environment": environment("cpu"),
        "rows": {},
    }
    for data in ("mnist", "fashion_mnist"):
        for network in ("lenet5", "lenet5_bn"):
            name = f"{network}_{data}"
            teacher = open_from(TeacherFile(weights=str(args.teachers / f"{name}.safetensors")))
            x, y = load_images(args.data / f"{data}.npz", teacher.input_spec, teacher.num_classes)
            inputs = teacher.input_spec.encode(x[:NUM_IMAGES])
            record["rows"][name] = measured(teacher, inputs, y[:NUM_IMAGES])
            print(name, record["rows"][name], flush=True)
    Path("benchmarks/records/robustness.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
