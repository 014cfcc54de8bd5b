"""Teachers from ONNX and .pt2 files: their layers, their answers, and what is refused."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from benchmarks.onnx_operators import node_tests, outcome
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

import dreamstill as ds
from dreamstill.errors import ConfigError, TeacherError
from dreamstill.exporters.formats import export
from dreamstill.exporters.int8 import export_int8
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.loaded import Loaded
from dreamstill.loaders.onnx.operators import OPERATORS
from dreamstill.loaders.registry import loader_of
from dreamstill.loaders.teacher_file import open_from
from dreamstill.nn.graph_network import GraphNetwork
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.saved_networks import read_network, save_network
from dreamstill.quiet import quiet
from toys import SPEC, MobileNet, Sensor, ViT, small_cnn

COLOR = InputSpec((3, 16, 16), (0.5,) * 3, (0.25,) * 3)


def written(network: nn.Module, path: Path, shape: Sequence[int], **options: Any) -> Path:
    """Write a network with torch's older exporter, which is the faster one."""
    fixed = options.pop("fixed", False)
    options |= {"input_names": ["input"], "output_names": ["logits"], "dynamo": False}
    if not fixed:
        options["dynamic_axes"] = {"input": {0: "batch"}, "logits": {0: "batch"}}
    with quiet():
        inputs = torch.rand(1 if fixed else 2, *shape)
        torch.onnx.export(network.eval(), (inputs,), path, **options)
    return path


def opened(path: Path, **settings: Any) -> Loaded:
    file = TeacherFile(weights=str(path), **settings)
    given = {"shape": settings["shape"]} if "shape" in settings else {}
    return loader_of(file.weights).load(file, given)


def difference(a: nn.Module, b: nn.Module, shape: Sequence[int]) -> float:
    inputs = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        largest: float = (a(inputs) - b(inputs)).abs().max().item()
    return largest


KEPT = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}


