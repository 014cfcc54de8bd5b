"""Prune an independent CIFAR-10 ResNet-56 by 30 and 50 % of its MACs: real, noise and ours.

    python -m benchmarks.prune_resnet56 --data FOLDER --weights akamaster_cifar10_resnet56.th

FOLDER holds a JPEG copy of CIFAR-10 (see `independent`). Channels go by magnitude, so that the same
go for every source; `not fine-tuned` is before the images come in. `inverted` is structured noise
after twenty steps of DeepInversion (see `quantize_resnet20`).
"""

import argparse
import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.independent import SPEC, open_resnet
from benchmarks.protocol import made_rows
from benchmarks.quantize_resnet20 import SOURCES, source_images
from dreamstill.evaluate import accuracy, agreement, load_images, predict
from dreamstill.pool import Augmentation
from dreamstill.run import environment, settle_process
from dreamstill.settings import to_plain
from dreamstill.tasks.distill import DistillSettings
from dreamstill.tasks.finetune import finetune
from dreamstill.tasks.prune import PruneSettings, prune

TUNE = DistillSettings(
    steps=150,
    batch_size=64,
    lr=1e-3,
    held_out=256,
    judge_every=50,
    augment=Augmentation(flip=True, shift=0.1),
)
CUT = PruneSettings(rounds=1, finetune=None)
NUM_IMAGES = 1024


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description="Pruning of ResNet-56.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/prune_resnet56.json"))
    parser.add_argument("--resume", action="store_true", help="keep the rows the record has")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    data = args.data / "cifar10.npz"
    teacher = open_resnet(args.weights, 56)
    x, y = load_images(data, SPEC, 10)
    whole = predict(teacher.module, SPEC, x)
    record: dict[str, Any] = {
        "name": "prune_resnet56",
        "data": "CIFAR-10 (JPEG copy)",
        "settings": {"prune": to_plain(CUT), "finetune": to_plain(TUNE), "num_images": NUM_IMAGES},
        "environment": environment("cpu"),
        "rows": {},
    }
    if args.resume:
        record["rows"] = made_rows(args.out, record)

    def measured(row: str, model: nn.Module) -> None:
        logits = predict(model, SPEC, x)
        record["rows"][row] = {
            "accuracy": round(100 * accuracy(logits, y), 2),
            "agreement": round(100 * agreement(logits, whole), 2),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        print(row, record["rows"][row], flush=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")

    measured("ResNet-56", teacher.module)
    for removed in (0.5, 0.3):
        start = f"{100 * removed:.0f} % of MACs off"
        settings = replace(CUT, keep=1 - removed)
        rng = torch.Generator().manual_seed(0)
        cut, _ = prune(teacher, torch.zeros(1, *SPEC.shape, dtype=torch.uint8), settings, rng=rng)
        if f"{start}, not fine-tuned" not in record["rows"]:
            measured(f"{start}, not fine-tuned", cut)
        for source in ("real", *SOURCES):
            if f"{start}, {source}" in record["rows"]:
                continue
            images = source_images(source, teacher, data, NUM_IMAGES)
            rng = torch.Generator().manual_seed(0)
            student = copy.deepcopy(cut).requires_grad_(True)
            measured(f"{start}, {source}", finetune(teacher, student, images, TUNE, rng=rng))


if __name__ == "__main__":
    main()
