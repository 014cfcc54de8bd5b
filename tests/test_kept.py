"""Networks in files: read back as they were, and no code with them."""

import builtins
import copyreg
import enum
import functools
import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import toys
from dreamstill.cli import main as cli
from dreamstill.errors import ExportError, RunError, TeacherError
from dreamstill.exporters.formats import export, load_exported
from dreamstill.loaders.factory import build
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.config import CompressJob, read_job
from dreamstill.pipelines.saved_networks import check_saveable, read_network, save_network

CALLED: list[object] = []


def called(*arguments: object) -> int:
    """What no file may call."""
    CALLED.append(arguments)
    return 1


@pytest.fixture(autouse=True)
def _nothing_called() -> None:
    CALLED.clear()


class Kind(enum.Enum):
    ONE = 1


class Odd(toys.SmallCnn):
    """Attributes of many kinds, as networks keep them."""

    class Inner:
        pass

    def __init__(self) -> None:
        super().__init__()
        self.norm_layer = functools.partial(nn.LayerNorm, eps=1e-6)  # as torchvision's ViT has it
        self.acts = [F.gelu, F.relu, F.logsigmoid, torch.tanh, torch.relu_, Tensor.relu, nn.GELU]
        self.partials = {"tanh": functools.partial(F.gelu, approximate="tanh")}
        self.kind, self.inner, self.size = Kind.ONE, self.Inner, torch.Size([1, 2])
        self.values = (torch.float32, torch.device("cpu"), {1, 2}, slice(1, 2), range(3), 1j, b"x")
        self.method, self.hook, self.init = self.twice, called, nn.init.xavier_uniform_
        self.scale = nn.Parameter(torch.ones(2))
        self.scale.tag = "a"  # type: ignore[attr-defined]

    def twice(self, x: Tensor) -> Tensor:
        return 2 * x


def test_attributes_come_back_as_they_were(tmp_path: Path) -> None:
    network = Odd()
    check_saveable([network])
    save_network(network, tmp_path / "n.pt")
    again = read_network(tmp_path / "n.pt", [network])
    assert isinstance(again, Odd)
    for name in ("acts", "kind", "inner", "size", "values", "hook", "init"):
        assert getattr(again, name) == getattr(network, name), name
    assert again.norm_layer(4).eps == 1e-6
    assert again.partials["tanh"].func is F.gelu
    assert again.method(torch.ones(1)) == 2
    assert again.scale.tag == "a"  # type: ignore[attr-defined]
    torch.testing.assert_close(dict(again.state_dict()), dict(network.state_dict()))
    assert not CALLED


class Calls:
    """Its pickle calls something."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.reduced


class Restored:
    """A class of the user's whose own method would take what a file says."""

    def __setstate__(self, state: object) -> None:
        called(state)


class Filled:
    """The same of items."""

    def __init__(self, values: Sequence[object] = (), pairs: Sequence[object] = ()) -> None:
        self.values, self.pairs = values, pairs

    def __reduce__(self) -> Any:
        return copyreg.__newobj__, (Filled,), None, iter(self.values), iter(self.pairs)  # type: ignore[attr-defined]

    def __setitem__(self, key: object, value: object) -> None:
        called(key, value)

    def append(self, value: object) -> None:
        called(value)

    extend = append


class Created:
    def __new__(cls, *arguments: object) -> "Created":
        called(*arguments)
        return super().__new__(cls)


class Hashed:
    def __hash__(self) -> int:
        return called(self)

    def __index__(self) -> int:
        return called(self)


class Open(toys.SmallCnn):
    """A network that refers to all of them, and to functions of its package."""

    def __init__(self) -> None:
        super().__init__()
        self.held = [Restored, Filled, Created, Hashed, called, Kind, functools.partial(called)]


def network_with(value: object) -> bytes:
    """What torch.save writes of `Open` with one attribute more."""
    network = Open()
    network.evil = value  # type: ignore[assignment]
    buffer = io.BytesIO()
    torch.save(network, buffer)
    return buffer.getvalue()


