"""Channels are cut only where every layer reads afterwards what it read before."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import toys
from dreamstill.compression.config import MergeConfig, PruneConfig, Target
from dreamstill.compression.merge import merge
from dreamstill.compression.prune import RoundRecord, prune
from dreamstill.errors import ConfigError, DreamstillError, TeacherError
from dreamstill.evaluation import predict
from dreamstill.graph.channel_check import difference
from dreamstill.graph.channel_removal import Cut
from dreamstill.input_spec import InputSpec
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.config import CompressJob, read_job
from dreamstill.pipelines.stages import STAGES, StageContext, check_stages
from dreamstill.profiling import count_macs
from dreamstill.teacher import Teacher

SPEC = InputSpec(shape=(1, 16, 16), mean=(0.5,), std=(0.25,))
ORDER = torch.randperm(32, generator=torch.Generator().manual_seed(3))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def images(num: int = 32, spec: InputSpec = SPEC) -> Tensor:
    return torch.randint(0, 256, (num, *spec.shape), generator=rng(), dtype=torch.uint8)


class Between(nn.Module):
    """Convolutions with something between the second, of 32 channels, and the third."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int = 32) -> None:
        super().__init__()
        self.first, self.maker = nn.Conv2d(1, 24, 3, 1, 1), nn.Conv2d(24, 32, 3, 2, 1)
        self.between = between
        self.reader, self.last = nn.Conv2d(width, 32, 3, 2, 1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.maker(F.relu(self.first(x))))
        x = F.relu(self.reader(self.between(x)))
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits


def net(between: Callable[[Tensor], Tensor], width: int = 32) -> Teacher:
    with seeded(rng()):
        model = Between(between, width)
    with torch.no_grad():
        model.maker.weight[::3] *= 0.1  # these are to go
    return Teacher(model, SPEC)


def pruned(teacher: Teacher, **config: Any) -> tuple[nn.Module, RoundRecord]:
    """Cut once, and left as it was cut."""
    once: dict[str, Any] = {"keep": 0.6, "rounds": 1, "reconstruct": 0, "finetune": None}
    asked = PruneConfig(**(once | config))
    model, records = prune(teacher, images(32, teacher.input_spec), asked, rng=rng())
    return model, records[-1]


def silenced(whole: nn.Module, cut: nn.Module) -> nn.Module:
    """The whole network, with nothing put out and nothing read where channels were cut."""
    whole = copy.deepcopy(whole)
    parts: list[tuple[str, Any]] = list(cut.named_modules())
    for name, layer in parts:
        if type(layer) not in (nn.Conv2d, nn.Linear):
            continue
        full: Any = whole.get_submodule(name)
        with torch.no_grad():
            made = [int((full.bias - bias).abs().argmin()) for bias in layer.bias]
            weight = full.weight[made].transpose(0, 1).flatten(1)
            columns = layer.weight.transpose(0, 1).flatten(1)
            read = [int((weight - column).abs().sum(1).argmin()) for column in columns]
            kept = torch.zeros_like(full.weight)
            kept[torch.tensor(made)[:, None], torch.tensor(read)] = layer.weight
            full.bias *= torch.isin(torch.arange(len(full.bias)), torch.tensor(made))
            full.weight.copy_(kept)
    return whole


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)


def attended(x: Tensor) -> Tensor:
    """Of every channel, shares of all."""
    rows = x.flatten(2)
    return (rows @ rows.transpose(1, 2)).softmax(-1).matmul(rows).view_as(x)


class Held(nn.Module):
    """A parameter, or a buffer, with a value for each channel."""

    def __init__(self, *, parameter: bool) -> None:
        super().__init__()
        value = torch.linspace(-1, 1, 32)[:, None, None]
        if parameter:
            self.scale = nn.Parameter(value)
        else:
            self.register_buffer("scale", value)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Branches(nn.Module):
    """Two layers side by side, put together in some way."""

    def __init__(self, together: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 1)
        self.together = together

    def forward(self, x: Tensor) -> Tensor:
        return self.together(self.one(x), self.other(x))


