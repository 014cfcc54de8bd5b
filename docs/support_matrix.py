"""Run every task on a small network of each kind, and write what works into support.md.

python docs/support_matrix.py
"""

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import dreamstill as ds
from dreamstill.nn.resnet_cifar import ResNetCifar

PAGE = Path(__file__).with_name("support.md")
BEGIN, END = "<!-- made by support_matrix.py -->", "<!-- end -->"
SPEC = ds.InputSpec((3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
SIGNAL = ds.InputSpec((2, 1, 64), mean=(0.5,) * 2, std=(0.25,) * 2)
QUICK = ds.FinetuneConfig(steps=2, batch_size=8, num_validation=4)


def conv(inputs: int, outputs: int, norm: nn.Module | None = None) -> list[nn.Module]:
    """Return a convolution, a norm and a ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1), *([norm] if norm else []), nn.ReLU()]


def head(width: int) -> list[nn.Module]:
    """Return pooling and the last linear layer."""
    return [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 5)]


class Concatenated(nn.Module):
    """Two branches, concatenated, as in DenseNet and Inception."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(*conv(3, width)) for _ in range(2))
        self.mix = nn.Sequential(*conv(2 * width, width), *head(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([self.first(x), self.second(x)], 1))


class Squeezed(nn.Module):
    """Squeeze and excitation, as in EfficientNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv(3, width, nn.BatchNorm2d(width)))
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.last = nn.Sequential(*conv(width, width), *head(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        scale = self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.last(x * scale)


class Transformer(nn.Module):
    """Patches and a transformer's encoder layer, as in ViT."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm, self.mlp = nn.LayerNorm(width), nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.mlp(self.norm(x)).relu()
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    """A GRU over the rows of the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(48, width, batch_first=True), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.gru(x.transpose(1, 2).flatten(2))[0]
        return self.head(rows[:, -1])


class Signal(nn.Module):
    """Convolutions over a signal, (N, C, 1, L)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, width, 5), nn.Conv1d(width, width, 5)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x.squeeze(2)).relu()).relu()
        return self.head(x.mean(2))


class Viewed(nn.Module):
    """A CNN with a size in its code: x.view(-1, width * 64)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.size = nn.Sequential(*conv(3, width), nn.MaxPool2d(2)), width * 64
        self.head = nn.Linear(self.size, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).view(-1, self.size))


class Segmenting(nn.Module):
    """An encoder and a decoder that sees the fine features too: a class for each pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(*conv(3, width, nn.BatchNorm2d(width)))
        self.coarse = nn.Sequential(nn.MaxPool2d(2), *conv(width, width, nn.BatchNorm2d(width)))
        self.head = nn.Conv2d(2 * width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = nn.functional.interpolate(self.coarse(fine), scale_factor=2.0)
        return self.head(torch.cat([fine, coarse], 1))


def depthwise(width: int) -> nn.Module:
    """Return depthwise convolutions and ReLU6, as in MobileNet."""
    grouped = nn.Conv2d(width, width, 3, padding=1, groups=width)
    first = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU6()]
    second = [grouped, nn.BatchNorm2d(width), nn.ReLU6(), nn.Conv2d(width, width, 1)]
    return nn.Sequential(*first, *second, *head(width))


def with_norm(norm: Callable[[int], nn.Module] | None) -> Callable[[int], nn.Module]:
    """Return a factory of plain CNNs with a norm behind each convolution."""

    def build(width: int) -> nn.Module:
        norms = [norm(width) if norm else None for _ in range(2)]
        return nn.Sequential(*conv(3, width, norms[0]), *conv(width, width, norms[1]), *head(width))

    return build


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "MLP": lambda width: nn.Sequential(
        nn.Flatten(), nn.Linear(768, 4 * width), nn.ReLU(), nn.Linear(4 * width, 5)
    ),
    "CNN": with_norm(None),
    "CNN, BatchNorm": with_norm(nn.BatchNorm2d),
    "CNN, GroupNorm": with_norm(lambda width: nn.GroupNorm(4, width)),
    "ResNet": lambda width: ResNetCifar(8, width=width, num_classes=5),
    "depthwise, ReLU6": depthwise,
    "squeeze and excitation": Squeezed,
    "concatenation": Concatenated,
    "signal, Conv1d": Signal,
    "transformer": Transformer,
    "GRU": Recurrent,
    "size in the code": Viewed,
    "CNN of labels": with_norm(nn.BatchNorm2d),
    "CNN of values": with_norm(nn.BatchNorm2d),
    "classes of pixels": Segmenting,
}
OUTPUTS = {"CNN of labels": "labels", "CNN of values": "values"}
"""What the outputs of a network say, where its shape does not tell."""