def with_pickle(change: Callable[[bytes], bytes]) -> bytes:
    """The file of `Open` whose pickle is changed."""
    before, after = io.BytesIO(network_with(None)), io.BytesIO()
    with zipfile.ZipFile(before) as old, zipfile.ZipFile(after, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return after.getvalue()


ME = b"test_kept"
BAD: dict[str, Callable[[], bytes]] = {
    "a function of the system": lambda: network_with(Calls(os.getpid)),
    "a function of the package": lambda: network_with(Calls(called, 1)),
    "a function of ours": lambda: network_with(Calls(build, "test_kept:called")),
    "eval": lambda: network_with(Calls(builtins.eval, "1")),
    "a class": lambda: network_with(Calls(Hashed)),
    "a network's class": lambda: network_with(Calls(toys.SmallCnn)),
    "a class of torch.nn": lambda: network_with(Calls(nn.Linear, 1, 1)),
    "a partial": lambda: network_with(Calls(functools.partial(called), 1)),
    "a partial's name": lambda: network_with(Calls(functools.partial, called, 1)),
    "torch.load": lambda: network_with(Calls(torch.load, "x")),
    "getattr of a module": lambda: with_pickle(
        lambda data: (
            data[:2] + b"c__builtin__\ngetattr\ncos\npath\nX\x04\0\0\0join\x86R0" + data[2:]
        )
    ),
    "a method by getattr": lambda: network_with(Calls(getattr, called, "__globals__")),
    "__setstate__": lambda: network_with(restored()),
    "__setitem__": lambda: network_with(Filled(pairs=[(1, 2)])),
    "append": lambda: network_with(Filled([1])),
    "extend": lambda: network_with(Filled([1, 2])),
    "__new__": lambda: network_with(Created.__new__(Created)),
    "__hash__ in a set": lambda: network_with(Calls(set, [Hashed()])),
    "__hash__ in a dictionary": lambda: network_with({Hashed(): 1}),
    "__index__": lambda: network_with(Calls(range, Hashed())),
    "an instruction of old": lambda: with_pickle(
        lambda data: data[:2] + b"(S'x'\ni" + ME + b"\ncalled\n0" + data[2:]
    ),
    "an instruction of now": lambda: with_pickle(
        lambda data: data[:2] + b"(c" + ME + b"\ncalled\nI1\no0" + data[2:]
    ),
    "attributes of a function": lambda: with_pickle(
        lambda data: data[:2] + b"c" + ME + b"\ncalled\n}U\x01xK\x01sb0" + data[2:]
    ),
    "the format of old": lambda: pickle.dumps(Calls(called, 1), 2),
    "not a network": lambda: saved(Path("x")),
    "a dictionary": lambda: saved({"a": torch.ones(1)}),
    "TorchScript": lambda: scripted(),
    "nothing": lambda: b"",
    "half of one": lambda: network_with(None)[:-2000],
}


def restored() -> Restored:
    instance = Restored()
    instance.x = 1  # type: ignore[attr-defined]
    return instance


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"archive/{name}", b"\x80\x02}.")
    return buffer.getvalue()


@pytest.mark.parametrize("name", BAD)
def test_a_file_of_a_network_calls_nothing(name: str, tmp_path: Path) -> None:
    data = BAD[name]()
    CALLED.clear()
    (tmp_path / "n.pt").write_bytes(data)
    with pytest.raises(RunError) as caught:
        read_network(tmp_path / "n.pt", [Open()])
    assert not CALLED, caught.value
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_file_refers_to_nothing_that_its_network_does_not(tmp_path: Path) -> None:
    save_network(Open(), tmp_path / "n.pt")
    with pytest.raises(RunError, match="neither ours nor of a named factory"):
        read_network(tmp_path / "n.pt", [toys.SmallCnn()])


def test_a_network_that_could_not_be_read_back_is_refused() -> None:
    network = toys.SmallCnn()
    network.restored = restored()  # type: ignore[assignment]
    with pytest.raises(TeacherError, match=r"cannot be kept .*calls Restored.__setstate__"):
        check_saveable([network])


# ---- .pt2