class Standardized(nn.Conv2d):
    """Its weights depend on how many inputs there are."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


LEFT: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "flip": (lambda x: x.flip(1), 32),
    "roll": (lambda x: x.roll(3, 1), 32),
    "nn.ChannelShuffle": (nn.ChannelShuffle(4), 32),
    "shuffle by hand": (shuffled, 32),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 8),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 128),
    "glu": (lambda x: F.glu(x, 1), 16),
    "chunk": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 32),
    "split": (lambda x: torch.cat(x.split([10, 22], 1)[::-1], 1), 32),
    "every other": (lambda x: x[:, ::2], 16),
    "a slice": (lambda x: x[:, 8:], 24),
    "slices that shift": (lambda x: x[:, 1:] - x[:, :-1], 31),
    "index_select": (lambda x: x.index_select(1, ORDER), 32),
    "fancy indexing": (lambda x: x[:, ORDER], 32),
    "gather": (lambda x: x.gather(1, ORDER[None, :, None, None].expand_as(x)), 32),
    "permute": (lambda x: x.permute(0, 2, 1, 3), 8),
    "transpose": (lambda x: x.transpose(1, 3), 8),
    "fold": (lambda x: F.fold(x.flatten(2), (16, 16), 2, stride=2), 8),
    "einsum": (lambda x: torch.einsum("nchw,ncij->nchw", x, x.softmax(1)), 32),
    "attention over channels": (attended, 32),
    "sort": (lambda x: x.sort(1).values, 32),
    "topk": (lambda x: x.topk(8, 1).values, 8),
    "softmax": (lambda x: x.softmax(1), 32),
    "mean over channels": (lambda x: x - x.mean(1, keepdim=True), 32),
    "local response norm": (nn.LocalResponseNorm(3), 32),
    "F.group_norm": (lambda x: F.group_norm(x, 4), 32),
    "LayerNorm of a map": (nn.LayerNorm([32, 8, 8]), 32),
    "repeat": (lambda x: x.repeat_interleave(2, 1), 64),
    "expand": (lambda x: x.mean(1, keepdim=True).expand(-1, 32, -1, -1), 32),
    "reshape to 32": (lambda x: x.reshape(x.shape[0], 32, 8, 8), 32),
    "view of 16 pairs": (lambda x: x.view(-1, 16, 2, 8, 8).flatten(1, 2), 32),
    "nn.Unflatten": (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (32, 8, 8))), 32),
    "a buffer": (Held(parameter=False), 32),
    "standardized weights": (Standardized(32, 32, 1), 32),
    "a tensor of constants": (lambda x: x * torch.arange(x.shape[1])[:, None, None], 32),
}


@pytest.mark.parametrize("case", LEFT)
def test_makers_of_channels_that_cannot_be_followed_are_skipped(case: str) -> None:
    teacher = net(*LEFT[case])
    model, record = pruned(teacher)
    assert record.skipped == ("maker",)
    assert len(model.maker.weight) == 32  # type: ignore[union-attr, arg-type]
    assert len(model.first.weight) < 24  # type: ignore[union-attr, arg-type]
    if case != "standardized weights":  # where nothing is no longer nothing once it is
        wanted = predict(silenced(teacher.module, model), SPEC, images())
        torch.testing.assert_close(predict(model, SPEC, images()), wanted)


FOLLOWED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "nothing": (lambda x: x, 32),
    "transposed twice": (lambda x: x.permute(0, 3, 2, 1).permute(0, 3, 2, 1), 32),
    "unfold": (lambda x: F.unfold(x, 2, stride=2).view(x.shape[0], -1, 4, 4), 128),
    "cumsum": (lambda x: x.cumsum(1), 32),
    "cat": (lambda x: torch.cat([x, -x], 1), 64),
    "unflatten": (lambda x: x.flatten(1).unflatten(1, (-1, 8, 8)), 32),
    "a parameter": (Held(parameter=True), 32),
    "squeeze and excitation": (Gate(), 32),
    "branches": (Branches(lambda x, y: torch.cat([x, y], 1)), 32),
    "branches that take turns": (Branches(lambda x, y: torch.stack([x, y], 2).flatten(1, 2)), 32),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_what_can_be_followed_is_cut_and_is_the_network_without_these_channels(case: str) -> None:
    teacher = net(*FOLLOWED[case])
    model, record = pruned(teacher, keep_layer=0.2)
    assert record.skipped == ()
    assert len(model.maker.weight) < 32  # type: ignore[union-attr, arg-type]
    wanted = predict(silenced(teacher.module, model), SPEC, images())
    torch.testing.assert_close(predict(model, SPEC, images()), wanted)


NORMS: dict[str, nn.Module] = {
    "group": nn.GroupNorm(4, 32),
    "instance": nn.InstanceNorm2d(32, affine=True),
    "batch": nn.BatchNorm2d(32),
}


@pytest.mark.parametrize("case", NORMS)
def test_norms_lose_channels_too_and_groups_as_many_each(case: str) -> None:
    model, record = pruned(net(NORMS[case]), keep=0.4)
    norm = model.between
    assert record.skipped == ()
    assert len(norm.weight) == len(model.maker.weight) < 32  # type: ignore[union-attr, arg-type]
    if isinstance(norm, nn.GroupNorm):
        assert norm.num_groups == 4


def test_what_flips_two_makers_leaves_both_and_prunes_the_rest() -> None:
    flipped = Branches(lambda x, y: torch.cat([x, y], 1).flip(1))
    _, record = pruned(net(flipped))
    assert record.skipped == ("between.one", "between.other")


COLOR = InputSpec((3, 16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("after", [nn.ReLU, nn.Identity, lambda: nn.BatchNorm2d(4)])
def test_a_convolution_that_makes_the_logits_keeps_its_outputs(
    after: Callable[[], nn.Module],
) -> None:
    with seeded(rng()):
        teacher = Teacher(toys.SqueezeNet(after), COLOR)
    model, record = pruned(teacher)
    assert record.skipped == ()
    assert len(model.get_parameter("head.0.weight")) == 4
    assert len(model.get_parameter("three.weight")) < 16


def test_what_surrounds_a_shuffle_is_skipped_and_the_rest_pruned() -> None:
    with seeded(rng()):
        teacher = Teacher(toys.ShuffleNet(), COLOR)
    model, record = pruned(teacher, keep=0.8)
    assert record.skipped == ("stem", "units.0.3", "units.1.3", "units.2.3")
    wanted = predict(silenced(teacher.module, model), COLOR, images(32, COLOR))
    torch.testing.assert_close(predict(model, COLOR, images(32, COLOR)), wanted)


class LooksOnce(nn.Module):
    """Of flipped channels a cut in the middle is right: what is chosen in the end is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.reader = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 24, 3)
        self.other, self.last = nn.Conv2d(24, 24, 3), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.reader(F.relu(self.maker(x)).flip(1)))
        logits: Tensor = self.last(F.relu(self.other(x)).mean((2, 3)))
        return logits


