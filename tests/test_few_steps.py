"""FastDFKD and NAYER, against answers known by hand."""

import math
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toys
from dreamstill.data.augmentation import shifted
from dreamstill.distillation.config import DistillConfig
from dreamstill.errors import ConfigError, TeacherError
from dreamstill.files.checkpoints import load_checkpoint, save_checkpoint
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.losses.logits import agreeing_kl, kl_divergence
from dreamstill.losses.statistics import batch_statistics
from dreamstill.nn.generators import Generator
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.config import DistillJob
from dreamstill.pipelines.distill import _distillation
from dreamstill.synthesis.config import (
    FastDfkdConfig,
    ImageProgramsConfig,
    MetaGradient,
    NayerConfig,
)
from dreamstill.synthesis.few_steps import RunningStatistics
from dreamstill.synthesis.generator import LatentGenerator
from dreamstill.synthesis.methods.fastdfkd import FastDfkd, meta_gradient
from dreamstill.synthesis.methods.image_programs import ImagePrograms
from dreamstill.synthesis.methods.nayer import Nayer, NoisyLayers
from dreamstill.synthesis.presets import PRESETS
from dreamstill.synthesis.registry import open_synthesizer
from dreamstill.teacher import Teacher

SMALL: dict[str, Any] = {"batch_size": 8, "latent": 4, "widths": (4, 4), "shift": 0, "flip": False}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fast(**changes: Any) -> FastDfkd:
    config = FastDfkdConfig(**(SMALL | {"generator_steps": 2, "warm_up": 0} | changes))
    return FastDfkd(toys.cnn_teacher(), config, rng=rng())


def nayer(**changes: Any) -> Nayer:
    config = NayerConfig(**(SMALL | {"generator_steps": 2, "warm_up": 0} | changes))
    return Nayer(toys.cnn_teacher(), config, rng=rng())


def test_the_adversarial_term_counts_where_the_two_agree() -> None:
    teacher = torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]]).log()  # 1/4, 3/4
    student = torch.tensor([[1.0, 9.0], [9.0, 1.0], [1.0, 3.0]]).log()  # 1/10; the other class; it
    kl = 0.25 * math.log(0.25 / 0.1) + 0.75 * math.log(0.75 / 0.9)
    assert agreeing_kl(student, teacher).item() == pytest.approx(kl / 3)  # of all three images
    assert agreeing_kl(student[:1], teacher[:1]).item() == pytest.approx(
        kl_divergence(student[:1], teacher[:1]).item()
    )


def test_the_memory_of_statistics_is_an_exponential_mean() -> None:
    statistics = RunningStatistics(toys.cnn_teacher(), 0.9)
    (norm,) = statistics.norms.values()
    norm.running_mean, norm.running_var = torch.zeros(6), torch.zeros(6)

    def batch(mean: float, variance: float) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (torch.full((6,), mean), torch.full((6,), variance)) for name in names}

    names, root = list(statistics.norms), math.sqrt(6)
    assert statistics.distance(batch(2.0, 1.0)).item() == pytest.approx(3 * root)  # in full
    statistics.remember(batch(2.0, 1.0))
    # .9 * 2 + .1 * 12 = 3 and .9 * 1 + .1 * 11 = 2
    assert statistics.distance(batch(12.0, 11.0)).item() == pytest.approx(5 * root)
    statistics.remember(batch(12.0, 11.0))
    assert statistics.earlier[names[0]][0].tolist() == pytest.approx([3.0] * 6)
    # .9 * 3 and .9 * 2
    assert statistics.distance(batch(0.0, 0.0)).item() == pytest.approx(4.5 * root)


@pytest.mark.parametrize("student", [None, toys.seeded_student().eval()])
def test_the_loss_is_the_weighted_sum(student: nn.Module | None) -> None:
    synthesizer = fast(batch_norm=3.0, one_hot=0.5, adversarial=2.0)
    teacher, classes = synthesizer.teacher, torch.arange(8) % 4
    images = torch.randn(8, 1, 8, 8, generator=rng(1))
    loss, _ = synthesizer.loss(images, classes, student)
    assert isinstance(teacher.module, toys.SmallCnn)
    norm, logits = teacher.module.norm, teacher.module(images)
    mean, variance = batch_statistics(teacher.module.conv(images))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    wanted = 3 * ((norm.running_mean - mean).norm() + (norm.running_var - variance).norm())
    wanted = wanted - 0.5 * logits.log_softmax(1)[torch.arange(8), classes].mean()
    if student is not None:
        kls = [kl_divergence(student(x[None]), teacher.module(x[None])) for x in images]
        same = student(images).argmax(1) == logits.argmax(1)
        assert 0 < same.sum() < 8
        wanted = wanted - 2 * sum(kl for kl, agree in zip(kls, same, strict=True) if agree) / 8
    torch.testing.assert_close(loss, wanted)


