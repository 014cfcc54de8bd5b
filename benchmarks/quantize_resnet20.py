"""Low bits on an independent CIFAR-10 ResNet-20, from real images, noise, and two sources of ours.

    python -m benchmarks.quantize_resnet20 --data FOLDER --weights akamaster_cifar10_resnet20.th

The weights were trained on lossless CIFAR-10; FOLDER holds a JPEG copy (quality 75, PSNR about
30 dB), on which the network itself reaches 81.03 % where 91.78 is stated. Read each row against the
first and against the agreement with the network. `inverted` is structured noise after twenty steps
of DeepInversion, which bring the statistics at the BatchNorm layers near those of the training set:
what ranges are set by.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.independent import SPEC, open_resnet
from benchmarks.protocol import made_rows, training_images
from dreamstill.evaluate import accuracy, agreement, load_images, predict
from dreamstill.pool import Augmentation
from dreamstill.run import environment, settle_process
from dreamstill.settings import to_plain
from dreamstill.synthesis import open_synthesizer
from dreamstill.synthesis.deepinversion import CIFAR10
from dreamstill.synthesis.drawings import Drawing
from dreamstill.synthesis.noise import NoiseSettings
from dreamstill.synthesis.pixels import Start
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.tasks.distill import DistillSettings
from dreamstill.tasks.quantize import QuantizeSettings, quantize, quantize_without_inputs
from dreamstill.teacher import Teacher

TUNE = DistillSettings(
    steps=400,
    batch_size=64,
    lr=5e-4,
    held_out=256,
    judge_every=100,
    augment=Augmentation(flip=True, shift=0.1),
)
W4A4 = QuantizeSettings(weight_bits=4, activation_bits=4)
DRAWING = Drawing(stroke_share=0.2, texture_share=0.6, centered_share=0.5, symmetry_share=0.2)
NUM_IMAGES = 4096
SOURCES: dict[str, tuple[str, Any]] = {
    "noise": ("noise", NoiseSettings(batch_size=256)),
    "structured noise": (
        "structured_noise",
        StructuredNoiseSettings(batch_size=256, oversample=4, drawing=DRAWING),
    ),
    "inverted": (
        "deepinversion",
        replace(CIFAR10, steps=20, lr=0.05, start=Start.STRUCTURED, drawing=DRAWING),
    ),
}


def source_images(
    source: str, teacher: Teacher, data: Path, num_images: int = NUM_IMAGES
) -> Tensor:
    """uint8 (num_images, 3, 32, 32)."""
    rng = torch.Generator().manual_seed(0)
    if source == "real":
        images = training_images(data, SPEC)
        return images[torch.randperm(len(images), generator=rng)[:num_images]]
    name, settings = SOURCES[source]
    method = open_synthesizer(name, teacher, settings, rng=rng)
    parts = [SPEC.decode(method.next_batch().images) for _ in range(num_images // 256)]
    return torch.cat(parts)


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description="Low bits on ResNet-20.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="keep the rows the record has")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    data = args.data / "cifar10.npz"
    teacher = open_resnet(args.weights, 20)
    x, y = load_images(data, SPEC, 10)
    whole = predict(teacher.module, SPEC, x)
    record: dict[str, Any] = {
        "name": "quantize_resnet20",
        "data": "CIFAR-10 (JPEG copy)",
        "settings": to_plain(replace(W4A4, finetune=TUNE)) | {"num_images": NUM_IMAGES},
        "environment": environment("cpu"),
        "rows": {},
    }

    path = Path("benchmarks/records/quantize_resnet20.json")
    if args.resume:
        record["rows"] = made_rows(path, record)

    def measured(row: str, make: Callable[[], nn.Module]) -> None:
        if row in record["rows"]:
            return
        logits = predict(make(), SPEC, x)
        record["rows"][row] = {
            "accuracy": round(100 * accuracy(logits, y), 2),
            "agreement": round(100 * agreement(logits, whole), 2),
        }
        print(row, record["rows"][row], flush=True)
        path.write_text(json.dumps(record, indent=2) + "\n")

    measured("FP32", lambda: teacher.module)
    eight = QuantizeSettings()
    whole_tensor = replace(eight, per_channel=False, first_last_bits=None)
    measured("W8A8, no input", lambda: quantize_without_inputs(teacher, eight))
    measured("W8A8 per tensor, no input", lambda: quantize_without_inputs(teacher, whole_tensor))
    images_of = cache(partial(source_images, teacher=teacher, data=data))

    def quantized(source: str, settings: QuantizeSettings) -> nn.Module:
        rng = torch.Generator().manual_seed(0)
        return quantize(teacher, images_of(source), settings, rng=rng)

    tuned = replace(W4A4, finetune=TUNE)
    for name, settings in {"W8A8": eight, "W4A4": W4A4, "W4A4 fine-tuned": tuned}.items():
        for source in ("real", *SOURCES):
            measured(f"{name}, {source}", partial(quantized, source, settings))


if __name__ == "__main__":
    main()
