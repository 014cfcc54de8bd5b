"""A student that starts from its teacher's channels."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dreamstill
import toys
from dreamstill.cli import main as cli
from dreamstill.config import from_plain
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.distillation import Distillation
from dreamstill.distillation.weight_inheritance import inherit
from dreamstill.errors import ConfigError
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.nn.lenet import lenet5, lenet5_bn, lenet5_half, lenet5_half_bn
from dreamstill.nn.resnet_cifar import resnet20, resnet20_half
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.config import CompressJob, DistillJob, read_job
from dreamstill.pipelines.distill import distill
from dreamstill.synthesis.config import NoiseConfig, RandomShapes, StructuredNoiseConfig
from dreamstill.synthesis.methods.structured_noise import StructuredNoise
from dreamstill.synthesis.random_shapes import structured_images


def cut(
    teacher: nn.Module, student: nn.Module, shape: tuple[int, int, int] = (3, 6, 6)
) -> nn.Module:
    """The student, filled."""
    inherit(teacher, student, InputSpec(shape, (0.5,) * shape[0], (0.25,) * shape[0]))
    return student


DIGITS = (1, 28, 28)


class Residual(nn.Module):
    """Everything that channels are followed through: a sum, BatchNorm, depthwise, flattening."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.expand = nn.Conv2d(width, inner, 1)
        self.shrink = nn.Conv2d(inner, width, 1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(width * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.depthwise(x)
        x = x + self.shrink(torch.relu(self.expand(x)))
        return self.head(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def silence(model: Residual, width: list[int], inner: list[int]) -> None:
    """Let nothing read these channels."""
    with torch.no_grad():
        model.expand.weight[:, width] = 0
        model.head.weight.view(5, -1, 4)[:, width] = 0
        model.shrink.weight[:, inner] = 0


def random_norm(norm: nn.BatchNorm2d) -> None:
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert value is not None
            value.uniform_(0.5, 2)


def test_what_nobody_reads_is_left_behind_and_the_function_stays() -> None:
    teacher = Residual(6, 4).eval()
    random_norm(teacher.norm)
    silence(teacher, width=[1, 4], inner=[0, 3])
    student = cut(teacher, Residual(4, 2), (3, 4, 4)).eval()
    x = torch.randn(8, 3, 4, 4)
    torch.testing.assert_close(student(x), teacher(x))


@pytest.mark.parametrize("groups", [4, 2])
def test_groups_of_a_convolution_lose_as_many_channels_each_or_whole_groups(groups: int) -> None:
    teacher = toys.ResNeXt().eval()
    random_norm(teacher.norm)
    inputs, outputs = [1, 3, 4, 6, 8, 9, 13, 15], [0, 1, 5, 7, 10, 11, 12, 14]
    if groups == 2:
        inputs = outputs = [0, 1, 2, 3, 8, 9, 10, 11]
    with torch.no_grad():
        teacher.shrink.weight[:, outputs] = 0
        for i in inputs:
            teacher.grouped.weight[i // 4 * 4 : i // 4 * 4 + 4, i % 4] = 0
    student = cut(teacher, toys.ResNeXt(8, 8, groups)).eval()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(student(x), teacher(x))


@pytest.mark.parametrize("build", [lenet5, lenet5_bn])
def test_a_student_of_the_same_widths_is_the_teacher(build: type[nn.Module]) -> None:
    teacher, student = build().eval(), build()
    x = torch.randn(4, 1, 28, 28)
    torch.testing.assert_close(cut(teacher, student, DIGITS).eval()(x), teacher(x))


def test_a_residual_network_with_padded_shortcuts_is_cut_through() -> None:
    """The first group's channels lie in the middle of the second's, and those in the third's."""
    teacher = resnet20().eval()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            random_norm(module)
    unread = torch.tensor([0, 3, 4, 8, 9, 11, 14, 15])
    silent = {"layer1": unread}
    silent["layer2"] = torch.cat([torch.tensor([1, 2, 5, 6, 7, 24, 27, 31]), 8 + unread])
    outer = torch.cat([torch.arange(0, 16, 2), torch.arange(49, 64, 2)])
    silent["layer3"] = torch.cat([outer, 16 + silent["layer2"]])
    readers = {
        "layer1": ["layer1.0", "layer1.1", "layer1.2", "layer2.0"],
        "layer2": ["layer2.1", "layer2.2", "layer3.0"],
        "layer3": ["layer3.1", "layer3.2"],
    }
    with torch.no_grad():
        for group, channels in silent.items():
            for block in readers[group]:
                teacher.get_parameter(f"{block}.conv1.weight")[:, channels] = 0
            for block in ("0", "1", "2"):
                inner = teacher.get_parameter(f"{group}.{block}.conv2.weight")
                inner[:, : inner.shape[1] // 2] = 0
        teacher.linear.weight[:, silent["layer3"]] = 0
    student = cut(teacher, resnet20_half(), (3, 16, 16)).eval()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(student(x), teacher(x))


class Padded(nn.Module):
    """Padding on one side, read with no sum between."""

    def __init__(self, width: int, zeros: int) -> None:
        super().__init__()
        self.zeros = zeros
        self.first, self.last = nn.Conv2d(3, width, 1), nn.Conv2d(width + zeros, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.first(x), (0, 0, 0, 0, 0, self.zeros), value=1)
        return self.last(x)  # type: ignore[no-any-return]


def test_parameters_of_no_layer_are_cut_with_the_channels() -> None:
    teacher = toys.Tokens(6)
    with torch.no_grad():
        teacher.last.weight[:, [1, 2, 5]] = 0
    student = cut(teacher, toys.Tokens(3), (3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(student(x), teacher(x))


def test_padding_without_a_sum_is_cut_too() -> None:
    teacher = Padded(4, 3)
    with torch.no_grad():
        teacher.last.weight[:, [1, 2, 5]] = 0
    student = cut(teacher, Padded(2, 2))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(student(x), teacher(x))


def test_the_channels_of_the_largest_norms_are_taken_in_their_order() -> None:
    teacher = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    first, last = teacher[0], teacher[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    first.weight.data = torch.tensor([[1.0, 0], [0, 2], [3, 4], [5, 0]])
    last.weight.data = torch.tensor([[1.0, 1, 1, 0], [9, 0, 0, 0.1]])  # worth 9.06, 2, 5, 0.5
    student = cut(teacher, nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), (1, 1, 2))
    state = student.state_dict()
    assert state["0.weight"].tolist() == [[1, 0], [3, 4]]
    assert torch.equal(state["0.bias"], first.bias[[0, 2]])
    assert state["2.weight"].tolist() == [[1, 1], [9, 0]]


def test_a_half_starts_nearer_to_its_teacher_than_at_random() -> None:
    teacher, x = lenet5_bn().eval(), torch.randn(16, 1, 28, 28)
    distances = []
    for start in (lenet5_half_bn(), cut(teacher, lenet5_half_bn(), DIGITS)):
        distances.append((start.eval()(x) - teacher(x)).pow(2).mean())
    assert distances[1] < distances[0]


class Wired(nn.Module):
    """Three layers and what is between them, the first concatenated where `joined` is 2."""

    def __init__(
        self, width: int, between: Callable[[Tensor], Tensor], joined: int = 1, hidden: int = 5
    ) -> None:
        super().__init__()
        self.between = between
        self.first, self.hidden = nn.Linear(3, width), nn.Linear(joined * width, hidden)
        self.last = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.hidden(self.between(self.first(x.flatten(1)))))
        return self.last(hidden)  # type: ignore[no-any-return]


def twice(x: Tensor) -> Tensor:
    return torch.cat([x, x.relu()], 1)


def branching(x: Tensor) -> Tensor:
    """Refused by torch.fx."""
    return x if x.isfinite().all() else x.nan_to_num()


def backwards(x: Tensor) -> Tensor:
    return x.flip(1)


@pytest.mark.parametrize(("between", "joined"), [(twice, 2), (branching, 1)])
def test_channels_are_followed_through_concatenations_and_the_users_code(
    between: Callable[[Tensor], Tensor], joined: int
) -> None:
    teacher = Wired(4, between, joined)
    with torch.no_grad():
        teacher.hidden.weight.view(5, joined, 4)[:, :, [0, 2]] = 0
    student = cut(teacher, Wired(2, between, joined), (3, 1, 1))
    x = torch.randn(8, 3)
    torch.testing.assert_close(student(x), teacher(x))


def test_a_layer_that_is_used_twice_is_cut_too() -> None:
    class Repeats(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.again = nn.Linear(3, width), nn.Linear(width, width)
            self.last = nn.Linear(width, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.again(self.again(self.first(x.flatten(1))).relu())
            return self.last(x)  # type: ignore[no-any-return]

    teacher = Repeats(4)
    with torch.no_grad():
        for layer in (teacher.again, teacher.last):
            layer.weight[:, [0, 2]] = 0
    student, x = cut(teacher, Repeats(2), (3, 1, 1)), torch.randn(8, 3)
    torch.testing.assert_close(student(x), teacher(x))


def test_a_student_may_have_other_activations() -> None:
    teacher = Wired(4, F.gelu)
    students = [cut(teacher, Wired(2, act), (3, 1, 1)) for act in (F.gelu, F.relu)]
    for mine, other in zip(students[0].parameters(), students[1].parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("teacher", "student", "shape", "message"),
    [
        (lenet5(), lenet5_half_bn(), DIGITS, r"features\.1\S* is in one of the two networks alone"),
        (
            lenet5_half(),
            lenet5(),
            DIGITS,
            "classifier.0 has 84 channels in the student and 42 in the teacher",
        ),
        (
            Wired(4, backwards),
            Wired(3, backwards),
            (3, 1, 1),
            "not the teacher's: hidden is given other channels than before; make the layers before "
            "it as wide in the student",
        ),
        (
            Padded(4, 1),
            Padded(2, 2),
            (3, 6, 6),
            "last has 2 channels in the student and 1 in the teacher",
        ),
        (
            Padded(4, 0),
            Padded(2, 2),
            (3, 6, 6),
            r"last.weight of .* part of the teacher's: it would be \(2, 2, 1, 1\) and is \(2, 4,",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)),
            nn.Sequential(nn.Conv2d(3, 2, 5), nn.Flatten(), nn.Linear(8, 2)),
            (3, 6, 6),
            "0.weight of the student is not a part",
        ),
    ],
)
def test_what_cannot_be_inherited_is_named(
    teacher: nn.Module, student: nn.Module, shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cut(teacher, student, shape)


class Everything(nn.Module):
    """What is named less often: all of it is copied, or followed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1, 3, 1, 1))
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.plain = nn.BatchNorm2d(width, affine=False)
        self.gate = nn.Conv2d(width, width, 1)
        self.norm = nn.BatchNorm1d(width * 16)
        self.hidden = nn.Linear(width * 16, 6)
        self.layer_norm = nn.LayerNorm(6)
        self.slope = nn.PReLU()
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.plain(self.first(x + self.shift)))
        x = 2 * x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))) + 1
        x = self.norm(F.pad(x, [1, 1, 1, 1])[:, :, 1:-1, 1:-1].flatten(1))
        return self.last(self.slope(self.layer_norm(self.hidden(x))))  # type: ignore[no-any-return]


class Rows(nn.Module):
    """A linear layer for each row, and one over all of them: features vary faster than rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.each, self.all = nn.Linear(12, width), nn.Linear(12 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.all(self.each(x.squeeze(1)).relu().flatten(1))
        return logits


def test_features_of_flattened_rows_are_not_taken_for_channels() -> None:
    with pytest.raises(ConfigError, match=r"all.weight of the student is not a part"):
        cut(Rows(8).eval(), Rows(7), (1, 12, 12))
    teacher, student = Rows(8).eval(), Rows(8)
    cut(teacher, student, (1, 12, 12))
    x = torch.randn(3, 1, 12, 12)
    torch.testing.assert_close(student(x), teacher(x))


def test_nothing_of_the_teacher_is_forgotten() -> None:
    teacher = Everything(5).eval()
    for key, value in teacher.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.5 if "var" in key else -1, 2)
    with torch.no_grad():
        teacher.hidden.weight.view(6, 5, 16)[:, 3] = 0
        teacher.gate.weight[:, 3] = 0
    student = cut(teacher, Everything(4), (3, 4, 4)).eval()
    x = torch.randn(4, 3, 4, 4)
    torch.testing.assert_close(student(x), teacher(x))


class Grouped(nn.Module):
    """GroupNorm on the sum of two layers, InstanceNorm, and LayerNorm on features."""

    def __init__(self, width: int, groups: int, hidden: int = 8) -> None:
        super().__init__()
        self.first, self.side = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(3, width, 1)
        self.norm = nn.GroupNorm(groups, width)
        self.second, self.own = nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width, affine=True)
        self.hidden, self.all = nn.Linear(width, hidden), nn.LayerNorm(hidden)
        self.last = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x) + self.side(x)))
        x = F.relu(self.own(self.second(x))).mean((2, 3))
        return self.last(F.relu(self.all(self.hidden(x))))  # type: ignore[no-any-return]


def kept_of_norm(teacher: Grouped, student: Grouped) -> list[int]:
    """The channels of the GroupNorm that the student has."""
    with torch.no_grad():
        teacher.norm.bias.copy_(torch.arange(len(teacher.norm.bias)))
    return cut(teacher, student).norm.bias.int().tolist()  # type: ignore[union-attr, operator]


def test_whole_groups_are_inherited_and_the_function_stays() -> None:
    teacher = Grouped(12, 4).eval()
    with torch.no_grad():
        teacher.second.weight[:, 3:6] = 0  # the second group is read by nothing
        teacher.hidden.weight[:, [0, 7, 11]] = 0
    student = Grouped(9, 3).eval()
    assert kept_of_norm(teacher, student) == [0, 1, 2, *range(6, 12)]
    x = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(student(x), teacher(x))


def test_of_as_many_groups_each_gives_its_best_channels() -> None:
    teacher = Grouped(12, 4).eval()
    with torch.no_grad():
        teacher.second.weight[:, [0, 5, 7, 9]] *= 0.01  # one in each group
    student = Grouped(8, 4, 6).eval()
    assert kept_of_norm(teacher, student) == [1, 2, 3, 4, 6, 8, 10, 11]
    assert torch.equal(student.first.weight, teacher.first.weight[[1, 2, 3, 4, 6, 8, 10, 11]])
    assert len(student.all.weight) == 6


def test_other_groups_are_refused_with_what_would_do() -> None:
    message = (
        r"the channels of first are in 4 groups of 3 in the teacher and in 2 of 5 in the "
        "student: give the student as many groups, or groups as large"
    )
    with pytest.raises(ConfigError, match=message):
        cut(Grouped(12, 4), Grouped(10, 2))


def other_groups() -> nn.Module:
    return Grouped(10, 2)


def test_a_compression_asks_before_any_image_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toys, "small_cnn", lambda: Grouped(12, 4))
    monkeypatch.setattr(toys, "small_student", other_groups, raising=False)
    save_file(Grouped(12, 4).state_dict(), tmp_path / "teacher.safetensors")
    teacher = {
        "weights": str(tmp_path / "teacher.safetensors"),
        "factory": "toys:small_cnn",
        "shape": [3, 6, 6],
        "range": [0, 1],
    }
    stage = {"task": "distill", "student": "toys:small_student", "inherit": True}
    monkeypatch.setattr("dreamstill.pipelines.compress.own_images", None)  # nothing is to ask it
    with pytest.raises(ConfigError, match="channels of first are in 4 groups of 3"):
        run_compression(
            tmp_path / "run", read_job(CompressJob, {"teacher": teacher, "stage": [stage]})
        )
    assert not (tmp_path / "run").exists()
    job = DistillJob(
        teacher=from_plain(TeacherFile, teacher),
        student="toys:small_student",
        method="noise",
        synthesis=NoiseConfig(),
        distill=DistillConfig(inherit=True),
    )
    monkeypatch.setattr("dreamstill.pipelines.distill.open_synthesizer", None)
    with pytest.raises(ConfigError, match="channels of first are in 4 groups of 3"):
        distill(tmp_path / "run", job, open_from(job.teacher))
    assert not (tmp_path / "run").exists()


def test_the_output_keeps_its_classes_and_the_student_its_weights() -> None:
    teacher, student = Wired(4, F.relu), Wired(2, F.relu)
    student.last = nn.Linear(5, 1)
    before = student.last.weight.clone()
    message = r"the end of the network is given \(3, 1\), not \(3, 2\)"
    with pytest.raises(ConfigError, match=message):
        cut(teacher, student, (3, 1, 1))
    assert torch.equal(student.last.weight, before)


def test_of_a_sum_each_side_is_weighed_by_what_scales_it() -> None:
    class Sum(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, width), nn.Linear(2, width)
            self.norm, self.last = nn.BatchNorm1d(width), nn.Linear(width, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.last(self.norm(self.a(x)) + self.b(x))  # type: ignore[no-any-return]

    teacher = Sum(2).eval()
    with torch.no_grad():
        teacher.norm.weight.copy_(torch.tensor([1.0, 0.1]))
        teacher.b.weight.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
        teacher.last.weight.fill_(1)
    assert torch.equal(cut(teacher, Sum(1), (1, 1, 2)).b.weight, teacher.b.weight[1:])  # type: ignore[union-attr, arg-type]


def started(command: str, tmp_path: Path, images: int) -> dict[str, Tensor]:
    """A student after no step."""
    weights = Path(dreamstill.__file__).parent / "assets" / "lenet5_mnist.safetensors"
    small, run = "dreamstill.nn.lenet:lenet5_half", tmp_path / f"run{images}"
    common = ["--json", "--out", str(run)]
    if command == "distill":
        words = f"--student {small} --inherit --distill.steps 0"
        words += " --distill.num_validation 32 --distill.batch_size 32 --synthesis.batch_size 32"
        words += f" --reconstruct {images} --teacher.weights {weights}"
        assert cli.main(["distill", *words.split(), *common]) == 0
        return load_file(run / "student.safetensors")
    toml = tmp_path / "stages.toml"
    toml.write_text(f"""
        num_images = 256
        [teacher]
        weights = "{weights}"
        [[stage]]
        task = "distill"
        student = "{small}"
        inherit = true
        reconstruct = {images}
        steps = 0
        batch_size = 16
        num_validation = 16
    """)
    assert cli.main(["compress", str(toml), *common]) == 0
    network = torch.load(run / "stages" / "1-distill.pt", weights_only=False)
    return dict(network.state_dict())


@pytest.mark.parametrize("command", ["distill", "compress"])
def test_a_command_starts_a_student_from_its_teacher(command: str, tmp_path: Path) -> None:
    weights = Path(dreamstill.__file__).parent / "assets" / "lenet5_mnist.safetensors"
    teacher = open_from(TeacherFile(weights=str(weights)))
    states = [started(command, tmp_path, images) for images in (0, 200)]
    wanted = cut(teacher.module, lenet5_half(), DIGITS)
    torch.testing.assert_close(states[0], dict(wanted.state_dict()))

    spec = teacher.input_spec
    rng = torch.Generator().manual_seed(5)
    shown = spec.normalize(structured_images(256, spec, RandomShapes(), rng))
    errors = []
    for state in states:
        student = lenet5_half()
        student.load_state_dict(state)
        errors.append((student(shown) - teacher(shown)).pow(2).mean())
    assert errors[1] < errors[0] / 2


def test_a_run_killed_before_its_first_step_is_solved_once(tmp_path: Path) -> None:
    """Taken up from any point before and after the reconstruction: the same student."""
    finished = []
    for stop in (0, 1, 3, 4):
        works = [work_in(tmp_path / f"{stop}-{n}") for n in range(2)]
        for n, _ in enumerate(works[0].run()):
            if n == stop:
                break
        state = copy.deepcopy(works[0].state_dict())
        works[1].load_state_dict(state)
        for _ in works[1].run():
            pass
        finished.append(works[1].chosen.state_dict())
    for other in finished[1:]:
        torch.testing.assert_close(other, finished[0], rtol=0, atol=0)


def work_in(folder: Path) -> Distillation:
    """Two batches for validation, two to be reconstructed on, then two steps."""
    teacher, rng = toys.cnn_teacher(), torch.Generator().manual_seed(0)
    student = copy.deepcopy(teacher.module).requires_grad_()
    method = StructuredNoise(teacher, StructuredNoiseConfig(batch_size=32), rng=rng)
    config = DistillConfig(steps=2, num_validation=64, buffer_size=200)
    buffer = ReplayBuffer(folder, teacher.input_spec, 200)
    return Distillation(
        teacher, student, method, buffer, config, rng=rng, inherited={}, reconstruct=64
    )
