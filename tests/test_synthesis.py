"""What each method does beyond the contract, against answers known by hand."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import toys
from dreamstill.errors import ConfigError, TeacherError
from dreamstill.input_spec import InputSpec
from dreamstill.losses.priors import l2_norm, total_variation
from dreamstill.losses.statistics import batch_statistics
from dreamstill.nn.generators import Generator
from dreamstill.synthesis.config import (
    CLOTHES,
    AbdConfig,
    DaflConfig,
    DeepInversionConfig,
    DfadConfig,
    KnowledgeWithinConfig,
    RandomShapes,
    Scheme,
    Start,
    StructuredNoiseConfig,
    ZskdConfig,
    ZsktConfig,
)
from dreamstill.synthesis.fields import interpolation, random_fields
from dreamstill.synthesis.methods.dafl import Dafl, dafl_loss
from dreamstill.synthesis.methods.deepinversion import DeepInversion, inversion_loss
from dreamstill.synthesis.methods.dfad import Dfad
from dreamstill.synthesis.methods.structured_noise import StructuredNoise
from dreamstill.synthesis.methods.zskd import Zskd, by_row, class_similarity, concentration
from dreamstill.synthesis.methods.zskt import Zskt
from dreamstill.synthesis.pixel_optimization import halved, start_images
from dreamstill.synthesis.presets import PRESETS
from dreamstill.synthesis.random_shapes import structured_images
from dreamstill.synthesis.registry import open_synthesizer
from dreamstill.teacher import Teacher

IMAGENET = PRESETS["deepinversion"]["imagenet"].synthesis


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_similarity_is_rescaled_over_the_whole_matrix() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])  # cosines 1, 0, -1
    wanted = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]])
    torch.testing.assert_close(class_similarity(weight), wanted)


def test_concentration_is_rescaled_by_row_and_above_zero() -> None:
    alpha = concentration(by_row(torch.tensor([[1.0, 0.4, 0.2], [0.4, 1.0, 0.9]])), 0.1)
    wanted = torch.tensor([[0.1001, 0.0251, 0.0001], [0.0001, 0.1001, 0.1 * 5 / 6 + 1e-4]])
    torch.testing.assert_close(alpha, wanted)


@pytest.mark.parametrize("rows", [True, False])
def test_zskd_rescales_rows_if_asked(rows: bool) -> None:
    config = ZskdConfig(rescale_rows=rows)
    lowest = Zskd(toys.cnn_teacher(), config, rng=rng()).similarity.amin(1)
    assert (lowest == 0).all() == rows


def test_zskd_targets_take_turns_and_sum_to_one() -> None:
    synthesizer = Zskd(toys.quadrant_teacher(), ZskdConfig(betas=(1e4, 1e3)), rng=rng())
    targets = synthesizer.draw_targets(16)
    torch.testing.assert_close(targets.sum(1), torch.ones(16))
    # such large betas leave the mean: its own class the most, for both betas of each class
    assert targets.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3] * 2


def test_zskd_reaches_its_targets() -> None:
    teacher = toys.quadrant_teacher()
    config = ZskdConfig(batch_size=8, steps=200, temperature=2.0, betas=(100.0,))
    synthesizer = Zskd(teacher, config, rng=rng())
    state = synthesizer.rng.get_state()
    batch = synthesizer.next_batch()
    synthesizer.rng.set_state(state)
    synthesizer.drawn = 0
    targets = synthesizer.draw_targets(8)
    assert (batch.logits.div(2).softmax(1) - targets).abs().max() < 0.05


def test_zskd_image_does_not_depend_on_its_company() -> None:
    teacher = toys.quadrant_teacher()
    for size in (4, 8):
        config = ZskdConfig(batch_size=size, steps=1, lr=0.1)
        images = Zskd(teacher, config, rng=rng()).next_batch().images
        assert images.std() > 0.9  # one Adam step moves every pixel by about the learning rate


def test_dafl_presets_are_the_papers() -> None:
    assert (DaflConfig().one_hot, DaflConfig().information_entropy, DaflConfig().activation) == (
        1.0,
        5.0,
        0.1,
    )
    assert (DaflConfig().batch_size, DaflConfig().latent, DaflConfig().lr, DaflConfig().widths) == (
        512,
        100,
        0.2,
        (128, 64),
    )


def test_dafl_loss_is_the_weighted_sum() -> None:
    # sure and even: cross-entropy 0, entropy -log10(2) in full, features of magnitude 3
    logits, features = 100 * torch.eye(2), torch.full((2, 4), -3.0)
    config = DaflConfig(one_hot=7.0, information_entropy=2.0, activation=0.5)
    wanted = -2.0 * torch.log10(torch.tensor(2.0)) - 0.5 * 3.0
    torch.testing.assert_close(dafl_loss(logits, features, config), wanted)


def test_dafl_passes_the_gradient_through_the_clip() -> None:
    synthesizer = Dafl(toys.cnn_teacher(), DaflConfig(batch_size=8, widths=(4, 4)), rng=rng())
    module = synthesizer.generator.module
    assert isinstance(module, Generator)
    nn.init.constant_(module.norm.weight, 50.0)
    before = module.linear.weight.clone()
    synthesizer.next_batch()
    assert not torch.equal(before, module.linear.weight)


def test_generator_meets_any_size() -> None:
    for shape in ((1, 28, 28), (3, 33, 17), (2, 40, 24)):
        images = Generator(7, shape, (8, 4))(torch.randn(4, 7, generator=rng()))
        assert images.shape == (4, *shape)
        torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4, rtol=0)


def test_zskt_falls_to_zero_over_its_batches() -> None:
    teacher, student, rates = toys.cnn_teacher(), toys.seeded_student(), []
    config = ZsktConfig(batch_size=4, widths=(4, 4), student_steps=10)
    synthesizer = Zskt(teacher, config, rng=rng())
    synthesizer.anneal_over(4)
    for _ in range(5):
        synthesizer.next_batch(student)
        rates.append(synthesizer.generator.optimizer.param_groups[0]["lr"] / config.lr)
    wanted = [1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0.0]
    assert rates == pytest.approx(wanted, abs=1e-9)
    for given in (0, 7):
        synthesizer = Zskt(teacher, replace(config, cosine_batches=given), rng=rng())
        synthesizer.anneal_over(4)
        assert synthesizer.cosine_batches == given


def test_dfad_falls_to_a_tenth_at_its_shares() -> None:
    teacher, student, rates = toys.cnn_teacher(), toys.seeded_student(), []
    config = DfadConfig(batch_size=4, widths=(4, 4), student_steps=2, drops=(0.3, 0.6))
    synthesizer = Dfad(teacher, config, rng=rng())
    synthesizer.anneal_over(10)
    for _ in range(10):
        synthesizer.next_batch(student)
        rates.append(synthesizer.generator.optimizer.param_groups[0]["lr"] / config.lr)
    assert rates[::2] == pytest.approx([1.0, 1.0, 0.1, 0.01, 0.01])


def test_inversion_loss_is_zero_for_perfect_statistics_and_targets() -> None:
    images = torch.zeros(2, 1, 4, 4)
    norm = nn.BatchNorm2d(3)
    seen = torch.cat([torch.ones(1, 3, 1, 1), -torch.ones(1, 3, 1, 1)])  # mean 0, variance 1
    moments, config = (
        {"n": batch_statistics(seen)},
        DeepInversionConfig(l2=1.0, total_variation=1.0),
    )
    loss = inversion_loss(
        images, 100 * torch.eye(2), torch.tensor([0, 1]), moments, {"n": norm}, config
    )
    assert loss.item() == 0.0


def test_inversion_loss_weighs_the_first_layer() -> None:
    images, logits, targets = torch.zeros(2, 1, 4, 4), 100 * torch.eye(2), torch.tensor([0, 1])
    norms = {"a": nn.BatchNorm2d(1), "b": nn.BatchNorm2d(1)}
    off = torch.tensor([4.0, 2.0]).view(2, 1, 1, 1)  # mean 3, variance 1: distance 3
    seen = {name: batch_statistics(off) for name in norms}
    config = DeepInversionConfig(batch_norm=2.0, first_batch_norm=10.0)
    loss = inversion_loss(images, logits, targets, seen, norms, config)
    assert loss.item() == 2 * (10 * 3 + 3)


def test_deepinversion_keeps_the_best_iterate_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DeepInversionConfig(batch_size=8, steps=30, jitter=0, flip=False)
    shown: list[torch.Tensor] = []

    def worse_and_worse(images: torch.Tensor, *rest: Any) -> torch.Tensor:
        shown.append(images.detach().clone())
        return inversion_loss(images, *rest) + 1000.0 * abs(len(shown) - 11)

    monkeypatch.setattr(
        "dreamstill.synthesis.methods.deepinversion.inversion_loss", worse_and_worse
    )
    batch = DeepInversion(toys.cnn_teacher(), config, rng=rng()).next_batch()
    assert torch.equal(batch.images, shown[10])
    assert not torch.equal(batch.images, shown[-1])


@pytest.mark.parametrize("shape", [(1, 1, 16), (1, 16, 1), (3, 1, 16)])
def test_images_of_one_row_or_column_can_be_drawn(shape: tuple[int, int, int]) -> None:
    spec = InputSpec(shape=shape, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    images = structured_images(20, spec, RandomShapes(), rng())
    assert images.shape == (20, *shape)
    assert images.std() > 0.1


def test_empty_slots_of_a_memory_are_not_saved() -> None:
    method = StructuredNoise(toys.cnn_teacher(), StructuredNoiseConfig(batch_size=8), rng=rng())
    assert method.state_dict()["memory"]["images"].shape[1] == 0
    method.next_batch()
    state = copy.deepcopy(method.state_dict())
    assert 0 < state["memory"]["images"].shape[1] < 16
    other = StructuredNoise(method.teacher, method.config, rng=rng())
    other.load_state_dict(state)
    method.rng.manual_seed(1), other.rng.manual_seed(1)
    assert torch.equal(method.next_batch().images, other.next_batch().images)


def test_a_drawing_needs_a_structured_start() -> None:
    with pytest.raises(ConfigError, match=r"shapes .* has no effect with start uniform"):
        ZskdConfig(shapes=CLOTHES)
    with pytest.raises(ConfigError, match=r"prior 9\.0 has no effect with scheme bns"):
        KnowledgeWithinConfig(scheme=Scheme.BNS, prior=9.0)


def test_abd_needs_pixels_to_smooth() -> None:
    teacher = Teacher(toys.Sensor(), toys.SIGNAL)
    with pytest.raises(TeacherError, match="at least 3x3 pixels; the teacher's are 1x64"):
        open_synthesizer("abd", teacher, AbdConfig(), rng=rng())


def test_deepinversion_classes_take_turns() -> None:
    config = DeepInversionConfig(batch_size=6, steps=1)
    synthesizer = DeepInversion(toys.cnn_teacher(), config, rng=rng())
    synthesizer.next_batch()
    assert synthesizer.turns.next_class == 2


def test_half_the_resolution_is_one_value_for_four_pixels() -> None:
    images = torch.randn(2, 1, 8, 8, generator=rng())
    shown = F.interpolate(halved(images), (8, 8))
    assert torch.equal(shown[:, :, ::2, ::2], shown[:, :, 1::2, 1::2])
    torch.testing.assert_close(halved(shown), halved(images))
    assert halved(images[..., :7]).shape[2:] == (4, 4)


def test_priors_at_half_the_resolution_are_of_the_pooled_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the enlarged one TV would be 1.58 times as much and the l2 norm twice as much."""
    config = replace(IMAGENET, batch_size=2, steps=1, low_resolution_steps=1, lr_warm_up=0)
    priors = replace(config, total_variation=2.0, l2=3.0, batch_norm=0.0, jitter=1, flip=False)
    teacher, seen = toys.cnn_teacher(), {}
    start = torch.randn(2, 1, 8, 8, generator=rng())
    monkeypatch.setattr("dreamstill.synthesis.methods.deepinversion.start_images", lambda *_: start)

    def optimize(images: Tensor, objective: Callable[[Tensor], Tensor], **_: object) -> Tensor:
        seen["loss"] = objective(images).item()
        return images

    monkeypatch.setattr("dreamstill.synthesis.methods.deepinversion.optimize_pixels", optimize)
    synthesizer = DeepInversion(teacher, priors, rng=rng())
    synthesizer.rng.manual_seed(0)
    synthesizer.next_batch()
    logits = teacher(F.interpolate(halved(start), (8, 8)))
    wanted = F.cross_entropy(logits, torch.arange(2))
    wanted = wanted + 2 * total_variation(halved(start)) + 3 * l2_norm(halved(start))
    assert seen["loss"] == pytest.approx(wanted.item(), rel=1e-5)