def distill(teacher: ds.Teacher, images: Tensor, narrow: nn.Module) -> ds.Result:
    """Train a student from a random start."""
    config = ds.DistillConfig(steps=2, inherit=False, num_validation=4)
    return ds.distill(teacher, narrow, images, config)


def inherit(teacher: ds.Teacher, images: Tensor, narrow: nn.Module) -> ds.Result:
    """Cut the student out of the teacher."""
    config = ds.DistillConfig(steps=0, inherit=True, reconstruct=8, num_validation=4)
    return ds.distill(teacher, narrow, images, config)


def prune(teacher: ds.Teacher, images: Tensor, narrow: nn.Module) -> ds.Result:
    """Prune a little, once."""
    return ds.prune(teacher, images, ds.PruneConfig(keep=0.9, rounds=1, finetune=None))


def learn_classes(teacher: ds.Teacher, images: Tensor, narrow: nn.Module) -> ds.Result:
    """Teach one new class."""
    config = ds.LearnClassesConfig(steps=2, batch_size=8)
    labels = torch.full((16,), teacher.num_classes)
    return ds.learn_classes(teacher, images, images[:16], labels, config)


def export(teacher: ds.Teacher, images: Tensor, narrow: nn.Module) -> None:
    """Write a .pt2 and run it."""
    with tempfile.TemporaryDirectory() as folder:
        ds.export(teacher.module, Path(folder) / "network.pt2", teacher.input_spec)


def optimized(method: str) -> Callable[[ds.Teacher, Tensor, nn.Module], Tensor]:
    """Return a task that asks the teacher for a few images of a method."""
    kind = {"dafl": ds.DaflConfig, "deepinversion": ds.DeepInversionConfig}[method]
    config = kind(batch_size=8) if method == "dafl" else kind(batch_size=8, steps=2)
    return lambda teacher, images, narrow: ds.synthesize(teacher, config, num_images=8)


TASKS: dict[str, Callable[[ds.Teacher, Tensor, nn.Module], object]] = {
    "`image_programs`": lambda teacher, images, _: ds.synthesize(teacher, num_images=8),
    "`dafl`": optimized("dafl"),
    "`deepinversion`": optimized("deepinversion"),
    "`distill`": distill,
    "`inherit`": inherit,
    "`prune`": prune,
    "`merge`": lambda teacher, images, _: ds.merge(teacher, images),
    "`factorize`": lambda teacher, images, _: ds.factorize(
        teacher, images, ds.FactorizeConfig(energy=0.5)
    ),
    "`quantize`": lambda teacher, images, _: ds.quantize(teacher, images),
    "`quantize`, no input": lambda teacher, images, _: ds.quantize(teacher),
    "`pack`": lambda teacher, images, _: ds.pack(
        teacher, images, ds.PackConfig(rounds=1, finetune=None)
    ),
    "`learn_classes`": learn_classes,
    "`.pt2`": export,
}


def matrix() -> str:
    """Return the table of what works, and the reasons for what does not."""
    reasons: list[str] = []
    lines = ['<div class="matrix" markdown>', ""]
    lines += [f"| | {' | '.join(TASKS)} |", "|---" * (len(TASKS) + 1) + "|"]
    for name, build in NETWORKS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            spec = SIGNAL if build is Signal else SPEC
            teacher = ds.Teacher(build(8), spec, outputs=OUTPUTS.get(name))
            narrow = build(4)
        images = ds.synthesize(teacher, num_images=64)
        cells = [cell(run, teacher, images, narrow, reasons) for run in TASKS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", "</div>", "", *notes])


def cell(
    run: Callable[[ds.Teacher, Tensor, nn.Module], object],
    teacher: ds.Teacher,
    images: Tensor,
    narrow: nn.Module,
    reasons: list[str],
) -> str:
    """Return a tick, or a tilde for a part or a cross, with the number of its reason."""
    try:
        result = run(teacher, images, narrow)
    except ds.DreamstillError as error:
        return f"✗ {noted(str(error), reasons)}"
    if isinstance(result, ds.Result) and (whole := result.details.get("skipped")):
        names = ", ".join(f"`{name}`" for name in whole)
        return f"~ {noted(f'skipped: {names}', reasons)}"
    return "✓"


def noted(reason: str, reasons: list[str]) -> str:
    """Return the number of a reason, which is added where it is new."""
    if reason not in reasons:
        reasons.append(reason)
    return f"({reasons.index(reason) + 1})"


def written(table: str) -> str:
    """Return the page with this table."""
    before, rest = PAGE.read_text().split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    logging.getLogger("dreamstill").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    PAGE.write_text(written(matrix()))
