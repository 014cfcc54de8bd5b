"""Five tasks of two classes each, one after the other: what is kept of the old ones.

    python -m benchmarks.continual mnist --data FOLDER
    python -m benchmarks.continual fashion_mnist --data FOLDER

LeNet-5 learns the first two classes on their real images, then two more at a time with none of the
old. The dreams of every network are structured noise that it classifies itself. `joint` sees all
real images at once and bounds the rest.
"""

import argparse
import json
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.protocol import mean_and_std
from dreamstill.evaluate import accuracy, predict
from dreamstill.folder import environment
from dreamstill.images import load_images
from dreamstill.nets.lenet import LeNet5
from dreamstill.nets.seeded import seeded
from dreamstill.run import settle_process
from dreamstill.settings import to_plain
from dreamstill.synthesis import open_synthesizer
from dreamstill.synthesis.drawings import CLOTHES, Drawing
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.tasks.continual import ContinualSettings, Recipe, average_and_forgetting, learn
from dreamstill.teacher import InputSpec, Teacher, open_teacher

SPECS = {"mnist": (0.1306, 0.3081), "fashion_mnist": (0.286, 0.353)}
SETTINGS = ContinualSettings(steps=600, batch_size=64, lr=1e-3)
NUM_DREAMS = 6000


def fit(
    model: LeNet5, spec: InputSpec, x: Tensor, y: Tensor, steps: int, rng: torch.Generator
) -> Teacher:
    """Train on real images: the first task, and the joint bound."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(len(x), (64,), generator=rng)
        optimizer.zero_grad()
        logits = model(spec.encode(x[index]))
        torch.nn.functional.cross_entropy(logits, y[index]).backward()
        optimizer.step()
        schedule.step()
    return open_teacher(model, spec)


def dreams_of(teacher: Teacher, drawing: Drawing, rng: torch.Generator) -> Tensor:
    """uint8 images that the network spreads evenly over its classes."""
    settings = StructuredNoiseSettings(batch_size=500, oversample=3, drawing=drawing)
    method = open_synthesizer("structured_noise", teacher, settings, rng=rng)
    parts = [teacher.spec.decode(method.next_batch().images) for _ in range(NUM_DREAMS // 500)]
    return torch.cat(parts)


def run(
    recipe: Recipe, data: dict[str, Tensor], spec: InputSpec, drawing: Drawing, seed: int
) -> list[list[float]]:
    """Accuracy on tasks 0 to i after each task i."""
    rng = torch.Generator().manual_seed(seed)
    settings = replace(SETTINGS, recipe=recipe)
    network, accuracies = None, []
    for task in range(5):
        of = data["y_train"] // 2 == task
        x, y = data["x_train"][of], data["y_train"][of]
        if network is None:
            with seeded(rng):
                model = LeNet5(num_classes=2)
            network = fit(model, spec, x, y, SETTINGS.steps, rng)
        else:
            dreams = x[:0]
            if settings.dreaming:
                dreams = dreams_of(network, drawing, rng)
            network = learn(network, dreams, x, y, settings, rng=rng)
        logits = predict(network.module, spec, data["x_test"])
        accuracies.append(
            [
                accuracy(logits[data["y_test"] // 2 == t], data["y_test"][data["y_test"] // 2 == t])
                for t in range(task + 1)
            ]
        )
    return accuracies


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description="Class-incremental learning in five tasks.")
    parser.add_argument("data_set", choices=SPECS)
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    path = args.data / f"{args.data_set}.npz"
    mean, std = SPECS[args.data_set]
    spec = InputSpec(shape=(1, 28, 28), mean=(mean,), std=(std,))
    drawing = CLOTHES if args.data_set == "fashion_mnist" else Drawing()
    with np.load(path) as archive:
        x_train = torch.from_numpy(archive["x_train"])
        y_train = torch.from_numpy(archive["y_train"]).long()
    x_test, y_test = load_images(path, spec, 10)
    data = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    rows: dict[str, Any] = {}
    for recipe in Recipe:
        found = [
            average_and_forgetting(run(recipe, data, spec, drawing, seed))
            for seed in range(args.seeds)
        ]
        rows[recipe.value] = summarized([100 * a for a, _ in found], [100 * f for _, f in found])
        print(recipe.value, rows[recipe.value], flush=True)
    joint = []
    for seed in range(args.seeds):
        rng = torch.Generator().manual_seed(seed)
        with seeded(rng):
            model = LeNet5()
        network = fit(model, spec, x_train, y_train, 5 * SETTINGS.steps, rng)
        logits = predict(network.module, spec, x_test)
        joint.append(100 * accuracy(logits, y_test))
    rows["joint"] = summarized(joint, [0.0] * args.seeds)
    print("joint", rows["joint"])
    name = f"continual_{args.data_set}"
    record = {
        "name": name,
        "data": args.data_set,
        "settings": to_plain(SETTINGS) | {"dreams": NUM_DREAMS, "drawing": to_plain(drawing)},
        "environment": environment("cpu"),
        "rows": rows,
    }
    Path(f"benchmarks/records/{name}.json").write_text(json.dumps(record, indent=2) + "\n")


def summarized(averages: list[float], forgetting: list[float]) -> dict[str, Any]:
    """Means and sample standard deviation over the seeds."""
    return {
        **mean_and_std(averages),
        "forgetting_mean": round(statistics.mean(forgetting), 2),
        "runs": [round(a, 2) for a in averages],
    }


if __name__ == "__main__":
    main()
