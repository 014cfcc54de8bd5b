"""The one contract, run over every method of the table."""

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from dreamstill.config import Precision
from dreamstill.data.batch import Batch
from dreamstill.distillation.budget import seconds_per_batch
from dreamstill.errors import ConfigError, NonFiniteError, TeacherError
from dreamstill.input_spec import InputSpec
from dreamstill.losses.diversity import sample_diversity
from dreamstill.losses.logits import js_divergence
from dreamstill.losses.priors import gaussian_smoothness
from dreamstill.losses.statistics import batch_statistics, gaussian_kl
from dreamstill.nn.seeded import seeded
from dreamstill.synthesis.activation_statistics import load_metadata, record_metadata
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.config import (
    CLOTHES,
    DeepInversionConfig,
    MetaGradient,
    RandomShapes,
    Scheme,
    Start,
    StructuredNoiseConfig,
)
from dreamstill.synthesis.generator import LatentGenerator
from dreamstill.synthesis.methods.image_programs import CANDIDATES, NUM_FITTED
from dreamstill.synthesis.presets import PRESETS
from dreamstill.synthesis.random_shapes import structured_images
from dreamstill.synthesis.registry import METHODS, needs_student, open_synthesizer
from dreamstill.teacher import Teacher

GENERATOR = {"batch_size": 16, "widths": (8, 4), "latent": 5}
FAST: dict[str, dict[str, Any]] = {
    "image_programs": {"batch_size": 16, "programs": ("strokes", "gradients", "tiles")},
    "noise": {"batch_size": 16},
    "structured_noise": {"batch_size": 16},
    "dafl": GENERATOR | {"lr": 0.02},
    "deepinversion": {"batch_size": 16, "steps": 12},
    "zskd": {"batch_size": 16, "steps": 12},
    "zskt": GENERATOR | {"student_steps": 2},
    "dfad": GENERATOR | {"student_steps": 2},
    "rdskd": GENERATOR | {"generator_steps": 2},
    "abd": GENERATOR | {"generator_steps": 2, "lr": 0.02},
    "fastdfkd": GENERATOR | {"generator_steps": 2, "warm_up": 1, "shift": 1, "lr": 0.02},
    "nayer": GENERATOR
    | {"generator_steps": 2, "warm_up": 1, "shift": 1, "lr": 0.02, "generator_life": 3},
    "knowledge_within": {"batch_size": 16, "steps": 12},
    "metadata": {"batch_size": 16, "steps": 12},
}
PIXELS = ("deepinversion", "zskd", "knowledge_within", "metadata")
FEW_STEPS = ("fastdfkd", "nayer")
OPTIMIZED = ("dafl", "zskt", "dfad", "rdskd", "abd", *FEW_STEPS, *PIXELS)
ADVERSARIAL: dict[str, dict[str, Any]] = {
    "zskt": {},
    "dfad": {},
    "fastdfkd": {"warm_up": 0},
    "nayer": {"warm_up": 0},
    "deepinversion": {"competition": 1.0},
    "image_programs": {"mine": True},
    "structured_noise": {"mine": True},
}
methods = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True, scope="session")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the teacher's owner records for the method `metadata`."""
    path = tmp_path_factory.mktemp("owner") / "m.safetensors"
    record(toys.cnn_teacher(), path)
    FAST["metadata"]["file"] = str(path)


def record(teacher: Teacher, path: Path) -> None:
    images = make("structured_noise", teacher, batch_size=400, oversample=10).next_batch().images
    record_metadata(teacher, teacher.input_spec.decode(images), path)


def make(name: str, teacher: Teacher, seed: int = 0, **changes: Any) -> Method:
    config = METHODS[name].config(**(FAST[name] | changes))
    return open_synthesizer(name, teacher, config, rng=torch.Generator().manual_seed(seed))


def draw(synthesizer: Method, student: torch.nn.Module | None = None) -> Batch:
    return synthesizer.next_batch(toys.seeded_student() if student is None else student)


def test_every_method_has_fast_settings() -> None:
    assert FAST.keys() == METHODS.keys()