class Scale(nn.Module):
    """Images of one shade, whatever z is."""

    def __init__(self, shade: float) -> None:
        super().__init__()
        self.shade = nn.Parameter(torch.tensor(shade))

    def forward(self, z: Tensor) -> Tensor:
        return self.shade * torch.ones(len(z), 1, 8, 8) + 0 * z.mean()


def on_a_quadratic(kind: MetaGradient, steps: int) -> tuple[float, float]:
    """Gradient and new weight of a generator at 1.5 whose loss is half its square; lr is .25."""
    synthesizer = fast(generator_steps=steps, lr=0.25, meta_gradient=kind, adversarial=0.0)
    generator = synthesizer.generator
    generator.module = Scale(1.5)
    generator.restart(0.25 * steps)

    def quadratic(images: Tensor, *_: Any) -> tuple[Tensor, dict[str, Any]]:
        return images.square().mean() / 2, {}

    synthesizer.loss = quadratic  # type: ignore[method-assign, assignment]
    synthesizer.statistics.remember = lambda moments: None  # type: ignore[method-assign]
    images = synthesizer.next_batch().images
    # Adam's first step is the learning rate, so the copy was at 1.5 and 1.25
    assert images.unique().tolist() == pytest.approx([1.5 if steps == 1 else 1.25])
    (weight,) = generator.module.parameters()
    assert weight.grad is not None
    return weight.grad.item(), weight.item()


@pytest.mark.parametrize(
    ("kind", "steps", "gradient"),
    [
        (MetaGradient.FOMAML, 1, 1.5),
        (MetaGradient.FOMAML, 2, 1.5 + 1.25),
        (MetaGradient.REPTILE, 1, 0.25),
    ],
)
def test_the_generator_learns_from_its_copy(
    kind: MetaGradient, steps: int, gradient: float
) -> None:
    found, weight = on_a_quadratic(kind, steps)
    assert found == pytest.approx(gradient, abs=1e-6)
    assert weight == pytest.approx(1.5 - 0.25 * steps, abs=1e-6)  # a step of lr * steps


def test_meta_gradients_of_a_quadratic() -> None:
    start = [torch.tensor([4.0, -2.0])]
    end = [start[0] - 0.5 * start[0]]  # one step of SGD at .5 on half the square
    fomaml = meta_gradient(MetaGradient.FOMAML, start, end, start)
    reptile = meta_gradient(MetaGradient.REPTILE, start, end, start)
    assert fomaml[0].tolist() == [4.0, -2.0]
    assert reptile[0].tolist() == [2.0, -1.0]


def test_z_is_optimized_with_the_copy_and_the_generator_is_not_moved_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synthesizer, seen = fast(generator_steps=3), []
    images = LatentGenerator.images

    def spied(generator: LatentGenerator, z: Tensor) -> Tensor:
        seen.append((generator, z.detach().clone()))
        return images(generator, z)

    monkeypatch.setattr(LatentGenerator, "images", spied)
    before = [p.clone() for p in synthesizer.generator.module.parameters()]
    synthesizer.next_batch(toys.seeded_student())
    assert all(generator is not synthesizer.generator for generator, _ in seen)
    steps = [(after - before).abs().max().item() for (_, before), (_, after) in pairwise(seen)]
    assert steps[0] == pytest.approx(0.01, rel=1e-3)  # Adam's first step: latent_lr
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(before, synthesizer.generator.module.parameters(), strict=True)
    ]
    assert max(moved) == pytest.approx(3 * 3e-3, rel=1e-2)  # one step, of lr * steps


def test_the_images_of_the_lowest_loss_are_kept() -> None:
    synthesizer, losses = fast(generator_steps=4, adversarial=0.0), iter([3.0, 1.0, 2.0, 4.0])
    drawn = []

    def loss(images: Tensor, *_: Any) -> tuple[Tensor, dict[str, Any]]:
        drawn.append(images.detach())
        moving = images.square().mean()
        return moving - moving.detach() + next(losses), {}

    synthesizer.loss = loss  # type: ignore[method-assign, assignment]
    synthesizer.statistics.remember = lambda moments: None  # type: ignore[method-assign]
    images = synthesizer.next_batch().images
    assert [torch.equal(images, other) for other in drawn] == [False, True, False, False]


def test_a_replay_buffer_begins_with_image_programs() -> None:
    synthesizer, config = fast(warm_up=1), ImageProgramsConfig(batch_size=8, memory=8)
    programs = ImagePrograms(synthesizer.teacher, config, rng=rng())
    synthesizer.rng.manual_seed(0), programs.rng.manual_seed(0)
    for count in (1, 2):
        first = synthesizer.initial_batch(toys.seeded_student()).images
        assert torch.equal(first, programs.next_batch().images)
        assert synthesizer.batches == count
    plain, other = fast(drawn_start=False), fast()
    first = plain.initial_batch(toys.seeded_student()).images
    assert torch.equal(first, other.next_batch(toys.seeded_student()).images)


