"""Every image program keeps the contract, and its images differ in what they show."""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreamstill.errors import ConfigError
from dreamstill.synthesis.programs import (
    PROGRAMS,
    image_program,
    open_programs,
    register_program,
)
from dreamstill.synthesis.programs.drawing import at_times, log_rand, power, soft_step
from dreamstill.synthesis.programs.leaves import leaf_radii
from dreamstill.synthesis.programs.masks import kmeans_mask, organic_mask, sharpened

SHAPES = [
    (1, 28, 28),
    (3, 32, 32),
    (1, 40, 24),
    (2, 7, 5),
    (3, 64, 64),
    (4, 16, 16),
    (3, 9, 1),
    (1, 1, 1),
]
GRAY, COLOR = SHAPES[:2]
PAGE = Path(__file__).parents[1] / "docs" / "image_programs.md"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(name: str, num: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    return PROGRAMS[name](num, shape, rng(seed))


def share(which: Tensor) -> float:
    return which.float().mean().item()


every_program = pytest.mark.parametrize("name", PROGRAMS)


@every_program
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_are_float32_in_0_1_of_the_shape_asked_for(
    name: str, shape: tuple[int, int, int]
) -> None:
    for num in (0, 1, 3):
        images = drawn(name, num, shape)
        assert images.shape == (num, *shape)
        assert images.dtype == torch.float32
        assert images.device == torch.device("cpu")
        assert images.isfinite().all()
        assert ((images >= 0) & (images <= 1)).all()


@every_program
def test_the_same_generator_state_draws_the_same_bits_and_no_global_one_is_used(name: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (drawn(name, 4, COLOR, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_program
def test_the_device_is_the_generators(name: str) -> None:
    """Where there is no GPU, a default device that is not the generator's stands for one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    with torch.device("meta" if device == "cpu" else "cpu"):
        images = PROGRAMS[name](3, COLOR, generator)
    assert images.device.type == device


@every_program
@pytest.mark.parametrize("shape", [GRAY, COLOR], ids=str)
def test_images_differ_in_what_they_show(name: str, shape: tuple[int, int, int]) -> None:
    images = drawn(name, 200, shape, seed=3)
    gray = images.mean(1)
    contrast = gray.flatten(1).std(1)
    assert share(contrast < 0.03) < 0.06  # next to none is empty
    assert contrast.quantile(0.9) > 2 * contrast.quantile(0.1)
    mean = gray.mean((1, 2))
    assert mean.quantile(0.9) - mean.quantile(0.1) > 0.3  # dark and light ones
    middle = gray[:, 8:-8, 8:-8].mean((1, 2))
    border = torch.cat([gray[:, :3].flatten(1), gray[:, -3:].flatten(1)], 1).mean(1)
    assert 0.3 < share(middle > border) < 0.7  # light on dark, and dark on light
    assert images.std(0).min() > 0.1  # every pixel changes from image to image
    distance = torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(9)
    assert distance.min() > 0.1


@every_program
def test_a_part_of_the_images_has_colors_and_a_part_is_gray(name: str) -> None:
    images = drawn(name, 200, COLOR, seed=4)
    spread = images.std(1).amax((1, 2))
    assert share(spread > 0.05) > 0.2
    assert share(images.std(1).mean((1, 2)) < 0.02) > 0.02


@every_program
def test_the_page_says_what_a_program_draws(name: str) -> None:
    draws = (PROGRAMS[name].__doc__ or "").splitlines()[0].removeprefix("Draw ").rstrip(".")
    assert f"| `{name}` | {draws} |" in PAGE.read_text()


@every_program
def test_drawing_is_cheap(name: str) -> None:
    """No program is far above its budget of 1 ms an image at 3 x 32 x 32, on a busy machine."""
    drawn(name, 8, COLOR)
    start = time.process_time()
    drawn(name, 64, COLOR)
    assert (time.process_time() - start) / 64 < 0.01


@pytest.mark.parametrize(
    ("num", "shape"), [(-1, GRAY), (2, (28, 28)), (2, (1, 0, 28)), (2, (0, 28, 28))]
)
def test_bad_arguments_are_named(num: int, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"balls cannot draw -?\d images of shape \(.*: give"):
        PROGRAMS["balls"](num, shape, rng())


def test_empty_images_are_drawn_once_more_and_pixels_are_clamped() -> None:
    calls: list[int] = []

    @image_program
    def halves(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
        """Draw images of -1 and 2, side by side; those of even numbers are empty at first."""
        images = torch.full((num, *shape), -1.0)
        images[:, :, :, shape[2] // 2 :] = 2
        if not calls:
            images[::2] = 0.5
        calls.append(num)
        return images

    images = halves(5, (1, 4, 4), rng())
    assert calls == [5, 3]
    assert images.unique().tolist() == [0, 1]
    assert halves.__name__ == "halves"


def test_programs_are_opened_by_name() -> None:
    assert list(open_programs(())) == list(PROGRAMS)
    assert open_programs(()) is not PROGRAMS
    assert list(open_programs(["tiles", "balls"])) == ["tiles", "balls"]
    with pytest.raises(ConfigError, match="no image program 'cats': choose among hierarchical_"):
        open_programs(["balls", "cats"])
    with pytest.raises(ConfigError, match="the image program 'balls' is there twice"):
        open_programs(["balls", "tiles", "balls"])


@pytest.mark.usefixtures("tables_restored")
def test_a_program_can_be_registered_once() -> None:
    def plain(num: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
        return torch.rand(num, 1, 1, 1, generator=rng).expand(num, *shape)

    register_program("plain", plain)
    assert open_programs(["plain"]) == {"plain": plain}
    with pytest.raises(ConfigError, match="there is an image program 'plain' already"):
        register_program("plain", plain)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] > 1], ids=str)
def test_images_mixed_by_masks_stay_within_both(shape: tuple[int, int, int]) -> None:
    first, second = (drawn("blobs", 20, shape, seed) for seed in (0, 1))
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    for mask in (organic_mask(20, *shape[1:], rng()), kmeans_mask(first, rng())):
        assert mask.shape == (20, 1, *shape[1:])
        assert ((mask >= 0) & (mask <= 1)).all()
        mixed = torch.lerp(first, second, mask)
        assert ((mixed >= low - 1e-6) & (mixed <= high + 1e-6)).all()


def test_masks_show_both_images_and_have_edges() -> None:
    images = drawn("coordinate_networks", 100, COLOR)
    for mask in (organic_mask(100, 32, 32, rng()), kmeans_mask(images, rng())):
        part = mask.mean((1, 2, 3))
        assert share((part > 0.02) & (part < 0.98)) > 0.8
        assert share((mask < 0.05) | (mask > 0.95)) > 0.7


def test_kmeans_masks_follow_the_colors() -> None:
    """Two colors are two clusters whatever k is: the mask is on in one of them or in the other."""
    image = torch.zeros(1, 3, 8, 8)
    image[:, :, 2:5, 3:] = 0.7
    for seed in range(20):
        mask = kmeans_mask(image, rng(seed))
        inside = mask[0, 0, 2:5, 3:]
        assert inside.unique().numel() == 1
        assert mask.sum() in (0, 15, 49, 64)


def test_sharpening_keeps_0_a_half_and_1() -> None:
    values = torch.tensor([0, 0.25, 0.5, 0.75, 1])
    assert sharpened(values).tolist() == [0, 0.125, 0.5, 0.875, 1]


def test_leaf_radii_have_the_mean_of_their_law() -> None:
    smallest, largest = 0.1, 0.8
    radii = leaf_radii(1000, 100, smallest, rng(), largest)
    assert radii.min() >= smallest
    assert radii.max() <= largest
    # of 1 / r**3 between them
    assert radii.mean().item() == pytest.approx(2 / (1 / smallest + 1 / largest), rel=0.01)


def test_numbers_are_of_the_laws_that_draw_them() -> None:
    at_ten = at_times((10000,), rng(), 0.3, 2)
    assert share(at_ten > 0) == pytest.approx(0.3, abs=0.02)
    assert at_ten[at_ten > 0].mean().item() == pytest.approx(1, abs=0.05)
    octaves = log_rand((10000,), rng(), 0.5, 8).log2()
    assert octaves.min() >= -1
    assert octaves.max() <= 3
    assert octaves.mean().item() == pytest.approx(1, abs=0.05)
    base = torch.linspace(0.01, 2, 20)
    assert torch.allclose(power(base, torch.tensor(1.7)), base**1.7, atol=1e-5)
    assert soft_step(torch.tensor([-1, -0.5, 0, 0.25, 3])).tolist() == [0, 0, 0.5, 0.75, 1]


def test_a_thin_image_is_finite() -> None:
    images = PROGRAMS["balls"](400, (1, 64, 1), torch.Generator().manual_seed(0))
    assert images.isfinite().all()
