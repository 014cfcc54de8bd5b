"""Merging against cutting on a 1200-1200 MLP for MNIST: accuracy against neurons removed.

    python -m benchmarks.merge_mlp --data FOLDER

No image is used but to train the MLP (Hinton's 784-1200-1200-10) and to measure. Srinivas and Babu
2015 claim that up to 85 % of an MNIST network's parameters go.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dreamstill.evaluate import accuracy, predict
from dreamstill.folder import environment
from dreamstill.images import load_images
from dreamstill.nets.mlp import HintonNet, hinton_net
from dreamstill.nets.seeded import seeded
from dreamstill.run import settle_process
from dreamstill.tasks.merge import MergeSettings, merge
from dreamstill.teacher import InputSpec

SPEC = InputSpec(shape=(1, 28, 28), mean=(0.1306,), std=(0.3081,))
REMOVED = (0.0, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95)


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


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description="Merging against cutting.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    model = trained(args.data / "mnist.npz", args.epochs)
    x, y = load_images(args.data / "mnist.npz", SPEC, 10)
    whole = sum(p.numel() for p in model.parameters())
    rows: dict[str, Any] = {}
    for removed in REMOVED:
        row: dict[str, float] = {}
        for name, compensate in (("merged", True), ("cut", False)):
            small, _ = merge(model, MergeSettings(remove=removed, compensate=compensate))
            row[name] = round(100 * accuracy(predict(small, SPEC, x), y), 2)
            row["parameters_removed"] = round(
                100 * (1 - sum(p.numel() for p in small.parameters()) / whole), 1
            )
        rows[f"{removed:.2f}"] = row
        print(removed, row, flush=True)
    small, records = merge(model, MergeSettings())
    chosen = {
        "neurons": {r.layer: [r.before, r.after] for r in records},
        "accuracy": round(100 * accuracy(predict(small, SPEC, x), y), 2),
    }
    print("where the curve turns", chosen)
    record = {
        "name": "merge_mlp",
        "data": "mnist",
        "network": "784-1200-1200-10",
        "environment": environment("cpu"),
        "rows": rows,
        "where_the_curve_turns": chosen,
    }
    Path("benchmarks/records/merge_mlp.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
