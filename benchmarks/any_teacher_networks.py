"""Train the teachers of the `any_*` benchmarks that TEACHERS lacks.

    python -m benchmarks any_teacher_networks --data DATA --out TEACHERS [--weights FOLDER]

DATA holds the .npz files of the sets. Five more are written beside them: the first 20 classes of
tiny_imagenet.npz, fashion_mnist.npz in 32 pixels, which KegNet's network reads, camvid.npz in 96 x
128, and celeba.npz in 64 x 64, with its attributes and with the most balanced of them as two
classes. FOLDER holds kegnet_fashion.pth.tar, as its authors published it.
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
VOID = 11
"""CamVid's mark of a pixel of no class."""


class Training(NamedTuple):
    """What `train_teacher` is told."""

    data: str
    factory: str
    epochs: int
    options: tuple[str, ...] = ()


FLIPS = ("--shift", "0", "--flip")
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
    "encoder_decoder_camvid": Training(
        "camvid_128",
        "benchmarks.networks:encoder_decoder",
        80,
        ("--outputs", "dense", "--batch-size", "16", *FLIPS),
    ),
    "attributes_celeba": Training(
        "celeba_64", "benchmarks.networks:attributes_cnn", 12, ("--outputs", "labels", *FLIPS)
    ),
    "alexnet_celeba": Training("celeba_balanced", "benchmarks.networks:alexnet", 16, FLIPS),
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


def shrunk(data: Path) -> None:
    """Write CamVid in 96 x 128 pixels; a pixel of no class is 255."""
    with np.load(data / "camvid.npz") as archive:
        arrays = {}
        for part in ("train", "test"):
            images = torch.from_numpy(archive[f"x_{part}"]).float()
            small = F.interpolate(images, (96, 128), mode="bilinear", antialias=True)
            arrays[f"x_{part}"] = small.round().clamp(0, 255).to(torch.uint8).numpy()
            classes = torch.from_numpy(archive[f"y_{part}"])[:, None].float()
            nearest = F.interpolate(classes, (96, 128), mode="nearest-exact")[:, 0].to(torch.uint8)
            arrays[f"y_{part}"] = nearest.masked_fill(nearest == VOID, 255).numpy()
    np.savez(data / "camvid_128.npz", allow_pickle=False, **arrays)


def cropped(data: Path) -> None:
    """Write CelebA in 64 x 64 pixels: the middle of the pictures, bilinear."""
    with np.load(data / "celeba.npz") as archive:
        arrays = {name: archive[name] for name in ("y_train", "y_test")}
        for name in ("x_train", "x_test"):
            images = torch.from_numpy(archive[name])[:, :, 10:99].float()
            small = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
            arrays[name] = small.round().clamp(0, 255).to(torch.uint8).numpy()
    np.savez(data / "celeba_64.npz", allow_pickle=False, **arrays)


def balanced(data: Path) -> None:
    """Write `cropped` with the attribute that most nearly half of the faces have as two classes."""
    with np.load(data / "celeba_64.npz") as archive:
        arrays = dict(archive)
    shares = arrays["y_train"].mean(0)
    attribute = np.abs(shares - 0.5).argmin()
    for name in ("y_train", "y_test"):
        arrays[name] = arrays[name][:, attribute]
    np.savez(data / "celeba_balanced.npz", allow_pickle=False, **arrays)


DERIVED = {
    "tiny_imagenet_20": first_classes,
    "fashion_mnist_32": enlarged,
    "camvid_128": shrunk,
    "celeba_64": cropped,
    "celeba_balanced": balanced,
}
"""Sets that are made from others, which lie beside them."""


def main() -> None:
    parser = argparse.ArgumentParser(description="The teachers of the any_* benchmarks.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--out", type=Path, required=True, help="folder to make or add to")
    parser.add_argument("--weights", type=Path, help="folder of KegNet's weights")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    for name, write in DERIVED.items():  # in order: the last are made from others
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
