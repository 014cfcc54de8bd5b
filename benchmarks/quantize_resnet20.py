"""Low bits on an independent CIFAR-10 ResNet-20, from real images, noise and ours: see `resnets`.

python -m benchmarks.quantize_resnet20 --data FOLDER --weights akamaster_cifar10_resnet20.th
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from benchmarks.resnets import BY_LOGITS, SPEC, open_study, source_images
from dreamstill.compression.config import QuantizeConfig
from dreamstill.compression.quantization.quantize import quantize, quantize_without_inputs
from dreamstill.config import to_plain
from dreamstill.data.config import Augmentation
from dreamstill.distillation.config import DistillConfig, LossName
from dreamstill.evaluation import predict

TUNE = DistillConfig(
    steps=400,
    batch_size=64,
    lr=5e-4,
    num_validation=256,
    validate_every=100,
    augment=Augmentation(flip=True, shift=0.1),
    losses=(LossName.LAYERS,),
)
W4A4 = QuantizeConfig(weight_bits=4, activation_bits=4)
NUM_IMAGES = 4096


def main() -> None:
    tuned = replace(W4A4, finetune=TUNE)
    by_logits = replace(W4A4, finetune=replace(TUNE, losses=BY_LOGITS))
    config = to_plain(tuned) | {"num_images": NUM_IMAGES, "by_logits": to_plain(BY_LOGITS)}
    study = open_study("quantize_resnet20", 20, config)
    teacher = study.teacher

    def measured(row: str, make: Callable[[], nn.Module], seed: int = 0) -> None:
        if study.lacks(row, seed):
            study.add(row, predict(make(), SPEC, study.x))

    @cache
    def images_of(source: str, seed: int) -> Tensor:
        return source_images(source, teacher, study.data, NUM_IMAGES, seed)

    def quantized(source: str, config: QuantizeConfig, seed: int) -> nn.Module:
        rng = torch.Generator().manual_seed(seed)
        return quantize(teacher, images_of(source, seed), config, rng=rng)

    measured("FP32", lambda: teacher.module)
    eight = QuantizeConfig()
    whole_tensor = replace(eight, per_channel=False, first_last_bits=None)
    measured("W8A8, no input", lambda: quantize_without_inputs(teacher, eight))
    measured("W8A8 per tensor, no input", lambda: quantize_without_inputs(teacher, whole_tensor))
    rows = {
        "W8A8": eight,
        "W4A4": W4A4,
        "W4A4 fine-tuned": tuned,
        "W4A4 fine-tuned by logits": by_logits,
    }
    for seed in range(study.seeds):
        for name, wanted in rows.items():
            for source in study.sources:
                measured(f"{name}, {source}", partial(quantized, source, wanted, seed), seed)


if __name__ == "__main__":
    main()