@methods
def test_a_batch_is_detached_in_range_and_answered_by_the_teacher(name: str) -> None:
    teacher = toys.cnn_teacher()
    batch = draw(make(name, teacher))
    assert batch.images.shape == (16, 1, 8, 8)
    assert batch.images.dtype == torch.float32
    assert not batch.images.requires_grad
    assert not batch.logits.requires_grad
    assert batch.images.min() >= -2
    assert batch.images.max() <= 2
    torch.testing.assert_close(batch.logits, teacher.module(batch.images))


@methods
def test_a_method_that_is_timed_goes_on_as_if_it_were_not(name: str) -> None:
    timed, other = (make(name, toys.cnn_teacher()) for _ in range(2))
    student = toys.seeded_student()
    assert seconds_per_batch(timed, student) > 0
    assert timed.teacher.queries == other.teacher.queries
    for _ in range(2):
        batch, wanted = draw(timed), draw(other)
        assert torch.equal(batch.images, wanted.images)
        assert torch.equal(batch.logits, wanted.logits)


class Turning(toys.SmallCnn):
    """It views what a convolution leaves, which in the layout of channels last is refused."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.conv(x))
        return super().forward(x) + out.view(len(x), -1).mean(1, keepdim=True)


def test_in_bfloat16_networks_may_view_too() -> None:
    spec = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    with seeded(torch.Generator().manual_seed(3)):
        networks = [Turning(channels=3), toys.SmallCnn(channels=3)]
    teacher = Teacher(networks[0], spec, precision=Precision.BFLOAT16)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for network, layout in zip(networks, ("contiguous", "channels_last"), strict=True):
        answers = teacher.run(network.eval(), images)
        torch.testing.assert_close(answers, network(images), atol=0.2, rtol=0.05)
        assert str(teacher._layouts[network]).startswith(f"torch.{layout}")


@methods
def test_in_bfloat16_only_what_runs_inside_a_network_is_rounded(name: str) -> None:
    teacher = toys.cnn_teacher()
    exact = draw(make(name, teacher)).images
    teacher.precision = Precision.BFLOAT16
    batch = draw(make(name, teacher))
    assert batch.images.dtype == batch.logits.dtype == torch.float32
    assert batch.images.isfinite().all()
    assert not torch.equal(batch.logits, teacher.module(batch.images))
    torch.testing.assert_close(batch.logits, teacher.module(batch.images), atol=0.2, rtol=0.05)
    if name == "noise":  # its pixels come from no network
        assert torch.equal(batch.images, exact)


class Viewing(toys.SmallCnn):
    """It takes its images for contiguous, as many networks do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(len(x), -1).view(x.shape))


@pytest.mark.parametrize("channels", [1, 3])
@methods
def test_a_network_may_view_its_images(name: str, channels: int, tmp_path: Path) -> None:
    spec = InputSpec(shape=(channels, 8, 8), mean=(0.5,) * channels, std=(0.25,) * channels)
    with seeded(torch.Generator().manual_seed(3)):
        teacher = Teacher(toys.balanced(Viewing(channels=channels)), spec)
        rival = Viewing(channels=channels)
    changes: dict[str, Any] = {}
    if name == "metadata":
        changes["file"] = str(tmp_path / "color.safetensors")
        record(teacher, Path(changes["file"]))
    batch = draw(make(name, teacher, **changes), rival)
    torch.testing.assert_close(batch.logits, teacher.module(batch.images))


@methods
def test_images_fill_the_range(name: str) -> None:
    images = draw(make(name, toys.cnn_teacher())).images
    assert images.std() > 0.3


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
@methods
def test_a_teacher_that_is_given_by_its_range_is_shown_no_black(
    name: str, bounds: tuple[float, float]
) -> None:
    spec = InputSpec.from_range((1, 8, 8), *bounds)
    images = draw(make(name, Teacher(toys.small_cnn(), spec))).images
    pixels = spec.denormalize(images)
    assert 0.1 < pixels.mean() < 0.9
    assert pixels.std() > 0.1
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6


