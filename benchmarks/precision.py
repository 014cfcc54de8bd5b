"""Seconds of a student step in float32 and bfloat16, side by side in one process.

    python -m benchmarks precision

Networks with random weights, teacher and student of one architecture's width and half, batches of
64 structured images that are drawn before; the two take turns and the medians of 20 steps are
compared, as a ratio.
"""

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dreamstill.config import Precision
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.distillation import Distillation
from dreamstill.input_spec import InputSpec
from dreamstill.nn.lenet import lenet5_bn
from dreamstill.nn.resnet_cifar import resnet20, resnet56
from dreamstill.pipelines.distill import open_student
from dreamstill.pipelines.process import flush_denormals
from dreamstill.pipelines.run_directory import environment
from dreamstill.synthesis.config import RandomShapes
from dreamstill.synthesis.random_shapes import structured_images
from dreamstill.synthesis.stored_images import StoredImages
from dreamstill.teacher import Teacher

PAIRS = {
    "LeNet-5-BN to its half": (lenet5_bn, "dreamstill.nn.lenet:lenet5_half_bn", (1, 28, 28)),
    "ResNet-20 to its half": (resnet20, "dreamstill.nn.resnet_cifar:resnet20_half", (3, 32, 32)),
    "ResNet-56 to ResNet-20": (resnet56, "dreamstill.nn.resnet_cifar:resnet20", (3, 32, 32)),
}
SETTINGS = DistillConfig(steps=10**6, batch_size=64, num_validation=64, validate_every=10**6)
STEPS = 20


def opened(pair: str, folder: Path, precision: Precision) -> Distillation:
    build, student, shape = PAIRS[pair]
    rng = torch.Generator().manual_seed(0)
    spec = InputSpec(shape=shape, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    teacher = Teacher(build(), spec, precision=precision)
    images = spec.decode(spec.normalize(structured_images(256, spec, RandomShapes(), rng)))
    source = StoredImages(teacher, images, 64, rng=rng)
    buffer = ReplayBuffer(folder / precision, spec, 64)
    config = replace(SETTINGS, buffer_size=64)
    network = open_student(student, teacher, rng)
    return Distillation(teacher, network, source, buffer, config, rng=rng)


def main() -> None:
    flush_denormals()
    record: dict[str, Any] = {
        "name": "precision",
        "data": "milliseconds of a student step",
        "settings": {"steps": STEPS, "batch_size": 64},
        "environment": environment("cpu"),
        "rows": {},
    }
    for pair in PAIRS:
        with tempfile.TemporaryDirectory() as temporary:
            runs = {p: opened(pair, Path(temporary), p).run() for p in Precision}
            seconds: dict[Precision, list[float]] = {p: [] for p in Precision}
            for _ in range(STEPS + 4):  # the first ones hold out images and warm up
                for precision, run in runs.items():
                    start = time.perf_counter()
                    next(run)
                    seconds[precision].append(time.perf_counter() - start)
        median = {p: 1000 * statistics.median(times[4:]) for p, times in seconds.items()}
        record["rows"][pair] = {
            **{p.value: round(ms, 1) for p, ms in median.items()},
            "ratio": round(median[Precision.FLOAT32] / median[Precision.BFLOAT16], 2),
        }
        print(pair, record["rows"][pair], flush=True)
    Path("benchmarks/records/precision.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
