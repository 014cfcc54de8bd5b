"""Prune an independent CIFAR-10 ResNet-56 by 30 and 50 % of its MACs: see `resnets`.

    python -m benchmarks.prune_resnet56 --data FOLDER --weights akamaster_cifar10_resnet56.th

Channels go by magnitude, so that the same go for every source; `not fine-tuned` is before the
images come in.
"""

import copy
from dataclasses import replace

import torch
from torch import nn

from benchmarks.resnets import SOURCES, SPEC, open_study, source_images
from dreamstill.evaluate import predict
from dreamstill.pool import Augmentation
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
    settings = {"prune": to_plain(CUT), "finetune": to_plain(TUNE), "num_images": NUM_IMAGES}
    study = open_study("prune_resnet56", 56, settings)
    teacher = study.teacher

    def measured(row: str, model: nn.Module) -> None:
        parameters = sum(p.numel() for p in model.parameters())
        study.add(row, predict(model, SPEC, study.x), parameters=parameters)

    measured("ResNet-56", teacher.module)
    for removed in (0.5, 0.3):
        start = f"{100 * removed:.0f} % of MACs off"
        wanted = replace(CUT, keep=1 - removed)
        rng = torch.Generator().manual_seed(0)
        cut, _ = prune(teacher, torch.zeros(1, *SPEC.shape, dtype=torch.uint8), wanted, rng=rng)
        if study.lacks(f"{start}, not fine-tuned"):
            measured(f"{start}, not fine-tuned", cut)
        for source in ("real", *SOURCES):
            if study.lacks(f"{start}, {source}"):
                images = source_images(source, teacher, study.data, NUM_IMAGES)
                rng = torch.Generator().manual_seed(0)
                student = copy.deepcopy(cut).requires_grad_(True)
                measured(f"{start}, {source}", finetune(teacher, student, images, TUNE, rng=rng))


if __name__ == "__main__":
    main()
