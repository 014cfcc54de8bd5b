"""Prune an independent CIFAR-10 ResNet-56 by 50 and 30 % of its MACs: see `resnets`.

    python -m benchmarks.prune_resnet56 --data FOLDER --weights akamaster_cifar10_resnet56.th

Channels go by magnitude, so that the same go for every source. `cut` is before any image comes in,
`reconstructed` has its layers solved on the first images, the rest is also fine-tuned: towards what
the whole network's layers make or, `by logits`, its answers. Networks run in bfloat16.
"""

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from benchmarks.resnets import BY_LOGITS, SPEC, open_study, source_images
from dreamstill.compression.config import PruneConfig
from dreamstill.compression.prune import prune
from dreamstill.config import Precision, to_plain
from dreamstill.data.config import Augmentation
from dreamstill.distillation.config import DistillConfig, LossName
from dreamstill.evaluation import predict

TUNE = DistillConfig(
    steps=400,
    batch_size=64,
    lr=1e-3,
    num_validation=256,
    validate_every=100,
    augment=Augmentation(flip=True, shift=0.1, mix=True),
    losses=(LossName.LAYERS,),
)
TUNED = PruneConfig(rounds=1, keep_layer=0.05, reconstruct=512, finetune=TUNE)
NUM_IMAGES = 2048


def main() -> None:
    config = to_plain(TUNED) | {"num_images": NUM_IMAGES, "by_logits": to_plain(BY_LOGITS)}
    study = open_study("prune_resnet56", 56, config)
    study.teacher.precision = Precision.BFLOAT16

    def measured(row: str, model: nn.Module) -> None:
        parameters = sum(p.numel() for p in model.parameters())
        study.add(row, predict(model, SPEC, study.x), parameters=parameters)

    def pruned(row: str, images: Tensor, config: PruneConfig, seed: int = 0) -> None:
        if study.lacks(row, seed):
            rng = torch.Generator().manual_seed(seed)
            measured(row, prune(study.teacher, images, config, rng=rng)[0])

    if study.lacks("ResNet-56"):
        measured("ResNet-56", study.teacher.module)
    solved = replace(TUNED, finetune=None)
    logits = replace(TUNED, finetune=replace(TUNE, losses=BY_LOGITS))
    nothing = torch.zeros(1, *SPEC.shape, dtype=torch.uint8)
    for keep in (0.5, 0.7):
        pruned(f"{off(keep)}, cut", nothing, replace(solved, keep=keep, reconstruct=0))
    for seed, source in product(range(study.seeds), study.sources):
        rows = {f"{off(keep)}, reconstructed, {source}": (keep, solved) for keep in (0.5, 0.7)}
        rows |= {f"{off(keep)}, {source}": (keep, TUNED) for keep in (0.5, 0.7)}
        rows |= {f"{off(keep)}, by logits, {source}": (keep, logits) for keep in (0.5, 0.7)}
        if any(study.lacks(row, seed) for row in rows):
            images = source_images(source, study.teacher, study.data, NUM_IMAGES, seed)
            for row, (keep, config) in rows.items():
                pruned(row, images, replace(config, keep=keep), seed)


def off(keep: float) -> str:
    return f"{100 - 100 * keep:.0f} % of MACs off"


if __name__ == "__main__":
    main()