@methods
def test_the_same_rng_makes_the_same_batches_and_another_does_not(name: str) -> None:
    first, again, other = (make(name, toys.cnn_teacher(), seed=s) for s in (0, 0, 1))
    for _ in range(2):
        wanted = draw(first).images
        assert torch.equal(wanted, draw(again).images)
        assert not torch.equal(wanted, draw(other).images)


@methods
def test_a_batch_is_new_each_time(name: str) -> None:
    synthesizer = make(name, toys.cnn_teacher())
    assert not torch.equal(draw(synthesizer).images, draw(synthesizer).images)


@methods
def test_resume_equals_no_interruption(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    config = METHODS[name].config(**FAST[name])
    one = METHODS[name].synthesizer(toys.cnn_teacher(), config, rng=rng)
    draw(one)
    state, rng_state = one.state_dict(), rng.get_state()
    state = torch.load(_saved(state), weights_only=True)
    wanted = [draw(one).images for _ in range(2)]

    rng = torch.Generator().manual_seed(9)
    two = METHODS[name].synthesizer(toys.cnn_teacher(), config, rng=rng)
    two.load_state_dict(state)
    rng.set_state(rng_state)
    for images in wanted:
        assert torch.equal(draw(two).images, images)


def _saved(state: dict[str, Any]):  # type: ignore[no-untyped-def]
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@methods
def test_the_teacher_is_left_as_it_was(name: str) -> None:
    teacher = toys.cnn_teacher()
    before = teacher.fingerprint
    draw(make(name, teacher))
    assert teacher.fingerprint == before
    assert_untouched(teacher)


def assert_untouched(teacher: Teacher) -> None:
    for part in teacher.module.modules():
        assert not part.training
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    assert all(p.grad is None and not p.requires_grad for p in teacher.module.parameters())


@methods
def test_the_teacher_is_left_as_it_was_after_an_exception(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = toys.cnn_teacher()
    synthesizer = make(name, teacher)

    def broken(inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    monkeypatch.setattr(teacher.module.head, "forward", broken)
    with pytest.raises(RuntimeError, match="broken"):
        draw(synthesizer)
    assert_untouched(teacher)


@methods
def test_the_global_rng_is_not_touched(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw(make(name, toys.cnn_teacher()))
    assert torch.equal(torch.get_rng_state(), before)


@methods
def test_queries_are_counted(name: str) -> None:
    teacher = toys.cnn_teacher()
    draw(make(name, teacher))
    fitted = 3 * NUM_FITTED + 16 * 2 * CANDIDATES
    shown = {"image_programs": fitted, "structured_noise": 32, "zskt": 32, "dfad": 32}
    shown |= dict.fromkeys(PIXELS, 16 * 13) | dict.fromkeys(FEW_STEPS, 16 * 3)
    assert teacher.queries == shown.get(name, 16)


def statistics_gap(batch: Batch, teacher: Teacher) -> float:
    assert isinstance(teacher.module, toys.SmallCnn)
    wanted = teacher.module.norm.running_mean
    assert wanted is not None
    gap: Tensor = (teacher.module.conv(batch.images).mean((0, 2, 3)) - wanted).norm()
    return gap.item()


def objective(name: str, batch: Batch, teacher: Teacher) -> float:
    """What each optimized method is for, lower is better, measured from outside."""
    logits = batch.logits
    if name in ("deepinversion", "knowledge_within", "abd", *FEW_STEPS):
        return statistics_gap(batch, teacher)
    if name in ("dafl", "rdskd"):  # sure of each image, even over the classes
        mean = logits.softmax(1).mean(0)
        even = (mean * mean.log()).sum()
        sure = torch.nn.functional.cross_entropy(logits, logits.argmax(1))
        return float(sure.item() + even.item())
    if name in ("dfad", "zskt"):
        with torch.no_grad():
            rival: Tensor = toys.seeded_student().eval()(batch.images)
            return float(-(rival - logits).abs().mean().item())
    if name == "zskd":  # peaked targets: the mean confidence
        return float(-logits.softmax(1).amax(1).mean().item())
    metadata = load_metadata(Path(FAST["metadata"]["file"]), teacher)
    view = next(v for v in metadata.views if v.layers == ("logits",))
    means = view.mean[torch.arange(len(logits)) % teacher.num_classes]
    gap: Tensor = torch.nn.functional.mse_loss(logits, means)
    return gap.item()


@pytest.mark.parametrize("name", OPTIMIZED)
def test_an_optimized_method_is_better_than_noise_at_its_own_objective(name: str) -> None:
    teacher = toys.cnn_teacher()
    noise = objective(name, draw(make("noise", teacher, batch_size=64)), teacher)
    more: dict[str, Any] = {"batch_size": 64}
    if name in PIXELS:
        more["steps"] = 60
    if name == "zskd":
        more |= {"temperature": 1.0, "betas": (0.1,)}
    if name in ("rdskd", "abd"):
        more["generator_steps"] = 40
    if name in ("zskt", "dfad"):
        more["student_steps"] = 1
    if name in FEW_STEPS:
        more |= {"momentum": 0.0, "generator_steps": 10, "shift": 0, "flip": False}
    synthesizer = make(name, teacher, **more)
    for _ in range(1 if name in PIXELS else 41):
        batch = draw(synthesizer)
    assert objective(name, batch, teacher) < noise - 0.01


UNLIKE: dict[str, Any] = {  # values that differ enough to be seen within four batches
    "clip": 1e-4,
    "cosine_batches": 2,
    "drops": (0.3,),
    "generator_steps": 1,
    "meta_gradient": MetaGradient.REPTILE,
    "low_resolution_steps": 6,
    "lr_warm_up": 6,
    "memory": 4,
    "refresh_every": 1,
    "start": Start.STRUCTURED,
    "scheme": Scheme.INCEPTION,
    "betas": (0.5,),
    "programs": ("strokes", "tiles"),
    "steps": 3,
    "oversample": 4,
    "shapes": CLOTHES,
}


def other_value(name: str, value: Any) -> Any:
    """Another value of a setting."""
    if name in UNLIKE:
        return UNLIKE[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple(2 * v for v in value)
    return value + 2 if isinstance(value, int) else 0.5 * value + 0.1


def stream(name: str, **changes: Any) -> list[Tensor]:
    """How often a batch is trained on, and five batches beside a student that never learns."""
    synthesizer, student = make(name, toys.cnn_teacher(), **changes), toys.seeded_student()
    synthesizer.anneal_over(4)
    images = [draw(synthesizer, student).images for _ in range(4)]
    images.append(synthesizer.initial_batch(student).images)
    return [torch.tensor(synthesizer.repeat), *images]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        (name, part.name)
        for name, method in METHODS.items()
        for part in dataclasses.fields(method.config)
        if part.name != "file"
    ],
)
def test_no_setting_is_ignored(name: str, setting: str) -> None:
    plain: dict[str, Any] = {}
    if setting == "shapes" and name in PIXELS:
        plain = {"start": Start.STRUCTURED}
    if setting == "refresh_every":
        plain = {"generator_steps": 4}
    value = other_value(setting, getattr(METHODS[name].config(**(FAST[name] | plain)), setting))
    if setting == "betas" and name == "deepinversion":
        value = (0.5, 0.9)
    pairs = zip(stream(name, **plain), stream(name, **plain, **{setting: value}), strict=True)
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [part.name for part in dataclasses.fields(RandomShapes)])
def test_no_setting_of_a_drawing_is_ignored(name: str) -> None:
    spec = InputSpec(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    value: Any = 0.9 if name == "scene_share" else other_value(name, getattr(RandomShapes(), name))
    plain, changed = (
        structured_images(20, spec, shapes, torch.Generator().manual_seed(0))
        for shapes in (RandomShapes(), RandomShapes(**{name: value}))
    )
    assert not torch.equal(plain, changed)


class Slope(Exception):  # noqa: N818  (it is no error, it only ends the step)
    """What an objective is, and its gradient along the direction in which its images were moved."""

    def __init__(self, loss: Tensor, moved: list[Tensor], along: list[Tensor]) -> None:
        self.loss = loss.item()
        gradients = torch.autograd.grad(loss, moved)
        self.slope = sum((g * d).sum().item() for g, d in zip(gradients, along, strict=True))


def first_slope(name: str, shift: float, monkeypatch: pytest.MonkeyPatch) -> Slope:
    """Of a method's first step, its pixels or its generator's weights moved by `shift`."""
    wide = InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.05,))  # no pixel comes near its bounds
    synthesizer = make(name, Teacher(toys.small_cnn(), wide))
    rng = torch.Generator().manual_seed(9)

    def pixels(images: Tensor, objective: Any, **config: Any) -> None:
        along = torch.randn(images.shape, generator=rng)
        moved = (0.2 * images + shift * along).requires_grad_()
        raise Slope(objective(moved), [moved], [along])

    def step(generator: LatentGenerator, loss: Tensor, clip: float = 0.0) -> None:
        raise Slope(loss, list(generator.module.parameters()), along)

    monkeypatch.setattr(LatentGenerator, "step", step)
    if name in PIXELS:
        monkeypatch.setattr(f"dreamstill.synthesis.methods.{name}.optimize_pixels", pixels)
    else:
        weights = list(synthesizer.generator.module.parameters())  # type: ignore[attr-defined]
        along = [0.1 * torch.randn(w.shape, generator=rng) for w in weights]
        for weight, direction in zip(weights, along, strict=True):
            weight.data += shift * direction
    with pytest.raises(Slope) as caught:
        draw(synthesizer)
    return caught.value


def test_adaptive_deepinversion_gains_where_the_student_disagrees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, found = toys.cnn_teacher(), []

    def once(images: Tensor, objective: Any, **config: Any) -> Tensor:
        found.append(objective(images).item())
        return images

    monkeypatch.setattr("dreamstill.synthesis.methods.deepinversion.optimize_pixels", once)
    other = toys.seeded_student().eval()
    for rival in (copy.deepcopy(teacher.module), other):
        batch = draw(make("deepinversion", teacher, competition=9e3, jitter=0, flip=False), rival)
    disagreement = js_divergence(other(batch.images), teacher.module(batch.images), 3.0)
    assert found[0] - found[1] == pytest.approx(9e3 * disagreement.item(), rel=1e-3)


@pytest.mark.parametrize("name", ["zskt", "rdskd", "abd"])
def test_a_generator_plays_for_what_its_paper_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, played = toys.cnn_teacher(), {}

    def step(generator: LatentGenerator, loss: Tensor, clip: float = 0.0) -> None:
        played["loss"], played["clip"] = loss.item(), clip

    monkeypatch.setattr(LatentGenerator, "step", step)
    rival = toys.seeded_student().eval()
    batch = draw(make(name, teacher), rival)
    answers, wrong = teacher.module(batch.images), rival(batch.images)
    if name == "zskt":  # -KL(teacher || student), on the z that the student then learns
        divergence = (answers.softmax(1) * (answers.log_softmax(1) - wrong.log_softmax(1))).sum(1)
        # a gradient of 5, of the mean over batch and classes: of the KL itself 5 times the classes
        assert played["loss"] / played["clip"] == pytest.approx(
            -divergence.mean().item() / (5 * teacher.num_classes), rel=1e-3
        )
        assert played["clip"] == PRESETS["zskt"]["cifar10"].synthesis.clip == 5.0
    if name == "rdskd":  # e^authenticity + e^-entropy of the mean answer + diversity, from base 0
        answer = answers.softmax(1)
        authenticity = -answer.amax(1).log().mean()
        evenness = (answer.mean(0) * answer.mean(0).log()).sum()
        diversity = sample_diversity(batch.images, answer)
        expected = authenticity.exp() + evenness.exp() + diversity
        assert played["loss"] == pytest.approx(expected.item(), rel=1e-3)
    if name == "abd":  # content + class balance in units of log K + 50 statistics + 1e-3 prior
        mean = answers.softmax(1).mean(0)
        balance = (mean * mean.log()).sum() / math.log(len(mean))
        content = torch.nn.functional.cross_entropy(answers / 1e3, answers.argmax(1))
        assert isinstance(teacher.module, toys.SmallCnn)
        norm = teacher.module.norm
        fed = batch_statistics(teacher.module.conv(batch.images))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        wanted = (norm.running_mean, norm.running_var + norm.eps)
        statistics = gaussian_kl(*wanted, fed[0], fed[1] + norm.eps)
        expected = content + balance + 50 * statistics + 1e-3 * gaussian_smoothness(batch.images)
        assert played["loss"] == pytest.approx(expected.item(), rel=1e-3)


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, also what is recorded of layers."""
    monkeypatch.setattr("dreamstill.nn.hooks._float32", lambda value: value)
    single = load_metadata(Path(FAST["metadata"]["file"]), toys.cnn_teacher())
    double = [
        dataclasses.replace(
            view,
            **{
                part: value.double()
                for part in ("mean", "root", "std")
                if (value := getattr(view, part)) is not None
            },
        )
        for view in single.views
    ]
    metadata = dataclasses.replace(single, views=tuple(double))
    monkeypatch.setattr("dreamstill.synthesis.methods.metadata.load_metadata", lambda *_: metadata)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("name", OPTIMIZED)
def test_the_gradient_of_an_objective_is_its_finite_difference(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    below, here, above = (first_slope(name, h, monkeypatch) for h in (-1e-6, 0.0, 1e-6))
    assert abs(here.slope) > 1e-4
    assert (above.loss - below.loss) / 2e-6 == pytest.approx(here.slope, rel=1e-4)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_another_student_is_given_other_images(name: str) -> None:
    batches = []
    for seed in (5, 6):
        with seeded(torch.Generator().manual_seed(seed)):
            student = toys.student()
        synthesizer = make(name, toys.cnn_teacher(), **ADVERSARIAL[name])
        for _ in range(2):
            batch = draw(synthesizer, student)
        batches.append(batch.images)
        assert all(p.grad is None for p in student.parameters())
        assert all(part.training for part in student.modules())
    assert not torch.equal(*batches)


@methods
def test_a_method_that_needs_a_student_says_so(name: str) -> None:
    synthesizer = make(name, toys.cnn_teacher())
    if needs_student(name, synthesizer.config):
        with pytest.raises(ConfigError, match=f"{name} plays against a student"):
            synthesizer.next_batch()
    else:
        assert len(synthesizer.next_batch().images) == 16


@pytest.mark.parametrize(
    ("name", "config", "what"),
    [
        ("structured_noise", StructuredNoiseConfig(mine=True), "prefers a student's mistakes"),
        ("deepinversion", DeepInversionConfig(competition=1.0), "competes with a student"),
    ],
)
def test_settings_that_need_a_student_say_so(name: str, config: Any, what: str) -> None:
    synthesizer = open_synthesizer(name, toys.cnn_teacher(), config, rng=torch.Generator())
    with pytest.raises(ConfigError, match=what):
        synthesizer.next_batch()
    assert needs_student(name, config)
    assert not needs_student(name, METHODS[name].config())


@pytest.mark.parametrize("name", OPTIMIZED)
def test_a_loss_that_is_not_finite_stops_before_the_update(name: str) -> None:
    teacher = toys.cnn_teacher()
    synthesizer = make(name, teacher)
    teacher.module.head.bias.fill_(torch.nan)  # type: ignore[operator, union-attr]
    with pytest.raises(NonFiniteError, match="nan"):
        draw(synthesizer)


@methods
def test_settings_out_of_range_are_named(name: str) -> None:
    kind = METHODS[name].config
    for field in dataclasses.fields(kind):
        number = type(field.default) in (int, float)
        if number or isinstance(field.default, tuple):
            bad = (-1,) * (len(field.default) or 1) if isinstance(field.default, tuple) else -1
            with pytest.raises(ConfigError, match=str(-1)):
                kind(**{field.name: bad})


def test_deepinversion_says_when_there_is_no_batch_norm() -> None:
    with pytest.raises(TeacherError, match="deepinversion needs batch_norm"):
        make("deepinversion", toys.quadrant_teacher())
