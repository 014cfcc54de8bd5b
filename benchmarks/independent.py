"""Bring networks that others trained into a folder of teachers, as the benchmarks expect them.

    python -m benchmarks independent --data FOLDER --weights FILE --network resnet20 --out TEACHERS

Writes resnet20.safetensors and its card, with the accuracy on FOLDER's data: of the ResNets on its
cifar10.npz, a JPEG copy (quality 75, PSNR about 30 dB) of the set that they were trained on.
"""

import argparse
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from dreamstill.data.images import load_images
from dreamstill.evaluation import accuracy, predict
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.factory import build

CIFAR = InputSpec(shape=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Network(NamedTuple):
    """A network that others trained."""

    factory: str
    data: str
    spec: InputSpec
    key: str
    """Entry of the file that holds the weights."""
    trained_on: str


ON_CIFAR = "lossless CIFAR-10, by others; accuracy on the JPEG copy"
NETWORKS = {
    "resnet20": Network(
        "dreamstill.nn.resnet_cifar:resnet20", "cifar10", CIFAR, "state_dict", ON_CIFAR
    ),
    "resnet56": Network(
        "dreamstill.nn.resnet_cifar:resnet56", "cifar10", CIFAR, "state_dict", ON_CIFAR
    ),
    "kegnet": Network(
        "benchmarks.networks:kegnet_resnet14",
        "fashion_mnist_32",
        InputSpec((1, 32, 32), mean=(0.2856,), std=(0.3385,)),
        "model_state",
        "Fashion-MNIST, by others",
    ),
}


def write(name: str, weights: Path, data: Path, out: Path) -> None:
    """Write a network and its card into `out`; `weights` is the file that its authors published."""
    network = NETWORKS[name]
    model = build(network.factory).eval()
    state = torch.load(weights, map_location="cpu", weights_only=True)[network.key]
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    x, y = load_images(data / f"{network.data}.npz", network.spec, 10)
    card = {
        "factory": network.factory,
        "shape": network.spec.shape,
        "mean": network.spec.mean,
        "std": network.spec.std,
        "num_classes": 10,
        "accuracy": round(accuracy(predict(model, network.spec, x), y), 4),
        "trained_on": network.trained_on,
        "settings": {"source": weights.name},
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.safetensors"
    save_file(model.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(path, card["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description="A network that others trained, as a teacher.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--out", type=Path, required=True, help="folder to make or add to")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    write(args.network, args.weights, args.data, args.out)


if __name__ == "__main__":
    main()
