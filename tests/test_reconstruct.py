"""Layers reconstructed for what they made before the cut."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.compression.config import PruneConfig
from dreamstill.compression.prune import prune
from dreamstill.distillation.layer_reconstruction import reconstruct
from dreamstill.errors import DataError, NonFiniteError
from dreamstill.input_spec import InputSpec
from dreamstill.nn.lenet import lenet5_bn
from dreamstill.nn.seeded import seeded
from dreamstill.teacher import Teacher


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but no ridge."""
    monkeypatch.setattr("dreamstill.distillation.layer_reconstruction.RIDGES", (1e-9,))


@pytest.mark.usefixtures("exact")
def test_what_a_lost_channel_carried_is_taken_over_by_the_others() -> None:
    """Hidden 2 is 3 times hidden 0, less hidden 1: its reader's weights go to the two."""
    first, last = nn.Linear(4, 3, bias=False), nn.Linear(3, 2)
    with torch.no_grad():
        first.weight[2] = 3 * first.weight[0] - first.weight[1]
        last.weight.copy_(torch.tensor([[1.0, 0, 2], [0, 1, -1]]))
    narrow_first, narrow_last = nn.Linear(4, 2, bias=False), nn.Linear(2, 2)
    narrow_first.load_state_dict({"weight": first.weight[:2]})
    narrow_last.load_state_dict({"weight": last.weight[:, :2], "bias": torch.zeros(2)})
    whole, narrow = nn.Sequential(first, last), nn.Sequential(narrow_first, narrow_last)
    kept = {"0": torch.tensor([0, 1])}
    x = torch.randn(64, 4, generator=rng())
    reconstruct(whole, narrow, kept, x, rng=rng())
    wanted = torch.tensor([[7.0, -2], [-3, 2]])
    torch.testing.assert_close(narrow_last.weight, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(narrow(x), whole(x), atol=1e-4, rtol=1e-4)


def test_what_one_half_learns_and_the_other_contradicts_is_left_alone() -> None:
    """More weights than images, and targets that nothing explains: the weights stay."""
    whole, narrow = (nn.Sequential(nn.Linear(100, 3)) for _ in range(2))
    x = torch.randn(40, 100, generator=rng())
    whole[0].register_forward_hook(lambda layer, args, output: torch.randn(40, 3, generator=rng(1)))
    before = narrow[0].weight.clone()  # type: ignore[operator]
    reconstruct(whole, narrow, {}, x, rng=rng())
    after = narrow[0].weight
    assert (after - before).norm() < 0.4 * before.norm()  # type: ignore[operator]


class Convolutions(nn.Module):
    """Every way of padding; one layer runs twice, and one has groups."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.strided = nn.Conv2d(width, 4, 3, stride=2, padding=(1, 0), dilation=2)
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.twice = nn.Conv2d(4, 4, 1, bias=False)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.round = nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular")
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.strided(F.relu(self.first(x))))
        x = self.grouped(self.twice(self.twice(x)))
        x = F.relu(self.round(x)).flatten(2).transpose(1, 2)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.usefixtures("exact")
def test_convolutions_of_every_kind_are_solved() -> None:
    with seeded(rng()):
        whole, narrow = Convolutions(6), Convolutions(4)
    with torch.no_grad():  # the channels left out are twins of the ones that stay
        for twin, of in ((1, 0), (4, 5)):
            whole.first.weight[twin], whole.first.bias[twin] = (  # type: ignore[index]
                2 * whole.first.weight[of],
                2 * whole.first.bias[of],  # type: ignore[index]
            )
    left = torch.tensor([0, 2, 3, 5])
    state = narrow.state_dict()
    for name in ("twice.weight", "grouped.weight", "grouped.bias"):  # these are not reconstructed
        state[name] = whole.state_dict()[name]
    narrow.load_state_dict(state)
    narrow.train()
    x = torch.randn(200, 2, 9, 9, generator=rng())
    reconstruct(whole, narrow, {"first": left}, x, rng=rng())
    torch.testing.assert_close(narrow.first.weight, whole.first.weight[left], atol=1e-3, rtol=1e-3)
    assert (narrow(x) - whole(x)).norm() < 1e-3 * whole(x).norm()
    assert torch.equal(narrow.twice.weight, whole.twice.weight)
    assert narrow.training
    parts = [*whole.modules(), *narrow.modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)


class Strided(nn.Module):
    """Its maps' size is its own; its last layer is called by keyword."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, stride, padding=1)
        self.last = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(input=self.first(x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("mine", "its"), [(1, 2), (2, 1)])
def test_maps_of_another_size_are_left_alone_and_keywords_are_read(mine: int, its: int) -> None:
    whole, narrow = Strided(its), Strided(mine)
    first, last = narrow.first.weight.clone(), narrow.last.weight.clone()
    reconstruct(whole, narrow, {}, torch.randn(32, 1, 8, 8, generator=rng()), rng=rng())
    assert torch.equal(narrow.first.weight, first)
    assert not torch.equal(narrow.last.weight, last)


def test_what_is_not_finite_is_named() -> None:
    whole, narrow = (nn.Sequential(nn.Linear(3, 2)) for _ in range(2))
    x = torch.randn(8, 3, generator=rng())
    x[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="0 was reconstructed with weights that are not"):
        reconstruct(whole, narrow, {}, x, rng=rng())


def test_one_image_is_too_few() -> None:
    whole, narrow = (nn.Sequential(nn.Linear(4, 2)) for _ in range(2))
    with pytest.raises(DataError, match="at least 2 images; got 1"):
        reconstruct(whole, narrow, {}, torch.randn(1, 4, generator=rng()), rng=rng())


def test_large_images_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamstill.distillation.layer_reconstruction.MOST_VALUES", 40)
    seen = []
    whole, narrow = (nn.Sequential(nn.Linear(4, 2)) for _ in range(2))
    narrow.register_forward_hook(lambda layer, args, output: seen.append(len(output)))
    reconstruct(whole, narrow, {}, torch.randn(32, 4, generator=rng()), rng=rng())
    assert seen == [10]


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_pruned_network_stays_nearer_to_the_whole(rounds: int) -> None:
    with seeded(rng()):
        model = lenet5_bn()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2, generator=rng())
    spec = InputSpec(shape=(1, 28, 28), mean=(0.5,), std=(0.25,))
    teacher = Teacher(model, spec)
    images = torch.randint(0, 256, (600, 1, 28, 28), generator=rng(), dtype=torch.uint8)
    shown = spec.encode(images[500:])
    errors = []
    for num in (0, 500):
        config = PruneConfig(keep=0.6, rounds=rounds, reconstruct=num, finetune=None)
        pruned, _ = prune(teacher, images[:500], config, rng=rng())
        errors.append((pruned(shown) - teacher(shown)).pow(2).mean())
    assert errors[1] < errors[0] / 3