def test_there_is_no_student_before_the_end_of_the_warm_up() -> None:
    batches = []
    for seed in (5, 6):
        with seeded(rng(seed)):
            student = toys.student()
        synthesizer = fast(warm_up=2)
        batches.append([synthesizer.next_batch(student).images for _ in range(3)])
    same = [torch.equal(a, b) for a, b in zip(*batches, strict=True)]
    assert same == [True, True, False]


@pytest.mark.parametrize("name", ["fastdfkd", "nayer"])
def test_without_the_adversarial_term_no_student_is_needed(name: str) -> None:
    maker = {"fastdfkd": fast, "nayer": nayer}[name]
    with pytest.raises(ConfigError, match="plays against a student: hand one to next_batch, or"):
        maker().next_batch()
    assert maker(adversarial=0.0).next_batch().images.shape == (8, 1, 8, 8)


def test_the_first_layer_is_drawn_anew_once() -> None:
    synthesizer = fast(reset_after=0.5)
    synthesizer.anneal_over(6)
    module = synthesizer.generator.module
    assert isinstance(module, Generator)
    for batch in range(6):
        nn.init.ones_(module.linear.weight)
        nn.init.constant_(module.linear.bias, 7.0)
        nn.init.constant_(module.norm.weight, 7.0)
        synthesizer.next_batch(toys.seeded_student())
        fresh = batch == 3
        assert (module.linear.weight.mean() < 0.1) == fresh
        assert (module.linear.bias.mean() < 1) == fresh
        assert (module.norm.weight.mean() < 2) == fresh
    synthesizer = fast(reset_after=0.0)
    synthesizer.anneal_over(6)
    assert synthesizer.reset_at is None


def test_shifts_repeat_the_edge_and_flips_are_of_half_the_images() -> None:
    image = torch.arange(6.0).view(1, 1, 2, 3).expand(400, -1, -1, -1)
    assert torch.equal(shifted(image, 0, 0, flip=False, rng=rng()), image)
    flipped = shifted(image, 0, 0, flip=True, rng=rng())
    mirrored = (flipped == image.flip(3)).flatten(1).all(1)
    assert (mirrored | (flipped == image).flatten(1).all(1)).all()
    assert 150 < mirrored.sum() < 250
    moved = shifted(image, 1, 1, flip=False, rng=rng()).flatten(1).unique(dim=0).tolist()
    columns = ([0, 0, 1], [0, 1, 2], [1, 2, 2])
    rows = ([0, 0], [0, 1], [1, 1])
    wanted = [[3.0 * r + c for r in y for c in x] for y in rows for x in columns]
    assert moved == sorted(wanted)


def test_a_noisy_layer_is_shared_by_a_whole_set_of_classes() -> None:
    layers = NoisyLayers(2, 1, batch_size=7, num_classes=3)
    assert layers.weight.shape == (3, 2, 1)
    with torch.no_grad():
        layers.weight.copy_(torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1).expand(3, 2, 1))
        layers.bias.copy_(torch.tensor([0.5, 0.0, 0.0]).view(3, 1, 1))
    x = torch.tensor([[float(n), 1.0] for n in range(7)])
    assert layers(x).flatten().tolist() == [1.5, 2.5, 3.5, 40.0, 50.0, 60.0, 700.0]
    layers.draw(rng())
    assert layers.bias.abs().max() == 0
    wide = NoisyLayers(50, 40, 10, 2)
    wide.draw(rng())
    assert wide.weight.std().item() == pytest.approx(1.0, abs=0.02)


def test_nayer_takes_the_classes_in_turn_and_the_rows_of_the_last_layer() -> None:
    synthesizer = nayer(batch_size=6)
    rows = synthesizer.teacher.last_linear.weight
    torch.testing.assert_close(
        synthesizer.embeddings, rows / rows.pow(2).sum(1, keepdim=True).sqrt()
    )
    asked: list[list[int]] = []
    take_steps = synthesizer.take_steps

    def spied(generator: Any, inputs: Tensor, classes: Tensor, student: Any) -> Any:
        assert torch.equal(inputs, synthesizer.embeddings[classes])
        asked.append(classes.tolist())
        return take_steps(generator, inputs, classes, student)

    synthesizer.take_steps = spied  # type: ignore[method-assign, assignment]
    for _ in range(2):
        synthesizer.next_batch(toys.seeded_student())
    # groups of four, each with all four classes; the next batch goes on where this one ended
    assert asked == [[0, 1, 2, 3, 0, 1], [2, 3, 0, 1, 2, 3]]


