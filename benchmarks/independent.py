"""Bring the independent CIFAR-10 ResNets into a folder of teachers, as the benchmarks expect them.

    python -m benchmarks independent --data FOLDER --weights FILE.th --depth 20 --out TEACHERS

Writes resnet20.safetensors and its card. The accuracy in the card is measured on FOLDER's
cifar10.npz, a JPEG copy (quality 75, PSNR about 30 dB) of the set that the weights were trained on.
"""

import argparse
import json
import os
from pathlib import Path

from safetensors.torch import save_file

from dreamstill.data.images import load_images
from dreamstill.evaluation import accuracy, predict
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.state_dict import load_module

SPEC = InputSpec(shape=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def main() -> None:
    parser = argparse.ArgumentParser(description="An independent ResNet as a teacher.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--depth", type=int, choices=(20, 56), default=20)
    parser.add_argument("--out", type=Path, required=True, help="folder to make or add to")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    factory = f"dreamstill.nn.resnet_cifar:resnet{args.depth}"
    model = load_module(factory, args.weights).eval()
    x, y = load_images(args.data / "cifar10.npz", SPEC, 10)
    card = {
        "factory": factory,
        "shape": SPEC.shape,
        "mean": SPEC.mean,
        "std": SPEC.std,
        "num_classes": 10,
        "accuracy": round(accuracy(predict(model, SPEC, x), y), 4),
        "trained_on": "lossless CIFAR-10, by others; accuracy on the JPEG copy",
        "settings": {"source": args.weights.name},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"resnet{args.depth}.safetensors"
    save_file(model.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(path, card["accuracy"])


if __name__ == "__main__":
    main()