@pytest.mark.parametrize("smallest", [0, 1, 2])
def test_a_cut_is_looked_at_as_it_was_chosen(smallest: int) -> None:
    with seeded(rng()):
        model = LooksOnce()
    with torch.no_grad():
        model.maker.weight[smallest] *= 1e-3
        model.reader.weight[:, smallest] *= 1e-3
    teacher = Teacher(model, SPEC)
    small, _ = pruned(teacher, keep=0.8)
    wanted = predict(silenced(model, small), SPEC, images())
    torch.testing.assert_close(predict(small, SPEC, images()), wanted)


def test_a_difference_is_put_into_words() -> None:
    teacher = net(lambda x: x.flip(1))
    inputs = SPEC.encode(images(2))
    for channels, said in (([], None), ([0, 31], None), ([0], "reader is given other channels")):
        cut = Cut(copy.deepcopy(teacher.module), inputs[:1])
        if channels:
            cut.remove("maker", channels)
        found = difference(teacher.module, cut, inputs)
        assert found is None if said is None else said in str(found)
    parts = [*teacher.module.modules(), *cut.model.modules()]
    assert not any(part._forward_hooks for part in parts)


class Written(nn.Module):
    """PyTorch's tutorial: x.view(-1, 16 * 4 * 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.hidden, self.last = nn.Linear(256, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2).view(-1, 16 * 4 * 4)
        logits: Tensor = self.last(F.relu(self.hidden(x)))
        return logits


DIGITS = InputSpec(shape=(1, 28, 28), mean=(0.13,), std=(0.31,))
FLATTEN = r"view\(-1, 256\) has second's 16 channels written in: write x\.flatten\(1\)"


def test_a_size_written_into_the_code_is_named_with_what_to_write() -> None:
    with seeded(rng()):
        teacher = Teacher(Written(), DIGITS)
    model, record = pruned(teacher, keep=0.5)
    assert record.skipped == ("second",)
    wanted = predict(silenced(teacher.module, model), DIGITS, images(16, DIGITS))
    torch.testing.assert_close(predict(model, DIGITS, images(16, DIGITS)), wanted)
    with pytest.raises(ConfigError, match=f"keep 0.1 of macs cannot be met: .*{FLATTEN}") as said:
        pruned(teacher, keep=0.1)
    assert len(str(said.value)) < 400
    with pytest.raises(TeacherError, match=f"second cannot be made narrower: {FLATTEN}"):
        merge(teacher.module, DIGITS, MergeConfig(keep=0.8), images(16, DIGITS))
    merge(teacher.module, DIGITS, MergeConfig(layers=("first", "hidden")), images(16, DIGITS))


@pytest.mark.parametrize(
    ("stage", "message"),
    [({"task": "prune", "keep": 0.1}, FLATTEN), ({"task": "merge"}, FLATTEN)],
)
def test_a_compression_says_so_before_any_image_is_made(
    stage: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toys, "small_cnn", Written)
    save_file(Written().state_dict(), tmp_path / "teacher.safetensors")
    card = {"factory": "toys:small_cnn", "shape": [1, 28, 28], "mean": [0.13], "std": [0.31]}
    (tmp_path / "teacher.json").write_text(json.dumps(card))
    monkeypatch.setattr("dreamstill.pipelines.compress.own_images", None)  # nothing is to ask it
    plain = {"teacher": {"weights": str(tmp_path / "teacher.safetensors")}, "stage": [stage]}
    with pytest.raises(DreamstillError, match=message):
        run_compression(tmp_path / "run", read_job(CompressJob, plain))
    assert not (tmp_path / "run").exists()


def test_a_compression_names_what_was_skipped(tmp_path: Path) -> None:
    teacher = net(lambda x: x.flip(1))
    stage = read_job(CompressJob, {"teacher": {"weights": ""}, "stage": [PRUNE]}).stages[0]
    work = StageContext(teacher, images(), rng(), lambda progress: None, tmp_path / "1-prune")
    check_stages([stage], teacher.module, teacher)
    _, record = STAGES["prune"].run(teacher.module, stage.config, work)
    assert record["skipped"] == ["maker"]


PRUNE = {"task": "prune", "keep": 0.6, "rounds": 1, "reconstruct": 0, "finetune": "none"}


class Bottleneck(nn.Module):
    """A hidden layer of 64 on many inputs: they are small each, and cost most of the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.hidden, self.last = nn.Linear(32 * 60, 64), nn.Linear(64, 5)
        with torch.no_grad():
            self.hidden.weight[6:] *= torch.linspace(0.1, 0.3, 58)[:, None]  # most of them small
            self.last.weight[:, 6:] *= 0.1

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        logits: Tensor = self.last(F.relu(self.hidden(x.flatten(1))))
        return logits


@pytest.mark.parametrize("rounds", [1, 4])
def test_no_layer_is_emptied(rounds: int) -> None:
    spec = InputSpec(shape=(1, 40, 24), mean=(0.3,), std=(0.3,))
    with seeded(rng()):
        teacher = Teacher(Bottleneck(), spec)
    emptied, _ = pruned(teacher, keep=0.5, keep_layer=0.01, rounds=rounds)
    assert len(emptied.hidden.weight) < 8  # type: ignore[union-attr, arg-type]
    model, record = pruned(teacher, keep=0.5, rounds=rounds)
    assert len(model.hidden.weight) == 16  # type: ignore[union-attr, arg-type]
    assert record.macs <= 0.5 * count_macs(teacher.module, spec)


def test_a_target_out_of_reach_says_how_far_it_goes() -> None:
    teacher = net(lambda x: x)
    message = r"keep 0\.1 of parameters cannot be met: 0\.\d+ is the least with keep_layer 0\.5$"
    with pytest.raises(ConfigError, match=message):
        pruned(teacher, keep=0.1, keep_layer=0.5, target=Target.PARAMETERS)
    with pytest.raises(ConfigError, match="keep_layer must be above 0; got 0"):
        PruneConfig(keep_layer=0)