def test_each_resolution_has_its_own_steps_and_climb(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(IMAGENET, batch_size=2, steps=5, low_resolution_steps=2, lr_warm_up=2)
    synthesizer = DeepInversion(toys.cnn_teacher(), config, rng=rng())
    shares, pooled = [], []

    def shown(images: torch.Tensor, *rest: object, **others: object) -> torch.Tensor:
        pooled.append(images.shape[2:] == (4, 4))
        return images

    def step(optimizer: torch.optim.Adam) -> None:
        (group,) = optimizer.param_groups
        assert group["betas"] == (0.5, 0.9)
        shares.append(group["lr"] / config.lr)

    monkeypatch.setattr("dreamstill.synthesis.methods.deepinversion.jittered", shown)
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    synthesizer.next_batch()
    assert pooled == [True, True, False, False, False]
    assert shares == [0.5, 1.0, 0.5, 1.0, 1.0]


def test_interpolation_rows_have_unit_norm_and_no_denormals() -> None:
    weights = interpolation(32, 28)
    torch.testing.assert_close(weights.norm(dim=1), torch.ones(28))
    assert ((weights == 0) | (weights > 1e-7)).all()


def test_random_fields_have_unit_variance_and_follow_the_cells() -> None:
    smooth = random_fields(400, 24, 40, (2,), rng())
    rough = random_fields(400, 24, 40, (32,), rng())
    assert smooth.shape == (400, 24, 40)
    for fields in (smooth, rough):
        assert abs(fields.var().item() - 1) < 0.15
    steps = [(f[:, :, 1:] - f[:, :, :-1]).abs().mean().item() for f in (smooth, rough)]
    assert steps[0] < 0.25 * steps[1]


def test_structured_images_follow_the_spec() -> None:
    dark = InputSpec(shape=(1, 16, 16), mean=(0.1,), std=(0.3,))
    bright = InputSpec(shape=(1, 16, 16), mean=(0.9,), std=(0.3,))
    means = [
        structured_images(300, spec, RandomShapes(), rng()).mean().item() for spec in (dark, bright)
    ]
    assert means[0] < 0.4 < 0.6 < means[1]


def test_structured_colors_correlate_as_told() -> None:
    spec = InputSpec(shape=(3, 16, 16), mean=(0.4,) * 3, std=(0.3,) * 3)
    gaps = []
    for rho in (0.1, 1.0):
        config = RandomShapes(channel_correlation=rho)
        images = structured_images(200, spec, config, rng())
        gaps.append((images[:, 0] - images[:, 1]).abs().mean().item())
    assert gaps[1] < 1e-6 < 0.05 < gaps[0]


def test_half_of_color_images_are_scenes_of_the_contrast_asked_for() -> None:
    color = InputSpec(shape=(3, 16, 16), mean=(0.4,) * 3, std=(0.3,) * 3)
    gray = InputSpec(shape=(1, 16, 16), mean=(0.4,), std=(0.3,))
    for spec, share in ((color, 0.5), (gray, 0.0)):
        told = structured_images(8, spec, RandomShapes(scene_share=share), rng())
        assert torch.equal(structured_images(8, spec, RandomShapes(), rng()), told)
    flat = structured_images(8, color, RandomShapes(scene_share=1.0, scene_contrast=0.0), rng())
    assert torch.equal(flat, torch.full_like(flat, 0.5))
    scenes = structured_images(300, color, RandomShapes(scene_share=1.0, scene_contrast=0.1), rng())
    assert abs(scenes.mean().item() - 0.5) < 0.02
    assert 0.08 < scenes.std().item() < 0.14
    mixed = structured_images(300, color, RandomShapes(scene_contrast=0.0), rng())
    assert 120 < (mixed == 0.5).all(dim=(1, 2, 3)).sum() < 180


def test_a_structured_start_is_a_shape_of_the_class_it_is_to_become() -> None:
    teacher = toys.quadrant_teacher()
    classes = torch.arange(4).repeat(20)
    named = teacher(start_images(classes, teacher, Start.STRUCTURED, RandomShapes(), rng())).argmax(
        1
    )
    assert (named == classes).float().mean() > 0.95
    for start in (Start.GAUSSIAN, Start.UNIFORM):  # no look at the teacher
        teacher.queries = 0
        start_images(classes, teacher, start, RandomShapes(), rng())
        assert teacher.queries == 0


def test_structured_noise_is_class_balanced() -> None:
    teacher = toys.quadrant_teacher()
    config = StructuredNoiseConfig(batch_size=40, oversample=4)
    logits = StructuredNoise(teacher, config, rng=rng()).next_batch().logits
    assert torch.bincount(logits.argmax(1), minlength=4).tolist() == [10, 10, 10, 10]
