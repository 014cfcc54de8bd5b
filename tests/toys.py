"""Networks whose right answers are known by hand, and a factory for each."""

import json
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamstill.input_spec import InputSpec
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.config import DistillJob, JobConfig, SynthesizeJob
from dreamstill.synthesis.config import StructuredNoiseConfig
from dreamstill.teacher import Teacher

SPEC = InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.25,))
SIGNAL = InputSpec(shape=(1, 1, 64), mean=(0.5,), std=(0.25,))
"""Input space [-2, 2]."""


def images_job(job: DistillJob, num_images: int) -> SynthesizeJob:
    """Return the job of the images alone that a distillation would learn from."""
    shared = {field.name: getattr(job, field.name) for field in fields(JobConfig)}
    return SynthesizeJob(**shared, num_images=num_images)


class Quadrants(nn.Module):
    """Four classes: which quadrant of the image is the brightest. Exact by construction."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        with torch.no_grad():
            self.head.weight.copy_(5 * torch.eye(4))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(
            x.mean(1, keepdim=True), (x.shape[2] // 2, x.shape[3] // 2)
        )
        logits: Tensor = self.head(means.flatten(1))
        return logits


class SmallCnn(nn.Module):
    """A convolution with BatchNorm, pooled, and a linear layer; any input size."""

    def __init__(self, channels: int = 1, num_classes: int = 4, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm(self.conv(x)))
        logits: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))
        return logits


class MobileNet(nn.Module):
    """Inverted residuals as MobileNetV2 has them, the last one within a sum; 16 pixels or more."""

    def __init__(self, clip: Callable[[], nn.Module] = nn.ReLU6) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, size: int = 1, groups: int = 1) -> list[nn.Module]:
            padding = size // 2
            conv = nn.Conv2d(inputs, outputs, size, padding=padding, groups=groups, bias=False)
            return [conv, nn.BatchNorm2d(outputs)]

        def block() -> nn.Sequential:
            expand, depthwise, project = layer(8, 24), layer(24, 24, 3, 24), layer(24, 8)
            return nn.Sequential(*expand, clip(), *depthwise, clip(), *project)

        self.stem = nn.Sequential(*layer(3, 8, 3), clip())
        self.block, self.residual = block(), block()
        self.top, self.head = nn.Sequential(*layer(8, 32), clip()), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x))
        x = self.top(x + self.residual(x))
        logits: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class SameConv2d(nn.Conv2d):
    """TensorFlow's padding "same", as EfficientNet's code has it: more to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        sides = zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        height, width = (max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in sides)
        x = nn.functional.pad(
            x, [width // 2, width - width // 2, height // 2, height - height // 2]
        )
        return nn.functional.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class EfficientNet(nn.Module):
    """An inverted residual and one of stride 2, padded as in TensorFlow; a ReLU6 runs twice."""

    def __init__(self) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, size: int, stride: int, groups: int) -> nn.Sequential:
            conv = SameConv2d(inputs, outputs, size, stride, groups=groups, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs))

        def block(stride: int) -> nn.Sequential:
            expand, narrow = layer(6, 12, 1, 1, 1), layer(12, 6, 1, 1, 1)
            depthwise, clip = layer(12, 12, 3, stride, 12), nn.ReLU6()
            return nn.Sequential(expand, clip, depthwise, clip, narrow)

        self.stem, self.same, self.down = layer(3, 6, 3, 2, 1), block(1), block(2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.down(x + self.same(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class NormAct(nn.BatchNorm2d):
    """BatchNorm that runs the activation too, as timm has it."""

    def __init__(self, width: int, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__(width)
        self.drop, self.act = nn.Identity(), activation()

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        x = nn.functional.batch_norm(x, mean, var, self.weight, self.bias, self.training)
        activated: Tensor = self.act(self.drop(x))
        return activated


class ResNeXt(nn.Module):
    """A residual block whose middle convolution has four groups."""

    def __init__(self, width: int = 8, inner: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.expand, self.norm = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.grouped = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.shrink, self.head = nn.Conv2d(inner, width, 1), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        inner = torch.relu(self.grouped(torch.relu(self.norm(self.expand(x)))))
        logits: Tensor = self.head(torch.relu(x + self.shrink(inner)).mean((2, 3)))
        return logits


class ShuffleNet(nn.Module):
    """Units of ShuffleNetV2: half of the channels pass by, and all are shuffled by hand."""

    def __init__(self) -> None:
        super().__init__()

        def branch() -> nn.Sequential:
            depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            return nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), depthwise, nn.Conv2d(8, 8, 1))

        self.stem, self.units = nn.Conv2d(3, 16, 3), nn.ModuleList(branch() for _ in range(3))
        self.top, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for unit in self.units:
            passed, changed = x.chunk(2, 1)
            n, c, h, w = x.shape
            x = torch.cat([passed, unit(changed)], 1)
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        logits: Tensor = self.head(torch.relu(self.top(x)).mean((2, 3)))
        return logits


class Tokens(nn.Module):
    """A parameter added to every token, one before the first, and one that scales them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 2, 2), nn.Linear(width, 2)
        self.token, self.places = (nn.Parameter(torch.randn(1, n, width)) for n in (1, 5))
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        logits: Tensor = self.last((self.scale * x).relu().mean(1))
        return logits


class SqueezeNet(nn.Module):
    """A fire module, and a convolution, ReLU and average in the place of a linear layer."""

    def __init__(self, after: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1)
        self.one, self.three = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 3, padding=1)
        pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Conv2d(32, 4, 1), after(), pool, nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(torch.relu(self.stem(x))))
        logits: Tensor = self.head(torch.relu(torch.cat([self.one(x), self.three(x)], 1)))
        return logits


class Segmenter(nn.Module):
    """Classes of pixels: a step down, a step up, and the fine features beside the coarse ones."""

    def __init__(self, num_classes: int = 3, width: int = 6) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1, width, 3, padding=1)
        self.fine_norm = nn.BatchNorm2d(width)
        self.coarse = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.coarse_norm = nn.BatchNorm2d(2 * width)
        self.up = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Conv2d(2 * width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = nn.functional.relu(self.fine_norm(self.fine(x)))
        coarse = nn.functional.relu(self.coarse_norm(self.coarse(fine)))
        up = nn.functional.interpolate(self.up(coarse), scale_factor=2.0, mode="nearest")
        logits: Tensor = self.head(torch.cat([fine, up], 1))
        return logits


class Sensor(nn.Module):
    """Two convolutions with BatchNorm of a signal, which is a picture of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv1d(1, 4, 5), nn.BatchNorm1d(4)
        self.second, self.norm2 = nn.Conv1d(4, 4, 5), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x.squeeze(2))).relu()
        logits: Tensor = self.head(self.norm2(self.second(x)).relu().mean(2))
        return logits


class Recurrent(nn.Module):
    """A GRU over eight parts of a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cells(x.reshape(-1, 8, 8))
        logits: Tensor = self.head(states[:, -1])
        return logits


class Block(nn.Module):
    """A block of torchvision's VisionTransformer."""

    def __init__(self, dim: int, norm_layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = norm_layer(dim), norm_layer(dim)
        self.self_attention = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        attended, _ = self.self_attention(y, y, y, need_weights=False)
        x = x + attended
        mixed: Tensor = self.mlp(self.ln_2(x))
        return x + mixed


class ViT(nn.Module):
    """torchvision's VisionTransformer in small, with the partial that it keeps; 8 pixels."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.norm_layer = partial(nn.LayerNorm, eps=1e-6)
        self.conv_proj, self.hidden_dim = nn.Conv2d(1, dim, 4, 4), dim
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.empty(1, 5, dim).normal_(std=0.02))
        self.layers = nn.Sequential(Block(dim, self.norm_layer), Block(dim, self.norm_layer))
        self.ln, self.head = self.norm_layer(dim), nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        num = x.shape[0]
        x = self.conv_proj(x).reshape(num, self.hidden_dim, -1).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(num, -1, -1), x], 1) + self.pos_embedding
        logits: Tensor = self.head(self.ln(self.layers(x))[:, 0])
        return logits


class Encoder(nn.Module):
    """torch's own encoder layers over the rows of an image, and functions as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.squash = nn.Linear(8, 16), torch.tanh
        layer = nn.TransformerEncoderLayer(
            16, 2, 32, 0.0, activation=nn.functional.gelu, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.squash(self.embed(x.squeeze(1))))
        logits: Tensor = self.head(x.mean(1))
        return logits


def vit() -> ViT:
    with seeded(torch.Generator().manual_seed(0)):
        return ViT()


def encoder() -> Encoder:
    with seeded(torch.Generator().manual_seed(0)):
        return Encoder()


def small_cnn() -> SmallCnn:
    with seeded(torch.Generator().manual_seed(3)):
        model = SmallCnn()
    model.norm.running_mean.copy_(torch.linspace(-0.5, 0.5, 6))  # type: ignore[union-attr]
    return balanced(model)


def write_teacher(folder: Path) -> Path:
    """Write `small_cnn` into a folder, with its card, and return the path of its weights."""
    weights = folder / "teacher.safetensors"
    save_file(small_cnn().state_dict(), weights)
    write_card(folder)
    return weights


def write_card(folder: Path, **changes: object) -> None:
    """Write the card of `small_cnn` beside its weights, with changes."""
    card = {"factory": "toys:small_cnn", "shape": [1, 8, 8], "mean": [0.5], "std": [0.25]}
    (folder / "teacher.json").write_text(json.dumps(card | changes))


@torch.no_grad()
def balanced(model: SmallCnn) -> SmallCnn:
    """Every class is named by some images."""
    size = (256, model.conv.in_channels, 8, 8)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(4))
    model.head.bias.sub_(model.eval()(noise).mean(0))
    return model.train()


def student() -> SmallCnn:
    return SmallCnn(width=4)


def seeded_student() -> SmallCnn:
    with seeded(torch.Generator().manual_seed(5)):
        return SmallCnn(width=4)


def segmenter() -> Segmenter:
    """Return a Segmenter with varied statistics, the same for every call."""
    with seeded(torch.Generator().manual_seed(7)):
        model = Segmenter(width=8)
        for norm in (model.fine_norm, model.coarse_norm):
            nn.init.normal_(norm.bias, std=0.5)
    with torch.no_grad():
        model.head.weight *= 8
    return model.eval()


def half_segmenter() -> Segmenter:
    """Return a Segmenter of half the width."""
    return Segmenter(width=4)


class TableSegmenter(Segmenter):
    """Returns its logits in a table, as torchvision's segmentation networks do."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return {"out": logits, "aux": 2 * logits}


def table_segmenter() -> TableSegmenter:
    """Return `segmenter` with a table of outputs."""
    model = TableSegmenter(width=8)
    model.load_state_dict(segmenter().state_dict())
    return model.eval()


def half_table_segmenter() -> TableSegmenter:
    """Return a student of half the width with a table of outputs."""
    return TableSegmenter(width=4)


def structured(**changes: Any) -> StructuredNoiseConfig:
    return StructuredNoiseConfig(**changes)


def quadrants() -> Quadrants:
    return Quadrants()


def cnn_teacher() -> Teacher:
    return Teacher(small_cnn(), SPEC)


def quadrant_teacher() -> Teacher:
    return Teacher(Quadrants(), SPEC)


def forgetful_student() -> nn.Sequential:
    """A student with dropout, which draws from torch's global generator."""
    return nn.Sequential(nn.Dropout(0.2), student())
