"""Five tasks of two classes each, one after the other: what is kept of the old ones.

    python -m benchmarks.continual mnist --data FOLDER
    python -m benchmarks.continual fashion_mnist --data FOLDER
    python -m benchmarks.continual mnist --data FOLDER --batch-norm --rows abd "abd on generated"
    python -m benchmarks.continual cifar10 --data FOLDER --seeds 1

LeNet-5 (on CIFAR-10, a JPEG copy, a ResNet of eight layers) learns the first two classes on their
real images, then two more at a time with none of the old. The dreams of every network are
structured noise that it classifies itself; rows "on noise" have clipped noise in their place, those
"on real" the old classes' own images, which nobody has. `joint` sees all real images at once and
bounds the rest. With BatchNorm the papers' own dreams are to be had as well: `generated` by Always
Be Dreaming's generator, `inverted` from noise by DeepInversion, and from structured noise.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.compress import synthesizers
from benchmarks.protocol import made_rows, mean_and_std
from benchmarks.resnets import SPEC, THINGS
from dreamstill.config import to_plain
from dreamstill.continual.config import LearnClassesConfig, Recipe
from dreamstill.continual.learning import average_and_forgetting, learn
from dreamstill.data.images import load_images
from dreamstill.evaluation import accuracy, predict
from dreamstill.input_spec import InputSpec
from dreamstill.nn.lenet import LeNet5
from dreamstill.nn.resnet_cifar import ResNetCifar
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.process import settle_process
from dreamstill.pipelines.run_directory import environment
from dreamstill.pipelines.synthesize import draw_images
from dreamstill.synthesis.config import CLOTHES, AbdConfig, DeepInversionConfig, RandomShapes, Start
from dreamstill.teacher import Teacher

SPECS = {
    "mnist": InputSpec(shape=(1, 28, 28), mean=(0.1306,), std=(0.3081,)),
    "fashion_mnist": InputSpec(shape=(1, 28, 28), mean=(0.286,), std=(0.353,)),
    "cifar10": SPEC,
}
DRAWINGS = {"mnist": RandomShapes(), "fashion_mnist": CLOTHES, "cifar10": THINGS}
SETTINGS = LearnClassesConfig(steps=600, batch_size=64, lr=1e-3)
NUM_DREAMS = 6000
ROWS = {
    "inversion": (Recipe.INVERSION, "ours"),
    "inversion on noise": (Recipe.INVERSION, "noise"),
    "inversion on real": (Recipe.INVERSION, "real"),
    "abd": (Recipe.ABD, "ours"),
    "abd on noise": (Recipe.ABD, "noise"),
    "abd on real": (Recipe.ABD, "real"),
    "lwf": (Recipe.LWF, None),
    "finetune": (Recipe.FINETUNE, None),
}
"""What keeps the old classes, and on which images in place of theirs."""
BATCH_NORM_ROWS = {
    "abd on generated": (Recipe.ABD, "generated"),
    "abd on inverted": (Recipe.ABD, "inverted"),
    "abd on inverted from structured noise": (Recipe.ABD, "inverted from structured noise"),
    "inversion on inverted": (Recipe.INVERSION, "inverted"),
}
"""On images that a network without BatchNorm cannot give."""


def dreamers(shapes: RandomShapes) -> dict[str, tuple[str, Any]]:
    """Method and settings by source."""
    inversion = DeepInversionConfig(batch_size=500, steps=100, lr=0.1, flip=False)
    return synthesizers(shapes) | {
        "generated": ("abd", AbdConfig(widths=(32, 16), generator_steps=1500)),
        "inverted": ("deepinversion", inversion),
        "inverted from structured noise": (
            "deepinversion",
            replace(inversion, steps=20, start=Start.STRUCTURED, shapes=shapes),
        ),
    }


def fit(
    model: nn.Module, spec: InputSpec, x: Tensor, y: Tensor, steps: int, rng: torch.Generator
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
    return Teacher(model, spec)


def dreams_of(
    teacher: Teacher, source: str | None, shapes: RandomShapes, old: Tensor, rng: torch.Generator
) -> Tensor:
    """uint8 images in place of the old classes' `old` ones: a source's, real ones or none."""
    if source is None:
        return old[:0]
    if source == "real":
        return old[torch.randperm(len(old), generator=rng)[:NUM_DREAMS]]
    seed = int(torch.randint(2**31, (), generator=rng))
    return draw_images(teacher, *dreamers(shapes)[source], NUM_DREAMS, seed=seed)[0]


def run(
    recipe: Recipe,
    source: str | None,
    data: dict[str, Tensor],
    spec: InputSpec,
    shapes: RandomShapes,
    architecture: Callable[..., nn.Module],
    seed: int,
) -> list[list[float]]:
    """Accuracy on tasks 0 to i after each task i."""
    rng = torch.Generator().manual_seed(seed)
    config = replace(SETTINGS, recipe=recipe)
    network, accuracies = None, []
    for task in range(5):
        of = data["y_train"] // 2 == task
        x, y = data["x_train"][of], data["y_train"][of]
        if network is None:
            with seeded(rng):
                model = architecture(num_classes=2)
            network = fit(model, spec, x, y, SETTINGS.steps, rng)
        else:
            old = data["x_train"][data["y_train"] // 2 < task]
            dreams = dreams_of(network, source, shapes, old, rng)
            network = learn(network, dreams, x, y, config, rng=rng)
        logits = predict(network.module, spec, data["x_test"])
        accuracies.append(
            [
                accuracy(logits[data["y_test"] // 2 == t], data["y_test"][data["y_test"] // 2 == t])
                for t in range(task + 1)
            ]
        )
    return accuracies


def joint(
    data: dict[str, Tensor], spec: InputSpec, architecture: Callable[..., nn.Module], seed: int
) -> list[list[float]]:
    """Accuracy of a network that saw all classes at once, as if of one task."""
    rng = torch.Generator().manual_seed(seed)
    with seeded(rng):
        model = architecture(num_classes=10)
    network = fit(model, spec, data["x_train"], data["y_train"], 5 * SETTINGS.steps, rng)
    return [[accuracy(predict(network.module, spec, data["x_test"]), data["y_test"])]]


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description="Class-incremental learning in five tasks.")
    parser.add_argument("data_set", choices=SPECS)
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--batch-norm", action="store_true", help="in LeNet-5; ResNets have it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="[all]")
    parser.add_argument("--resume", action="store_true", help="add the runs the record lacks")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    rows: dict[str, tuple[Recipe, str | None]] = {**ROWS}
    lenet = args.data_set != "cifar10"
    batch_norm = args.batch_norm or not lenet
    rows |= BATCH_NORM_ROWS if batch_norm else {}
    architecture = partial(LeNet5, batch_norm=batch_norm) if lenet else partial(ResNetCifar, 8)
    names = args.rows or [*rows, "joint"]
    if unknown := [name for name in names if name not in (*rows, "joint")]:
        parser.error(f"unknown row {unknown[0]}; known: {'; '.join(rows)}; joint")
    path = args.data / f"{args.data_set}.npz"
    spec, shapes = SPECS[args.data_set], DRAWINGS[args.data_set]
    with np.load(path) as archive:
        x_train = torch.from_numpy(archive["x_train"])
        y_train = torch.from_numpy(archive["y_train"]).long()
    x_test, y_test = load_images(path, spec, 10)
    data = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    name = f"continual_{args.data_set}" + ("_bn" if lenet and batch_norm else "")
    out = Path(f"benchmarks/records/{name}.json")
    config = to_plain(SETTINGS) | {"dreams": NUM_DREAMS, "shapes": to_plain(shapes)}
    if batch_norm:
        config["methods"] = {source: to_plain(of) for source, of in dreamers(shapes).items()}
    record: dict[str, Any] = {
        "name": name,
        "data": args.data_set if lenet else "CIFAR-10 (JPEG copy)",
        "settings": config,
        "environment": environment("cpu"),
        "rows": {},
    }
    commit = record["environment"]["commit"]
    if made := made_rows(out, record) if args.resume else {}:
        record["environment"] = json.loads(out.read_text())["environment"]
    for row in names:
        runs = made.get(row, {}).get("runs", [])
        forgetting = made.get(row, {}).get("forgetting", [])
        for seed in range(len(runs), args.seeds):
            accuracies = (
                joint(data, spec, architecture, seed)
                if row == "joint"
                else run(*rows[row], data, spec, shapes, architecture, seed)
            )
            average, lost = average_and_forgetting(accuracies)
            runs.append(round(100 * average, 2))
            forgetting.append(round(100 * lost, 2))
            made[row] = {
                **mean_and_std(runs),
                "forgetting_mean": round(statistics.mean(forgetting), 2),
                "runs": runs,
                "forgetting": forgetting,
                "commit": commit,  # rows of one record may be of different days
            }
            record["rows"] = {key: made[key] for key in (*rows, "joint") if key in made}
            out.write_text(json.dumps(record, indent=2) + "\n")
            print(row, "seed", seed, made[row], flush=True)


if __name__ == "__main__":
    main()