class Squeezed(nn.Module):
    """MobileNetV3 in small: a depthwise convolution, squeeze and excitation, hard-swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.down, self.up, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(x)))
        scale = F.adaptive_avg_pool2d(self.depthwise(x), 1)
        x = x * F.hardsigmoid(self.up(F.relu(self.down(scale))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Mixed(nn.Module):
    """Shuffled and joined channels, a pixel shuffle, average pooling and a global maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.act, self.head = nn.PReLU(8), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        a, b = x.chunk(2, 1)
        x = torch.cat([F.avg_pool2d(self.second(a), 2, ceil_mode=True), F.max_pool2d(b, 2)], 1)
        x = torch.cat([F.pixel_shuffle(x[:, :8], 2), F.interpolate(x[:, 4:], scale_factor=2)], 1)
        logits: Tensor = self.head(F.adaptive_max_pool2d(x, 1).flatten(1))
        return logits


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (small_cnn, (1, 8, 8)),
    "mobilenet": (MobileNet, (3, 16, 16)),
    "squeezed": (Squeezed, (3, 16, 16)),
    "mixed": (Mixed, (3, 16, 16)),
    "vit": (ViT, (1, 8, 8)),
    "signal": (Sensor, (1, 1, 64)),
}
WAYS: dict[str, dict[str, Any]] = {
    "17": {"opset_version": 17},
    "14_fixed": {"opset_version": 14, "fixed": True},
    "17_kept": {"opset_version": 17, **KEPT},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_of_torchs_exporter_gives_the_same_answers(
    name: str, way: str, tmp_path: Path
) -> None:
    build, shape = NETWORKS[name]
    with seeded(torch.Generator().manual_seed(0)):
        network = build()
    loaded = opened(written(network, tmp_path / "net.onnx", shape, **WAYS[way]))
    assert difference(loaded.module, network, shape) < 1e-5
    assert loaded.card["shape"] == [*shape]
    graph = fx.symbolic_trace(loaded.module)
    assert difference(graph, network, shape) < 1e-5
    inputs = torch.rand(2, *shape, requires_grad=True)
    loaded.module(inputs).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0


def test_layers_are_those_of_torch_under_their_own_names(tmp_path: Path) -> None:
    network = small_cnn()
    path = written(network, tmp_path / "net.onnx", (1, 8, 8), opset_version=17, **KEPT)
    module, state = opened(path).module, network.state_dict()
    del state["norm.num_batches_tracked"]
    found = module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert isinstance(module.get_submodule("norm"), nn.BatchNorm2d)
    assert module.get_submodule("norm").eps == 1e-5
    teacher = ds.Teacher(module, SPEC)
    assert teacher.capabilities.batch_norm == ("norm",)
    assert teacher.capabilities.last_linear == "head"


def test_batch_norm_that_an_export_has_folded_is_said(tmp_path: Path) -> None:
    shape = (1, 8, 8)
    folded = opened(written(small_cnn(), tmp_path / "folded.onnx", shape))
    kept = opened(written(small_cnn(), tmp_path / "kept.onnx", shape, **KEPT))
    assert "folded.onnx has no BatchNorm" in folded.notes[0]
    assert not kept.notes
    assert set(dict(folded.module.named_modules())) == {"", "conv", "head"}


def test_reshapes_are_said_without_widths_so_that_channels_can_be_removed(tmp_path: Path) -> None:
    module = opened(written(Mixed(), tmp_path / "net.onnx", (3, 16, 16))).module
    steps = {step[0]: step[3] for step in module.steps}  # type: ignore[union-attr]
    assert steps["unflatten"] == {"dim": 1, "sizes": (2, -1)}
    assert steps["flatten"]["start_dim"] == 1
    assert "reshape" not in steps


@pytest.mark.parametrize("options", [{}, KEPT], ids=["folded", "kept"])
def test_group_norm_of_torchs_older_exporter_is_a_layer(
    options: dict[str, Any], tmp_path: Path
) -> None:
    network = Squeezed()
    for value in network.norm.parameters():
        nn.init.uniform_(value, 0.5, 1.5)
    loaded = opened(written(network, tmp_path / "net.onnx", (3, 16, 16), **options))
    norm = loaded.module.get_submodule("norm")
    assert isinstance(norm, nn.GroupNorm)
    assert torch.equal(norm.weight, network.norm.weight)
    assert difference(loaded.module, network, (3, 16, 16)) < 1e-5


def test_our_own_export_is_a_teacher_with_its_input(tmp_path: Path) -> None:
    network = small_cnn().eval()
    export(network, tmp_path / "net.onnx", SPEC)
    teacher = ds.load_teacher(tmp_path / "net.onnx")
    assert teacher.input_spec == SPEC
    images = SPEC.noise(4)
    with torch.no_grad():
        assert torch.allclose(teacher(SPEC.encode(images)), network(SPEC.encode(images)), atol=1e-5)


@pytest.mark.parametrize("batch", [None, 2])
def test_a_pt2_file_keeps_its_batch_norm(batch: int | None, tmp_path: Path) -> None:
    network, inputs = small_cnn().eval(), torch.rand(2, 1, 8, 8)
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    with quiet():
        program = torch.export.export(network, (inputs,), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "net.pt2")
    loaded = opened(tmp_path / "net.pt2")
    assert difference(loaded.module, network, (1, 8, 8)) < 1e-5
    assert loaded.card["shape"] == [1, 8, 8]
    assert loaded.module.state_dict().keys() == network.state_dict().keys()


def test_a_layer_without_a_bias_gets_none_from_a_pt2_file(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    with quiet():
        program = torch.export.export(network, (torch.rand(2, 1, 8, 8),))
        torch.export.save(program, tmp_path / "net.pt2")
    assert opened(tmp_path / "net.pt2").module.state_dict().keys() == network.state_dict().keys()


def test_a_pt2_file_that_may_hold_code_needs_consent(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(
        TeacherError, match=r"does not open as a program of torch\.export.*zip file$"
    ):
        opened(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/more.pkl", b"")
    with pytest.raises(TeacherError, match=r"holds net/more\.pkl.*consent to run its code"):
        opened(path)


def test_a_pt2_file_of_int8_is_refused_as_such(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="no torchao: pip install 'dreamstill[quantize]'")
    spec = InputSpec((1, 8, 8), (0.5,), (0.25,))
    with quiet():
        export_int8(small_cnn().eval(), spec, spec.noise(64), tmp_path / "net.pt2")
    with pytest.raises(TeacherError, match=r"net\.pt2 is quantized already.*before it was"):
        opened(tmp_path / "net.pt2")


def test_a_network_from_a_file_is_pruned_saved_and_exported(tmp_path: Path) -> None:
    path = written(small_cnn(), tmp_path / "net.onnx", (1, 8, 8), **KEPT)
    teacher = ds.load_teacher(path, input_spec=SPEC)
    config = ds.PruneConfig(keep=0.5, finetune=ds.FinetuneConfig(steps=0))
    pruned = ds.prune(teacher, SPEC.noise(16), config).model
    other = ds.prune(ds.Teacher(small_cnn(), SPEC), SPEC.noise(16), config).model
    assert isinstance(pruned, GraphNetwork)
    assert pruned.get_submodule("conv").weight.shape == other.get_submodule("conv").weight.shape
    assert difference(pruned, other, (1, 8, 8)) < 1e-4
    save_network(pruned, tmp_path / "pruned.pt")
    again = read_network(tmp_path / "pruned.pt", [])
    assert difference(again, pruned, (1, 8, 8)) == 0
    export(pruned, tmp_path / "pruned.onnx", SPEC)
    assert difference(opened(tmp_path / "pruned.onnx").module, pruned, (1, 8, 8)) < 1e-5


def test_a_student_of_a_factory_inherits_from_a_file(tmp_path: Path) -> None:
    path = written(small_cnn(), tmp_path / "net.onnx", (1, 8, 8), **KEPT)
    teacher = ds.load_teacher(path, input_spec=SPEC)
    config = ds.DistillConfig(steps=1, batch_size=8, inherit=True)
    result = ds.distill(teacher, "toys:student", SPEC.noise(16), config)
    assert "inherits its most important channels" in result.details["plan"][1]


def block(width: int, *, norm: bool) -> list[nn.Module]:
    """Two convolutions of a width, with BatchNorm or without, and a linear layer."""
    norms = [[nn.BatchNorm2d(width)] if norm else [] for _ in range(2)]
    first, second = nn.Conv2d(1, width, 3), nn.Conv2d(width, width, 3)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)]
    return [first, *norms[0], nn.ReLU(), second, *norms[1], nn.ReLU(), *head]


def test_a_student_without_batch_norm_inherits_from_a_file_that_has_it_folded(
    tmp_path: Path,
) -> None:
    path = written(nn.Sequential(*block(8, norm=True)), tmp_path / "net.onnx", (1, 8, 8))
    teacher = ds.load_teacher(path, input_spec=SPEC)
    student = nn.Sequential(*block(8, norm=False))
    assert teacher.module.state_dict().keys() != student.state_dict().keys()
    config = ds.DistillConfig(steps=0, inherit=True, reconstruct=0)
    result = ds.distill(teacher, student, SPEC.noise(16), config)
    assert difference(result.model, teacher.module, (1, 8, 8)) < 1e-5


def model_of(
    nodes: list[onnx.NodeProto],
    *,
    weights: dict[str, Any] | None = None,
    shape: Sequence[Any] = ("N", 3, 8, 8),
    kind: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
    more_inputs: Sequence[str] = (),
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a model from x to y."""
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    inputs += [helper.make_tensor_value_info(name, kind, shape) for name in more_inputs]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "net", inputs, infos, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(model: onnx.ModelProto, tmp_path: Path) -> Path:
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


RNG = np.random.default_rng(0)
WEIGHT, BIAS = (RNG.normal(size=size).astype(np.float32) for size in ((4, 3, 3, 3), (4,)))
CONV = helper.make_node("Conv", ["x", "w", "b"], ["z"], auto_pad="SAME_UPPER", strides=[2, 2])
MEAN = helper.make_node("GlobalAveragePool", ["z"], ["p"])
FLAT = helper.make_node("Flatten", ["p"], ["y"])
WEIGHTS = {"w": WEIGHT, "b": BIAS}


def test_uneven_padding_is_part_of_the_convolution(tmp_path: Path) -> None:
    loaded = opened(saved(model_of([CONV, MEAN, FLAT], weights=WEIGHTS), tmp_path))
    inputs = torch.rand(2, 3, 8, 8)
    padded = F.pad(inputs, (0, 1, 0, 1))
    wanted = F.conv2d(padded, torch.tensor(WEIGHT), torch.tensor(BIAS), 2).mean((2, 3))
    assert torch.allclose(loaded.module(inputs), wanted, atol=1e-5)


def test_images_with_channels_last_are_turned(tmp_path: Path) -> None:
    turn = helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])
    conv = helper.make_node("Conv", ["t", "w", "b"], ["z"])
    model = model_of([turn, conv, MEAN, FLAT], weights=WEIGHTS, shape=("N", 8, 8, 3))
    loaded = opened(saved(model, tmp_path))
    inputs = torch.rand(2, 3, 8, 8)
    wanted = F.conv2d(inputs, torch.tensor(WEIGHT), torch.tensor(BIAS)).mean((2, 3))
    assert torch.allclose(loaded.module(inputs), wanted, atol=1e-5)
    assert loaded.card["shape"] == [3, 8, 8]
    assert "(N, H, W, C)" in loaded.notes[0]


def test_signals_have_one_row(tmp_path: Path) -> None:
    conv = helper.make_node("Conv", ["x", "w", "b"], ["z"])
    weights = {"w": WEIGHT[:, :, 0], "b": BIAS}
    model = model_of([conv, MEAN, FLAT], weights=weights, shape=("N", 3, 8))
    loaded = opened(saved(model, tmp_path))
    inputs = torch.rand(2, 3, 1, 8)
    wanted = F.conv1d(inputs[:, :, 0], torch.tensor(WEIGHT[:, :, 0]), torch.tensor(BIAS)).mean(2)
    assert torch.allclose(loaded.module(inputs), wanted, atol=1e-5)
    assert loaded.card["shape"] == [3, 1, 8]


def test_a_final_softmax_is_left_out(tmp_path: Path) -> None:
    flat = helper.make_node("Flatten", ["p"], ["logits"])
    last = helper.make_node("Softmax", ["logits"], ["y"])
    with_softmax = opened(saved(model_of([CONV, MEAN, flat, last], weights=WEIGHTS), tmp_path))
    without = opened(saved(model_of([CONV, MEAN, FLAT], weights=WEIGHTS), tmp_path))
    assert difference(with_softmax.module, without.module, (3, 8, 8)) == 0
    assert "ends with softmax" in with_softmax.notes[0]


def test_weights_of_other_floats_become_float32(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["h"], to=TensorProto.DOUBLE)
    conv = helper.make_node("Conv", ["h", "w", "b"], ["z"])
    back = helper.make_node("Cast", ["p"], ["q"], to=TensorProto.FLOAT)
    flat = helper.make_node("Flatten", ["q"], ["y"])
    weights = {name: value.astype(np.float64) for name, value in WEIGHTS.items()}
    loaded = opened(saved(model_of([cast, conv, MEAN, back, flat], weights=weights), tmp_path))
    assert {value.dtype for value in loaded.module.state_dict().values()} == {torch.float32}


def test_batch_norm_of_old_opsets_stands_beside_inputs_that_are_left_out(tmp_path: Path) -> None:
    norm = helper.make_node("BatchNormalization", ["z", "s", "t", "m", "v"], ["n"])
    clip = helper.make_node("Clip", ["n", "", "six"], ["c"])
    mean = helper.make_node("GlobalAveragePool", ["c"], ["p"])
    values = {
        name: np.full(4, value, np.float32)
        for name, value in zip("stmv", (2, 1, 3, 4), strict=True)
    }
    weights = {**WEIGHTS, **values, "six": np.float32(0.5)}
    model = model_of([CONV, norm, clip, mean, FLAT], weights=weights, opset=13)
    loaded = opened(saved(model, tmp_path))
    inputs = torch.rand(2, 3, 8, 8)
    z = F.conv2d(F.pad(inputs, (0, 1, 0, 1)), torch.tensor(WEIGHT), torch.tensor(BIAS), 2)
    wanted = (2 * (z - 3) / (4 + 1e-5) ** 0.5 + 1).clamp(max=0.5).mean((2, 3))
    assert torch.allclose(loaded.module(inputs), wanted, atol=1e-5)


def test_mean_and_std_are_the_users_whatever_another_program_wrote(tmp_path: Path) -> None:
    model = model_of([CONV, MEAN, FLAT], weights=WEIGHTS)
    for key, value in (("mean", "about half"), ("std", '{"r": 1}'), ("shape", "?")):
        model.metadata_props.add(key=key, value=value)
    path = saved(model, tmp_path)
    with pytest.raises(TeacherError, match="give mean and std, or range"):
        open_from(TeacherFile(weights=str(path)))
    teacher = open_from(TeacherFile(weights=str(path), mean=(0.5,) * 3, std=(0.25,) * 3))
    assert teacher.input_spec == InputSpec((3, 8, 8), (0.5,) * 3, (0.25,) * 3)


def test_a_size_that_the_file_leaves_open_is_asked_for(tmp_path: Path) -> None:
    model = model_of([CONV, MEAN, FLAT], weights=WEIGHTS, shape=("N", 3, "H", "W"))
    with pytest.raises(TeacherError, match=r"open \(\?x3x\?x\?\): give shape as C,H,W"):
        opened(saved(model, tmp_path))
    assert opened(saved(model, tmp_path), shape=(3, 8, 8)).card["shape"] == [3, 8, 8]
    with pytest.raises(TeacherError, match=r"takes \?x3x\?x\? in the order NCHW; got shape \(1, 8"):
        opened(saved(model, tmp_path), shape=(1, 8, 8))


def node(op: str, inputs: Sequence[str] = ("x",), **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, [*inputs], ["y"], **attributes)


BRANCH = helper.make_graph(
    [helper.make_node("Identity", ["x"], ["a"])],
    "branch",
    [],
    [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)],
)
IF = node("If", ["c"], then_branch=BRANCH, else_branch=BRANCH)
SCALE = {"s": np.float32(0.1), "n": np.uint8(0)}
REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "unknown": (model_of([node("Det")]), r"the operator Det \(node 'y'\) is not supported: export"),
    "domain": (
        model_of([node("FusedConv", domain="com.microsoft")]),
        "the operator com.microsoft.FusedConv",
    ),
    "quantized": (
        model_of([node("QuantizeLinear", ["x", "s", "n"])], weights=SCALE),
        r"quantized already \(QuantizeLinear\)",
    ),
    "control": (model_of([IF], weights={"c": np.bool_(1)}), r"has control flow \(If\)"),
    "inputs": (model_of([node("Add", ["x", "z"])], more_inputs=["z"]), r"2 inputs \(x, z\)"),
    "outputs": (
        model_of([helper.make_node("Split", ["x"], ["y", "z"], axis=2)], outputs=["y", "z"]),
        r"2 outputs \(y, z\), and a teacher has one",
    ),
    "integers": (model_of([node("Identity")], kind=TensorProto.UINT8), "takes uint8 values"),
    "vectors": (model_of([node("Identity")], shape=("N", 9)), r"takes \?x9, and a teacher takes"),
    "volumes": (model_of([node("Identity")], shape=("N", 1, 8, 8, 8)), r"takes \?x1x8x8x8"),
    "constant": (model_of([node("Shape")]), "'y' does not depend on the input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_opened_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    model, message = REFUSED[name]
    with pytest.raises(TeacherError, match=message) as caught:
        opened(saved(model, tmp_path))
    assert len(str(caught.value)) < 400


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = saved(model_of([CONV, MEAN, FLAT], weights=WEIGHTS), tmp_path)
    whole = path.read_bytes()
    for data in (b"", whole[:100], whole[:-9], b"not ONNX at all"):
        path.write_bytes(data)
        with pytest.raises(TeacherError, match=r"net\.onnx"):
            opened(path)
    with pytest.raises(TeacherError, match="no network at"):
        opened(tmp_path / "absent.onnx")
    with pytest.raises(ConfigError, match="holds its network: leave factory"):
        opened(path, factory="toys:student")


def test_weights_in_a_file_that_is_missing_are_asked_for(tmp_path: Path) -> None:
    model = model_of([CONV, MEAN, FLAT], weights=WEIGHTS)
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert opened(path).card["shape"] == [3, 8, 8]
    (tmp_path / "net.data").unlink()
    with pytest.raises(TeacherError, match=r"copy the \.data file too"):
        opened(path)


def test_onnxs_own_node_tests_of_layers_and_shapes() -> None:
    few = (
        "Conv",
        "Gemm",
        "BatchNorm",
        "AveragePool",
        "Reshape",
        "Slice",
        "Pad",
        "Resize",
        "Softmax",
    )
    assert len(OPERATORS) >= 100
    tests = [test for test in node_tests() if test.model.graph.node[0].op_type in few]
    said = {test.name: outcome(test) for test in tests}
    assert not {name: why for name, why in said.items() if why.startswith("failed")}
    assert sum(why == "passed" for why in said.values()) > 60