def changed_pt2(path: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> None:
    """Write a file again, each member changed, and more of them."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(members)).partition("/")[0]
    added = {f"{root}/{name}": data for name, data in more.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | added).items():
            archive.writestr(name, change(name, data))


def pickled(name: str, data: bytes) -> bytes:
    """The first weight is a pickle that calls."""
    if name.endswith("weight_0"):
        return saved(Calls(called, "weight"))
    if name.endswith("weights_config.json"):
        return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    return data


def constant(name: str, data: bytes) -> bytes:
    if name.endswith("constants_config.json"):
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
        return json.dumps({"config": {"x": payload | {"tensor_meta": None}}}).encode()
    return data


BAD_PT2: dict[str, tuple[Callable[[str, bytes], bytes], dict[str, bytes]]] = {
    "a pickled weight": (pickled, {}),
    "a pickled object": (
        constant,
        {"data/constants/opaque_obj_0": pickle.dumps(Calls(called, "constant"))},
    ),
    "pickled inputs": (
        lambda name, data: saved(Calls(called, "x")) if name.endswith("model.pt") else data,
        {},
    ),
    "weights of old": (lambda name, data: data, {"data/weights/model.pt": saved(Calls(called, 1))}),
    "a library": (lambda name, data: data, {"data/aotinductor/model/x.so": b"\x7fELF"}),
    "an expression": (
        lambda name, data: data.replace(
            b"Symbol('s77', positive=True, integer=True)", b"__import__('test_kept').called(1)"
        ),
        {},
    ),
    "a function of torch": (
        lambda name, data: data.replace(b"torch.ops.aten.relu.default", b"torch.hub.load"),
        {},
    ),
    "a library by name": (
        lambda name, data: data.replace(
            b"torch.ops.aten.relu.default", b"torch.ops.load_library.__call__"
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", BAD_PT2)
def test_a_pt2_that_may_hold_code_is_not_opened(name: str, tmp_path: Path) -> None:
    path = tmp_path / "n.pt2"
    export(toys.small_cnn().eval(), path, toys.SPEC)
    before = path.read_bytes()
    change, more = BAD_PT2[name]
    changed_pt2(path, change, **more)
    assert path.read_bytes() != before
    with pytest.raises(ExportError):
        load_exported(path)(torch.zeros(2, 1, 8, 8))
    assert not CALLED


# ---- the folder of a compression


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, Any]:
    weights = toys.write_teacher(tmp_path)
    stage = {"task": "int8", "formats": ["pt2"]}
    return {"teacher": {"weights": str(weights)}, "num_images": 64, "stage": [stage]}


def test_a_link_is_the_file_that_was_written(plain: dict[str, Any], tmp_path: Path) -> None:
    folder, job = tmp_path / "run", read_job(CompressJob, plain)
    run_compression(folder, job)
    (network,) = folder.glob("stages/*.pt")
    (file,) = folder.glob("stages/*.int8.pt2")
    for path in (network, file):
        kept = path.read_bytes()
        path.write_bytes(saved(Calls(called, 1)))
        with pytest.raises(RunError, match="is another file than was written"):
            run_compression(folder, job, resume=True)
        path.unlink()
        with pytest.raises(RunError, match="is gone"):
            run_compression(folder, job, resume=True)
        path.write_bytes(kept)
    assert not CALLED
    run_compression(folder, job, resume=True)


def test_a_link_whose_record_was_forged_runs_no_code(plain: dict[str, Any], tmp_path: Path) -> None:
    folder, job = tmp_path / "run", read_job(CompressJob, plain)
    run_compression(folder, job)
    (network,) = folder.glob("stages/*.pt")
    (file,) = folder.glob("stages/*.int8.pt2")
    (record,) = folder.glob("stages/*.json")
    real = tmp_path / "real.npz"
    np.savez(real, x=np.zeros((8, 1, 8, 8), np.uint8), y=np.arange(8) % 4)
    originals = {path: path.read_bytes() for path in (network, file, record)}
    for path, evil in ((network, saved(Calls(called, 1))), (file, b"")):
        for of, data in originals.items():
            of.write_bytes(data)
        if path == file:
            changed_pt2(file, pickled)
        else:
            path.write_bytes(evil)
        told = json.loads(record.read_text())
        told["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        record.write_text(json.dumps(told))
        with pytest.raises((RunError, ExportError)):
            run_compression(folder, job, resume=True, real=real)
        assert not CALLED


def test_a_link_is_of_the_images_in_its_folder(plain: dict[str, Any], tmp_path: Path) -> None:
    folder, job = tmp_path / "run", read_job(CompressJob, plain)
    run_compression(folder, job)
    np.savez(folder / "images.npz", x=np.zeros((64, 1, 8, 8), np.uint8))
    with pytest.raises(RunError, match="was made on other images"):
        run_compression(folder, job, resume=True)


@pytest.mark.parametrize("name", ["vit", "encoder"])
def test_transformers_pass_every_task(name: str, tmp_path: Path) -> None:
    weights, images = tmp_path / "w.safetensors", tmp_path / "x.npz"
    save_file(build(f"toys:{name}").state_dict(), weights)
    rng = np.random.default_rng(0)
    np.savez(images, x=rng.integers(0, 256, (64, 1, 8, 8), np.uint8))
    spec = {"shape": [1, 8, 8], "mean": [0.5], "std": [0.25]}
    tune = {"steps": 3, "batch_size": 16, "num_validation": 8}
    stages = [
        {"task": "distill", "student": f"toys:{name}", **tune},
        {"task": "prune", "keep": 0.8, "rounds": 1, "finetune": tune},
        {"task": "factorize", "finetune": tune},
        {"task": "quantize", "rounding": "qdrop", "rounding_steps": 3, "finetune": tune},
        {"task": "int8", "formats": ["onnx", "pt2"]},
        {"task": "pack", "rounds": 1, "finetune": tune},
    ]
    teacher = {"weights": str(weights), "factory": f"toys:{name}"} | spec
    plain = {"teacher": teacher, "images": str(images)}
    folder = tmp_path / "run"
    made = run_compression(folder, read_job(CompressJob, plain | {"stage": stages}))
    assert "not_exported" not in made
    files = sorted((folder / "stages").glob("*.pt"))
    network = build(f"toys:{name}")
    assert len(files) == len(stages)
    for path in files:  # each is read back, and answers as what was measured
        again = read_network(path, [network])
        wanted = torch.load(path, weights_only=False)
        x = toys.SPEC.encode(torch.from_numpy(np.load(images)["x"][:9]))
        assert torch.equal(again.eval()(x), wanted.eval()(x))


def test_a_transformer_is_refused_by_merging_in_words_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "w.safetensors"
    save_file(build("toys:vit").state_dict(), weights)
    card = {"factory": "toys:vit", "shape": [1, 8, 8], "mean": [0.5], "std": [0.25]}
    weights.with_suffix(".json").write_text(json.dumps(card))
    out = ["--num-images", "64", "--out", str(tmp_path / "run")]
    assert cli.main(["merge", "--teacher.weights", str(weights), *out]) == 2
    assert "nothing to merge" in capsys.readouterr().err