def test_nayers_noise_is_new_for_each_batch_and_its_generator_for_each_life() -> None:
    synthesizer = nayer(generator_life=2)
    seen = []
    for _ in range(4):
        module = synthesizer.generator.module
        assert isinstance(module, nn.Sequential)
        noise = synthesizer.noisy.weight.clone()
        assert not synthesizer.generator.optimizer.state
        assert module[1] is synthesizer.noisy
        assert isinstance(module[2], Generator)
        seen.append((module, noise, module[2].linear.weight.clone()))
        synthesizer.next_batch(toys.seeded_student())
        assert not torch.equal(noise, synthesizer.noisy.weight)
    assert seen[0][0] is seen[1][0]
    assert seen[1][0] is not seen[2][0]
    assert seen[2][0] is seen[3][0]
    # within a life the generator goes on from where its steps left it
    assert 0 < (seen[0][2] - seen[1][2]).abs().max() <= 2.1 * 4e-3  # two of Adam's


def test_any_shape_is_drawn() -> None:
    spec = InputSpec(shape=(3, 9, 7), mean=(0.5,) * 3, std=(0.25,) * 3)
    with seeded(rng(3)):
        teacher = Teacher(toys.balanced(toys.SmallCnn(channels=3)), spec)
    for name, config in (
        ("fastdfkd", FastDfkdConfig(**SMALL, adversarial=0.0)),
        ("nayer", NayerConfig(**SMALL, adversarial=0.0)),
    ):
        images = open_synthesizer(name, teacher, config, rng=rng()).next_batch().images
        assert images.shape == (8, 3, 9, 7)


def test_nayer_needs_a_last_linear_layer() -> None:
    class Headless(toys.SmallCnn):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with seeded(rng(3)):
        teacher = Teacher(toys.balanced(Headless()), toys.SPEC)
    with pytest.raises(TeacherError, match="nayer needs last_linear"):
        open_synthesizer("nayer", teacher, NayerConfig(**SMALL), rng=rng())


def test_presets_are_the_authors() -> None:
    config = PRESETS["fastdfkd"]["cifar10"].synthesis
    assert (config.batch_norm, config.one_hot, config.adversarial, config.momentum) == (
        *(10.0, 0.4, 1.1),
        0.9,
    )
    assert (config.batch_size, config.latent, config.lr, config.latent_lr) == (256, 256, 3e-3, 0.01)
    config = PRESETS["nayer"]["cifar10"].synthesis
    assert (config.batch_norm, config.one_hot, config.adversarial, config.momentum) == (
        *(10.0, 0.5, 1.33),
        0.9,
    )
    assert (config.batch_size, config.latent, config.lr, config.generator_steps) == (
        *(400, 1000),
        4e-3,
        30,
    )
    for name, images, epochs in (("fastdfkd", 256, 220), ("nayer", 400, 200 + 200)):
        student = PRESETS[name]["cifar10"].distill
        assert (student["temperature"], student["lr"], student["weight_decay"]) == (20.0, 0.2, 1e-4)
        assert student["steps"] / student["fresh_every"] == 200
        assert student["buffer_size"] == images * epochs


@pytest.mark.parametrize("name", ["fastdfkd", "nayer"])
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    config = {"fastdfkd": FastDfkdConfig, "nayer": NayerConfig}[name]
    more: dict[str, Any] = {"reset_after": 0.5} if name == "fastdfkd" else {"generator_life": 3}
    job = DistillJob(
        teacher=TeacherFile(weights="toy"),
        student="toys:student",
        method=name,
        synthesis=config(**SMALL, generator_steps=2, warm_up=4, lr=0.02, **more),
        distill=DistillConfig(
            steps=8,
            batch_size=8,
            num_validation=16,
            validate_every=4,
            prefill=16,
            fresh_every=2,
            inherit=False,
        ),
    )
    whole, _ = _distillation(tmp_path / "whole", job, toys.cnn_teacher())
    count = sum(1 for _ in whole.run())
    teacher = whole.teacher
    wanted = {k: v.clone() for k, v in whole.student.state_dict().items()}
    for stop in range(1, count):
        folder = tmp_path / str(stop)
        first, _ = _distillation(folder, job, teacher)
        for _ in islice(first.run(), stop):
            pass
        save_checkpoint(folder / "checkpoint.pt", first.state_dict())
        first.stream.buffer.commit()
        second, _ = _distillation(folder, job, teacher)
        second.load_state_dict(load_checkpoint(folder / "checkpoint.pt", "cpu"))
        for _ in second.run():
            pass
        assert all(torch.equal(wanted[k], v) for k, v in second.student.state_dict().items()), stop
