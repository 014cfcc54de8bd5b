"""What a graph says of layers that feed one another, and what it must not say."""

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import toys
from dreamstill.compression.quantization.equalization import equalize, expected_inputs
from dreamstill.errors import TeacherError
from dreamstill.evaluation import check_same_function
from dreamstill.graph.batch_norm_folding import fold_batch_norm
from dreamstill.graph.channel_groups import ChannelGraph, Side, channel_groups
from dreamstill.graph.layer_pairs import pairs, relu_for_relu6
from dreamstill.graph.modules import plain_layers
from dreamstill.graph.tracing import trace
from dreamstill.nn.seeded import seeded


class Net(nn.Module):
    """Layers by name, called by a function."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def net(run: Callable[[Any, Tensor], Tensor], **layers: Callable[[], nn.Module]) -> Net:
    with seeded(rng()):
        made = {name: layer() for name, layer in layers.items()}
        for norm in (layer for layer in made.values() if isinstance(layer, nn.BatchNorm2d)):
            nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.3, 3)  # type: ignore[arg-type]
    return Net(run, **made).eval()


def convolution() -> nn.Module:
    return nn.Conv2d(1, 8, 3, padding=1)


def inner() -> nn.Module:
    return nn.Conv2d(8, 8, 3, padding=1)


def weight(model: nn.Module, name: str) -> Tensor:
    value = model.get_submodule(name).weight
    assert isinstance(value, Tensor)
    return value


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


TWICE = {
    "one norm of two convolutions": net(
        lambda m, x: m.out(pooled(m.norm(m.b(F.relu(m.norm(m.a(x))))))),
        **{"a": convolution, "b": inner, "norm": lambda: nn.BatchNorm2d(8)},
        out=lambda: nn.Linear(8, 4),
    ),
    "one convolution of two norms": net(
        lambda m, x: m.out(pooled(m.n2(m.b(F.relu(m.n1(m.b(m.a(x)))))))),
        **{"a": convolution, "b": inner, "out": lambda: nn.Linear(8, 4)},
        **{"n1": lambda: nn.BatchNorm2d(8), "n2": lambda: nn.BatchNorm2d(8)},
    ),
    "a norm again behind a ReLU": net(
        lambda m, x: m.out(pooled(m.norm(F.relu(m.norm(m.a(x)))))),
        **{"a": convolution, "norm": lambda: nn.BatchNorm2d(8), "out": lambda: nn.Linear(8, 4)},
    ),
}


@pytest.mark.parametrize("name", TWICE)
def test_what_is_called_twice_is_not_folded(name: str) -> None:
    model, x = TWICE[name], torch.randn(5, 1, 8, 8, generator=rng())
    torch.testing.assert_close(fold_batch_norm(model)(x), model(x), atol=1e-6, rtol=1e-5)


FLATTENINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "flatten": lambda m, x: x.flatten(1),
    "torch.flatten": lambda m, x: torch.flatten(x, start_dim=1),
    "module": lambda m, x: m.flat(x),
    "view by size": lambda m, x: x.view(x.size(0), -1),
    "view by shape": lambda m, x: x.view(x.shape[0], -1),
    "reshape to numbers": lambda m, x: x.reshape(-1, 128),
    "reshape to a tuple": lambda m, x: x.reshape((x.shape[0], 128)),
}


@pytest.mark.parametrize("name", FLATTENINGS)
def test_every_way_to_flatten_leads_on(name: str) -> None:
    flatten = FLATTENINGS[name]
    model = net(
        lambda m, x: m.out(F.relu(m.fc(flatten(m, F.max_pool2d(F.relu(m.c(x)), 2))))),
        **{"c": convolution, "fc": lambda: nn.Linear(128, 6), "out": lambda: nn.Linear(6, 4)},
        flat=nn.Flatten,
    )
    found = pairs(trace(model))
    assert [(p.first, p.second, p.positions) for p in found] == [("c", "fc", 16), ("fc", "out", 1)]
    x = torch.randn(5, 1, 8, 8, generator=rng())
    torch.testing.assert_close(equalize(model, toys.SPEC).model(x), model(x), atol=1e-5, rtol=1e-4)


STRANGE = {
    "channels in another order": net(
        lambda m, x: m.out(pooled(F.relu(m.b(F.relu(m.a(x))[:, [7, 6, 5, 4, 3, 2, 1, 0]])))),
        **{"a": convolution, "b": inner, "out": lambda: nn.Linear(8, 4)},
    ),
    "a linear layer over positions": net(
        lambda m, x: m.out(F.relu(m.token(F.relu(m.a(x)).flatten(2))).mean(1)),
        **{"a": convolution, "token": lambda: nn.Linear(64, 6), "out": lambda: nn.Linear(6, 4)},
    ),
    "a linear layer over columns": net(
        lambda m, x: m.out(F.relu(m.token(F.relu(m.a(x)))).flatten(1)),
        **{"a": convolution, "token": lambda: nn.Linear(8, 4), "out": lambda: nn.Linear(256, 4)},
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_equalization_leaves_what_it_cannot_follow(name: str) -> None:
    model, x = STRANGE[name], torch.randn(5, 1, 8, 8, generator=rng())
    assert "a" not in {pair.first for pair in pairs(trace(model))}
    torch.testing.assert_close(equalize(model, toys.SPEC).model(x), model(x), atol=1e-5, rtol=1e-4)


MOBILE_PAIRS = [
    ("stem.0", "block.0"),
    ("block.0", "block.3"),
    ("block.3", "block.6"),
    ("residual.0", "residual.3"),
    ("residual.3", "residual.6"),
    ("top.0", "head"),
]


@pytest.mark.parametrize("clip", [nn.ReLU6, lambda: nn.Hardtanh(0, 6), nn.ReLU])
def test_relu6_gives_way_between_layers_with_groups_or_without(
    clip: Callable[[], nn.Module],
) -> None:
    model = fold_batch_norm(toys.MobileNet(clip))
    relu_for_relu6(model)
    found = pairs(trace(model), grouped=True)
    assert [(pair.first, pair.second) for pair in found] == MOBILE_PAIRS
    assert all(pair.relu and pair.positions == 1 for pair in found)
    plain = [("stem.0", "block.0"), ("top.0", "head")]
    assert [(pair.first, pair.second) for pair in pairs(trace(model))] == plain


def test_relu6_stays_where_no_pair_needs_it() -> None:
    model = net(
        lambda m, x: m.out(pooled(m.between(m.b(m.before(m.a(x)) + x)))),
        **{"a": convolution, "before": nn.ReLU6, "b": inner, "between": nn.ReLU6},
        out=lambda: nn.Linear(8, 4),
    )
    relu_for_relu6(model)
    assert [type(model.before), type(model.between)] == [nn.ReLU6, nn.ReLU]
    shared = nn.ReLU6()
    many = nn.Sequential(inner(), nn.Sequential(shared, inner()), shared, inner())
    relu_for_relu6(many)
    assert len(pairs(trace(many))) == 2
    calls = net(lambda m, x: m.b(F.relu6(m.a(x))), a=convolution, b=inner)
    relu_for_relu6(calls)  # written into the network's own code: there it stays
    assert not pairs(trace(calls))


@pytest.mark.parametrize("groups", [(4, 1), (1, 4), (2, 8), (8, 4), (4, 2)])
def test_groups_are_equalized_channel_by_channel(groups: tuple[int, int]) -> None:
    def of(number: int) -> Callable[[], nn.Module]:
        return lambda: nn.Conv2d(8, 8, 3, groups=number)

    model = net(
        lambda m, x: m.out(pooled(F.relu(m.b(F.relu(m.a(m.first(x))))))),
        **{"first": convolution, "a": of(groups[0]), "b": of(groups[1])},
        out=lambda: nn.Linear(8, 4),
    )
    weight(model, "a").data.mul_(torch.logspace(-2, 2, 8).view(-1, 1, 1, 1))
    x = torch.randn(5, 1, 8, 8, generator=rng())
    equalized = equalize(model, toys.SPEC, iterations=100).model
    torch.testing.assert_close(equalized(x), model(x), atol=1e-4, rtol=1e-4)
    first, second = (weight(equalized, name) for name in ("a", "b"))
    # one group after the other: (outputs, channels of the group, ...) each
    parts = [part.abs().amax((0, 2, 3)) for part in second.chunk(groups[1])]
    ranges = first.flatten(1).abs().amax(1)
    torch.testing.assert_close(torch.cat(parts), ranges, rtol=2e-2, atol=1e-4)


def test_a_group_has_the_positions_of_its_channels_in_every_layer() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(self.a(x), (0, 0, 0, 0, 1, 0)) + self.b(x)
            return self.out(x.flatten(1))  # type: ignore[no-any-return]

    groups = channel_groups(ChannelGraph(Padded(), torch.randn(1, 1, 1, 2), padded=True))
    a, b, read = Side("a", inputs=False), Side("b", inputs=False), Side("out", inputs=True)
    images = {Side("a", inputs=True): [[0]], Side("b", inputs=True): [[0]]}
    assert [
        {side: positions.tolist() for side, positions in group.items()}
        for group in sorted(groups.values(), key=len)
        if images.keys().isdisjoint(group) and Side("out", inputs=False) not in group
    ] == [
        {b: [[0]], read: [[0, 1]]},
        {a: [[0], [1]], b: [[1], [2]], read: [[2, 3], [4, 5]]},
    ]


def test_layers_inside_torchs_attention_are_not_plain() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.ModuleList([nn.Linear(8, 3)]))
    assert list(plain_layers(model)) == ["0", "2.0"]
    assert list(plain_layers(nn.Linear(8, 3))) == [""]


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output - 1


def halved_first(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0] / 2 + 1,)


def shifted(layer: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = type(layer).forward(layer, x) + 1
    return output


def own_forward(layer: nn.Module) -> None:
    layer.forward = types.MethodType(shifted, layer)


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "after": lambda layer: layer.register_forward_hook(doubled),
    "before": lambda layer: layer.register_forward_pre_hook(halved_first),
    "own forward": own_forward,
}


def hooked(way: str, *names: str) -> Net:
    def run(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.n1(m.c1(x)))
        x = m.pool(F.relu(m.n2(m.c2(x))))
        logits: Tensor = m.fc(x.flatten(1))
        return logits

    model = net(
        run,
        c1=convolution,
        n1=lambda: nn.BatchNorm2d(8),
        c2=inner,
        n2=lambda: nn.BatchNorm2d(8),
        pool=lambda: nn.AdaptiveAvgPool2d(1),
        fc=lambda: nn.Linear(8, 4),
    )
    for name in names:
        HOOKS[way](model.get_submodule(name))
    return model


@pytest.mark.parametrize("way", HOOKS)
@pytest.mark.parametrize("name", ["c1", "n1", "c2", "n2", "pool", "fc"])
def test_what_a_hook_does_is_part_of_the_network(way: str, name: str) -> None:
    model = hooked(way, name)
    x = torch.randn(4, 1, 8, 8)
    wanted = model(x)
    torch.testing.assert_close(fold_batch_norm(model, toys.SPEC)(x), wanted)
    found = {(pair.first, pair.second) for pair in pairs(trace(fold_batch_norm(model)))}
    assert not any(name in pair for pair in found)
    assert name not in plain_layers(model)
    torch.testing.assert_close(equalize(model, toys.SPEC, absorb=False).model(x), wanted)


def test_a_layer_whose_weight_the_code_reads_is_not_folded() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.n1(m.c1(x)) + F.conv2d(x, m.c1.weight, padding=1)
        return x.mean((2, 3))

    model = net(run, c1=convolution, n1=lambda: nn.BatchNorm2d(8))
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(fold_batch_norm(model, toys.SPEC)(x), model(x))


def test_a_change_that_does_not_keep_the_function_is_refused() -> None:
    before = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    after = copy.deepcopy(before)
    check_same_function(before, after, toys.SPEC, "nothing")
    with torch.no_grad():
        after.get_submodule("1").get_parameter("weight").mul_(1.1)
    with pytest.raises(TeacherError, match="scaling changes the answers of Sequential by"):
        check_same_function(before, after, toys.SPEC, "scaling")
    broken = nn.Sequential(nn.Flatten(), nn.Linear(63, 4))
    with pytest.raises(TeacherError, match="Sequential does not run after cutting: mat1"):
        check_same_function(before, broken, toys.SPEC, "cutting")


class Negated(toys.NormAct):
    """Not BatchNorm and its parts in turn."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


@pytest.mark.parametrize(
    ("norm", "folded"), [(toys.NormAct, True), (nn.BatchNorm2d, True), (Negated, False)]
)
def test_a_norm_that_runs_its_activation_is_folded_and_the_activation_stays(
    norm: type[nn.BatchNorm2d], folded: bool
) -> None:
    with seeded(rng()):
        network = nn.Sequential(
            *(nn.Conv2d(1, 6, 3), norm(6), nn.ReLU(), nn.Conv2d(6, 4, 3)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        network(torch.randn(32, 1, 8, 8))
    made = fold_batch_norm(network.eval(), toys.SPEC)
    assert any(isinstance(part, nn.BatchNorm2d) for part in made.modules()) is not folded
    assert [(pair.first, pair.second) for pair in pairs(trace(made))] == [("0", "3")] * folded


def test_what_is_not_folded_into_a_layer_is_not_taken_for_a_plain_norm() -> None:
    network = nn.Sequential(
        *(toys.NormAct(1), nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ).eval()
    with pytest.raises(TeacherError, match=r"what 0 \(NormAct\) puts out cannot be known"):
        expected_inputs(equalize(network, toys.SPEC), toys.SPEC)
