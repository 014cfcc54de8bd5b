"""Merging against cutting on a 1200-1200 MLP for MNIST: accuracy against neurons removed.

    python -m benchmarks.merge_mlp --data FOLDER

`cut` and `merged` look at no image; then the layers of the merged network are solved on 2,048 of
each source, three draws of them. The MLP is Hinton's 784-1200-1200-10. Srinivas and Babu 2015 claim
that up to 85 % of an MNIST network's parameters go.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.protocol import mean_and_std, training_images
from dreamstill.compression.config import MergeConfig
from dreamstill.compression.merge import merge
from dreamstill.data.images import load_images
from dreamstill.evaluation import accuracy, predict
from dreamstill.input_spec import InputSpec
from dreamstill.nn.mlp import HintonNet, hinton_net
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.process import settle_process
from dreamstill.pipelines.run_directory import environment
from dreamstill.pipelines.synthesize import draw_images
from dreamstill.synthesis.config import NoiseConfig, StructuredNoiseConfig
from dreamstill.teacher import Teacher

SPEC = InputSpec(shape=(1, 28, 28), mean=(0.1306,), std=(0.3081,))
REMOVED = (0.0, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95)
SOURCES: dict[str, tuple[str, Any]] = {
    "structured noise": ("structured_noise", StructuredNoiseConfig()),
    "noise": ("noise", NoiseConfig()),
}
NUM_IMAGES = 2048


def trained(data: Path, epochs: int) -> HintonNet:
    """Adam 1e-3, weight decay 1e-5, cosine, batch 128, seed 0."""
    rng = torch.Generator().manual_seed(0)
    with np.load(data) as archive:
        x, y = torch.from_numpy(archive["x_train"]), torch.from_numpy(archive["y_train"]).long()
    with seeded(rng):
        model = hinton_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    steps = epochs * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(len(x), (128,), generator=rng)
        optimizer.zero_grad()
        F.cross_entropy(model(SPEC.encode(x[index])), y[index]).backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def draws(teacher: Teacher, data: Path, seeds: int) -> dict[str, list[Tensor]]:
    """Images of each source, uint8 (2048, 1, 28, 28), as many times as there are seeds."""
    real = training_images(data, SPEC)
    shuffled = [
        torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        for seed in range(seeds)
    ]
    drawn = {"real": [real[order[:NUM_IMAGES]] for order in shuffled]}
    for name, (method, config) in SOURCES.items():
        drawn[name] = [
            draw_images(teacher, method, config, NUM_IMAGES, seed=seed)[0] for seed in range(seeds)
        ]
    return drawn


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description="Merging against cutting.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/merge_mlp.json"))
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    model = trained(args.data / "mnist.npz", args.epochs)
    x, y = load_images(args.data / "mnist.npz", SPEC, 10)
    whole = sum(p.numel() for p in model.parameters())
    drawn = draws(Teacher(model, SPEC), args.data / "mnist.npz", args.seeds)

    def percent(small: nn.Module) -> float:
        return round(100 * accuracy(predict(small, SPEC, x), y), 2)

    rows: dict[str, Any] = {}
    for removed in REMOVED:
        config = MergeConfig(remove=removed)
        merged, _ = merge(model, SPEC, config)
        cut, _ = merge(model, SPEC, replace(config, compensate=False))
        left = sum(p.numel() for p in merged.parameters()) / whole
        row = rows[f"{removed:.2f}"] = {
            "parameters_removed": round(100 * (1 - left), 1),
            "cut": percent(cut),
            "merged": percent(merged),
        }
        for source, sets in drawn.items():
            runs = [percent(merge(model, SPEC, config, images)[0]) for images in sets]
            row[f"merged and solved, {source}"] = {**mean_and_std(runs), "runs": runs}
        print(removed, row, flush=True)
    small, records = merge(model, SPEC, MergeConfig())
    chosen = {
        "neurons": {r.layer: [r.before, r.after] for r in records},
        "accuracy": percent(small),
    }
    print("where the curve turns", chosen)
    record = {
        "name": "merge_mlp",
        "data": "mnist",
        "network": "784-1200-1200-10",
        "num_images": NUM_IMAGES,
        "environment": environment("cpu"),
        "rows": rows,
        "where_the_curve_turns": chosen,
    }
    args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
