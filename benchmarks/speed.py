"""Time a step: written by hand, by Dreamstill, and with its images; float32 beside bfloat16.

    python -m benchmarks speed

Networks with random weights. `by_hand` is a plain training loop on stored images with the same
losses and optimizer; `trained` is Dreamstill's step on the same images; `whole` is the default,
with images that are drawn, fitted to the teacher, augmented and mixed. All take turns in one
process; `overhead` is the median over the turns of `trained` to `by_hand` in the same turn.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.config import Precision
from dreamstill.data.config import NO_AUGMENTATION
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.batch_stream import replay
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.distillation import Distillation
from dreamstill.distillation.model_selection import ModelSelector
from dreamstill.distillation.trainer import Trainer
from dreamstill.input_spec import InputSpec
from dreamstill.nn.lenet import lenet5, lenet5_bn
from dreamstill.nn.plain_cnn import plain_cnn
from dreamstill.nn.resnet_cifar import resnet20, resnet56
from dreamstill.pipelines.distill import open_student
from dreamstill.pipelines.process import flush_denormals
from dreamstill.pipelines.run_directory import environment
from dreamstill.synthesis.methods.image_programs import ImagePrograms, ImageProgramsConfig
from dreamstill.synthesis.validation_set import validation_set
from dreamstill.teacher import Teacher

GREY, COLOR = (1, 28, 28), (3, 32, 32)
PAIRS = {
    "LeNet-5 to its half": (lenet5, "dreamstill.nn.lenet:lenet5_half", GREY),
    "LeNet-5-BN to its half": (lenet5_bn, "dreamstill.nn.lenet:lenet5_half_bn", GREY),
    "ResNet-20 to its half": (resnet20, "dreamstill.nn.resnet_cifar:resnet20_half", COLOR),
    "ResNet-56 to ResNet-20": (resnet56, "dreamstill.nn.resnet_cifar:resnet20", COLOR),
    "plain CNN to its half": (plain_cnn, "dreamstill.nn.plain_cnn:plain_cnn_half", COLOR),
}
PRECISIONS = (Precision.FLOAT32, Precision.BFLOAT16)
SETTINGS = DistillConfig(steps=10**6, num_validation=64, validate_every=10**6)
TURNS, WARM_UP = 32, 4
"""Turns that are timed, a multiple of the steps from one fresh batch to the next; and before."""


def by_hand(
    teacher: nn.Module, student: nn.Module, batches: Iterator[Tensor], precision: Precision
) -> Iterator[None]:
    """Take steps of a loop as one would write it for these networks alone."""
    optimizer = torch.optim.Adam(student.parameters(), SETTINGS.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SETTINGS.steps)
    low, temperature = precision is Precision.BFLOAT16, SETTINGS.temperature
    layout = torch.channels_last if low else torch.contiguous_format
    teacher.eval().to(memory_format=layout)  # type: ignore[call-overload]
    student.train().to(memory_format=layout)  # type: ignore[call-overload]
    for images in batches:
        x = images.to(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            with torch.no_grad():
                wanted = teacher(x).float()
            logits = student(x).float()
        loss = F.l1_loss(logits, wanted) + temperature**2 * F.kl_div(
            (logits / temperature).log_softmax(1),
            (wanted / temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        loss.item()
        yield


def runners(pair: str, precision: Precision, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what takes one step of each kind."""
    build, student, shape = PAIRS[pair]
    spec = InputSpec(shape=shape, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])

    def rng() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    torch.manual_seed(0)
    teacher = Teacher(build(), spec, precision=precision)
    settings = replace(SETTINGS, buffer_size=1024, prefill=256)
    plain = replace(settings, augment=NO_AUGMENTATION)
    stored = torch.randint(0, 256, (1024, *shape), generator=rng(), dtype=torch.uint8)
    images = (x for x, _ in replay(stored, spec, plain, rng()))
    given = replay(stored, spec, plain, rng())
    selector = ModelSelector(validation_set(teacher, settings.num_validation), spec)
    students = [open_student(student, teacher, rng()) for _ in range(3)]
    trainer = Trainer(teacher, students[0], given, selector, settings, rng=rng())
    draws = ImagePrograms(teacher, ImageProgramsConfig(), rng=rng())
    buffer = ReplayBuffer(folder / precision, spec, settings.buffer_size)
    whole = Distillation(teacher, students[1], draws, buffer, settings, rng=rng())
    with_images = whole.run()
    while next(with_images).stage != "distill":
        pass
    return {
        "by_hand": partial(next, by_hand(build(), students[2], images, precision)),
        "trained": partial(next, trainer.run()),
        "whole": partial(next, with_images),
    }


def timed(pair: str) -> dict[str, dict[str, Any]]:
    """Return milliseconds of a step of a pair, and what they say, by precision."""
    with TemporaryDirectory() as folder:
        steps = {
            (kind, precision): step
            for precision in PRECISIONS
            for kind, step in runners(pair, precision, Path(folder)).items()
        }
        seconds: dict[tuple[str, Precision], list[float]] = {key: [] for key in steps}
        for _ in range(WARM_UP + TURNS):
            for key, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[key].append(time.perf_counter() - start)
    kept = {key: values[WARM_UP:] for key, values in seconds.items()}
    plain = statistics.mean(kept["whole", Precision.FLOAT32])
    rows: dict[str, dict[str, Any]] = {}
    for precision in PRECISIONS:
        hand, ours, whole = (kept[kind, precision] for kind in ("by_hand", "trained", "whole"))
        mean = statistics.mean(whole)  # some draw images
        rows[f"{pair}, {precision}"] = {
            "by_hand": round(1000 * statistics.median(hand), 1),
            "trained": round(1000 * statistics.median(ours), 1),
            "overhead": round(statistics.median(b / a for a, b in zip(hand, ours, strict=True)), 3),
            "whole": round(1000 * mean, 1),
            "visits_per_second": round(SETTINGS.batch_size / mean),
            "times_float32": round(plain / mean, 2),
        }
    return rows


def main() -> None:
    """Time all pairs; write the record."""
    flush_denormals()
    record: dict[str, Any] = {
        "name": "speed",
        "data": "milliseconds of a training step",
        "settings": {"turns": TURNS, "batch_size": SETTINGS.batch_size},
        "environment": environment("cpu"),
        "rows": {},
    }
    for pair in PAIRS:
        for name, row in timed(pair).items():
            record["rows"][name] = row
            print(name, json.dumps(row), flush=True)
        Path("benchmarks/records/speed.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
