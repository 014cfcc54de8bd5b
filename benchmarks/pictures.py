"""Grids of what every method makes of one teacher, a row a class: docs/pictures/NAME_METHOD.png.

    python -m benchmarks pictures mnist --data FOLDER
    python -m benchmarks pictures cifar10 --data FOLDER --teachers TEACHERS    (see `independent`)

The teacher and the settings are those of the reference benchmark. Adversarial methods play against
a student for 300 steps first. After the images of a class stand their mean and, for comparison, the
mean of the real images that the teacher takes for that class.
"""

import argparse
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kinds.distill import Distill, Row, open_row
from benchmarks.runner import read_config, training_images
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.distillation import Distillation
from dreamstill.evaluation import predict
from dreamstill.pipelines.distill import open_student
from dreamstill.pipelines.process import flush_denormals
from dreamstill.report.figures import class_rows, png
from dreamstill.teacher import Teacher

BENCHMARKS = {
    "mnist": "reference_mnist",
    "fashion_mnist": "reference_fashion_mnist",
    "cifar10": "reference_cifar10_resnet",
}
SHOWN = 6
ROWS = (
    "structured_noise",
    "noise",
    "dafl",
    "deepinversion",
    "deepinversion from structured noise",
    "adaptive deepinversion",
    "zskd",
    "zskt",
    "dfad",
    "rdskd",
    "abd",
    "knowledge within (bns+i)",
    "knowledge within (inception)",
    "knowledge within (bns)",
    "metadata (all)",
    "metadata (top)",
    "metadata (spectral)",
    "metadata (spectral-pairs)",
    "real",
)


def drawn(row: Row, teacher: Teacher, student: str, data: Path) -> tuple[Tensor, Tensor]:
    """uint8 images (N, C, H, W) of a row and the classes that the teacher names."""
    rng = torch.Generator().manual_seed(0)
    network = open_student(student, teacher, rng)
    with tempfile.TemporaryDirectory() as folder:
        source = open_row(row, teacher, data, Path(folder), rng)
        if source.fresh_every:
            distill = replace(row.distill, steps=300)
            buffer = ReplayBuffer(
                Path(folder) / "replay_buffer", teacher.input_spec, distill.buffer_size
            )
            for _ in Distillation(teacher, network, source, buffer, distill, rng=rng).run():
                pass
        batches = [source.next_batch(network) for _ in range(2)]
    images = torch.cat([teacher.input_spec.decode(batch.images) for batch in batches])
    return images, torch.cat([batch.logits for batch in batches]).argmax(1)


def grid(images: Tensor, classes: Tensor, real: Tensor) -> bytes:
    """A PNG, a row for each class that was named: images, their mean, their mean in `real`."""
    rows, names = [], []
    for k in range(len(real)):
        own = images[classes == k].float() / 255
        if len(own):
            blank = torch.ones_like(own[:1]).repeat(SHOWN + 1, 1, 1, 1)
            blank[: min(SHOWN, len(own))] = own[:SHOWN]
            rows.append([*blank.numpy(), own.mean(0).numpy(), real[k].numpy()])
            names.append(str(k))
    return png(class_rows(rows, names))


def class_means(teacher: Teacher, data: Path) -> Tensor:
    """(K, C, H, W) in [0, 1]: of 2,000 real images, by the teacher's answer."""
    images = training_images(data, teacher.input_spec)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:2000]]
    classes = predict(teacher.module, teacher.input_spec, images).argmax(1)
    return torch.stack(
        [images[classes == k].float().mean(0) / 255 for k in range(teacher.num_classes)]
    )


def file_name(row: str) -> str:
    """Of a row's picture.

    >>> file_name("metadata (spectral-pairs)"), file_name("metadata (all)")
    ('metadata_spectral_pairs', 'metadata')
    """
    plain = row.replace(" (bns+i)", "").replace(" (all)", "")  # what the methods are at first
    return re.sub(r"[^a-z]+", "_", plain).strip("_")


def main() -> None:
    flush_denormals()
    parser = argparse.ArgumentParser(description="Grids of every method.")
    parser.add_argument("data_set", choices=BENCHMARKS)
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--teachers", type=Path, default=Path("benchmarks/teachers"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    benchmark = Distill(read_config(BENCHMARKS[args.data_set]), args.data, args.teachers)
    means = class_means(benchmark.teacher(), benchmark.data)
    folder = Path("docs/pictures")
    folder.mkdir(parents=True, exist_ok=True)
    for name in [name for name in args.rows if name in benchmark.rows]:
        teacher = benchmark.teacher()
        student = benchmark.config["student"]
        images, classes = drawn(benchmark.rows[name], teacher, student, benchmark.data)
        path = folder / f"{args.data_set}_{file_name(name)}.png"
        path.write_bytes(grid(images, classes, means))
        print(path, torch.bincount(classes, minlength=teacher.num_classes).tolist(), flush=True)


if __name__ == "__main__":
    main()
