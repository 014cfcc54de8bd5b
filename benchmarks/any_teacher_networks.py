"""Train the teachers of the `any_*` benchmarks that TEACHERS lacks.

    python -m benchmarks any_teacher_networks --data DATA --out TEACHERS [--weights FOLDER]

DATA holds the .npz files of the sets. Two more are written beside them: the first 20 classes of
tiny_imagenet.npz, and fashion_mnist.npz in 32 pixels, which KegNet's network reads. FOLDER holds
kegnet_fashion.pth.tar, as its authors published it.
"""

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import independent, train_teacher

TINY_CLASSES = 20


class Training(NamedTuple):
    """What `train_teacher` is told."""

    data: str
    factory: str
    epochs: int
    options: tuple[str, ...] = ()


TRAININGS = {
    "filled_shapes": Training("filled_shapes", "dreamstill.nn.plain_cnn:small_plain_cnn", 10),
    "strided_cnn_usps": Training("usps", "benchmarks.networks:strided_cnn", 30, ("--shift", "1")),
    "group_norm_fashion_mnist": Training(
        "fashion_mnist", "benchmarks.networks:group_norm_cnn", 8, ("--shift", "0")
    ),
    "vit_mnist": Training("mnist", "benchmarks.networks:vit", 8),
    "tiny_imagenet_20": Training(
        "tiny_imagenet_20", "benchmarks.networks:tiny_imagenet_cnn", 40, ("--shift", "6", "--wide")
    ),
    "plain_cnn_cifar10": Training(
        "cifar10", "dreamstill.nn.plain_cnn:plain_cnn", 12, ("--shift", "4", "--wide")
    ),
}


def first_classes(data: Path) -> None:
    """Write the first classes of Tiny-ImageNet as a set of their own."""
    with np.load(data / "tiny_imagenet.npz") as archive:
        arrays = {}
        for part in ("train", "test"):
            chosen = archive[f"y_{part}"] < TINY_CLASSES
            for name in (f"x_{part}", f"y_{part}"):
                arrays[name] = archive[name][chosen]
    np.savez(data / "tiny_imagenet_20.npz", allow_pickle=False, **arrays)


def enlarged(data: Path) -> None:
    """Write Fashion-MNIST in 32 pixels, bilinear."""
    with np.load(data / "fashion_mnist.npz") as archive:
        arrays = dict(archive)
    for name in ("x_train", "x_test"):
        images = torch.from_numpy(arrays[name]).float()
        large = F.interpolate(images, (32, 32), mode="bilinear")
        arrays[name] = large.round().to(torch.uint8).numpy()
    np.savez(data / "fashion_mnist_32.npz", allow_pickle=False, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description="The teachers of the any_* benchmarks.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--out", type=Path, required=True, help="folder to make or add to")
    parser.add_argument("--weights", type=Path, help="folder of KegNet's weights")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    for write, name in ((first_classes, "tiny_imagenet_20"), (enlarged, "fashion_mnist_32")):
        if not (args.data / f"{name}.npz").exists():
            write(args.data)
    for name, training in TRAININGS.items():
        path = args.out / f"{name}.safetensors"
        if not path.exists():
            named = ["--factory", training.factory, "--epochs", str(training.epochs)]
            data = args.data / f"{training.data}.npz"
            train_teacher.main([str(data), str(path), *named, *training.options])
    if args.weights:
        independent.write("kegnet", args.weights / "kegnet_fashion.pth.tar", args.data, args.out)


if __name__ == "__main__":
    main()
