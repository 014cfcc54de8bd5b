"""Damaged files, numbers without end, and what a file of the user's must not do."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import dreamstill
import toys
from dreamstill.cli import main as cli
from dreamstill.compression.config import FactorizeConfig, Importance, PruneConfig
from dreamstill.compression.deep_compression.file_format import MAGIC, load_packed
from dreamstill.compression.factorization.factorize import factorize
from dreamstill.config import Precision, read_plain
from dreamstill.data.images import load_images, load_unlabelled
from dreamstill.distillation.config import DistillConfig, LossName, Optimizer
from dreamstill.errors import (
    ConfigError,
    DataError,
    DreamstillError,
    ExportError,
    RunError,
    TeacherError,
    one_line,
    quoted,
)
from dreamstill.exporters import formats as export_module
from dreamstill.exporters.formats import export, load_exported
from dreamstill.files.reading import check_file, read_json, read_toml, reading
from dreamstill.loaders.card import read_card
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.state_dict import load_module, load_weights
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.config import DistillJob
from dreamstill.synthesis.activation_statistics import FORMAT, load_metadata, record_metadata
from dreamstill.synthesis.config import DeepInversionConfig, NoiseConfig, Start
from dreamstill.teacher import Teacher

RAISED = [
    ValueError("a"),
    KeyError("a"),
    IndexError("a"),
    AttributeError("a"),
    TypeError("a"),
    RecursionError("a"),
    MemoryError(),
    OverflowError("a"),
    NotImplementedError("That compression method is not supported"),
    RuntimeError("File 'x.npy' is encrypted"),
    SyntaxError("not a TIFF file"),
    EOFError(),
    AssertionError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    Image.DecompressionBombError("a"),
    OSError("cannot identify image file"),
    OSError(5, "Input/output error"),
]


@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
def test_whatever_reading_raises_is_one_line_of_ours(raised: Exception, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"")
    with pytest.raises(DataError) as caught, reading(path, DataError, "is not whole"):
        raise raised
    assert "file.bin" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_ours_pass_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TeacherError, match="mine"), reading(tmp_path / "file", DataError):
        raise TeacherError("mine")


def test_every_message_is_one_line_below_400_characters() -> None:
    message = str(TeacherError("no weights at " + 5000 * "a" + "\n\x00; give others"))
    assert len(message) < 390
    assert message.startswith("no weights at aaa")
    assert message.endswith(r"\x00; give others")
    assert "\n" not in message
    assert one_line("a\r\n  b") == "a b"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["FIFO", "folder"])
def test_what_is_no_regular_file_is_never_opened(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(path := tmp_path / "odd.safetensors")
    for read in (load_weights, read_card, load_packed, load_exported, read_plain, read_toml):
        with pytest.raises(DreamstillError, match=r"odd\.safetensors: it is a .*, not a regular"):
            read(path)
    for name in ("a\0b", 300 * "a", tmp_path / "absent"):
        with pytest.raises(DataError, match="cannot read"):
            check_file(name, DataError)


def test_a_fifo_among_pictures_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: it is a FIFO, not a regular file"):
        load_unlabelled(tmp_path, toys.SPEC)


def odd_archive(path: Path, *, method: int = 8, flags: int = 0) -> None:
    """An .npz whose entries claim a compression or, with flags 1, a password."""
    np.savez_compressed(path, x=np.zeros((4, 1, 8, 8), np.uint8), y=np.arange(4))
    data = bytearray(path.read_bytes())
    for sign, shift in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := data.find(sign, at + 1)) >= 0:
            data[at + shift] = flags
            data[at + shift + 2] = method
    path.write_bytes(data)


@pytest.mark.parametrize(
    "change", [{"method": 9}, {"flags": 1}, {"method": 14}, {"method": 12}, {"method": 77}]
)
def test_archives_that_python_cannot_unpack_are_named(
    change: dict[str, int], tmp_path: Path
) -> None:
    odd_archive(tmp_path / "odd.npz", **change)
    with pytest.raises(DataError, match=r"odd\.npz is not an \.npz of plain arrays"):
        load_images(tmp_path / "odd.npz", toys.SPEC, 4)


def test_an_entry_that_is_no_array_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr("x.npy", b"hello")
        archive.writestr("y.npy", b"hello")
    with pytest.raises(DataError, match="must be"):
        load_images(tmp_path / "odd.npz", toys.SPEC, 4)


@pytest.mark.filterwarnings("ignore:Metadata Warning")  # of writing what is odd
@pytest.mark.parametrize(
    ("at", "byte", "raised"),
    [(13, 5, "attribute 'encode'"), (11, 7, "not an integer"), (37, 2, "bad operand")],
)
def test_odd_exif_is_named(at: int, byte: int, raised: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", (72, 1)
    exif[0x8769] = {0x9003: "2020:01:01", 0x829A: 1.5}
    Image.new("L", (8, 8)).save(path := tmp_path / "a.jpg", exif=exif)
    data = bytearray(path.read_bytes())
    data[data.find(b"Exif\0\0") + 6 + at] = byte
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.jpg is not a whole picture: .*{raised}"):
        load_unlabelled(tmp_path, toys.SPEC)


def test_pictures_that_unpack_to_too_much_are_named(tmp_path: Path) -> None:
    for size in ((20_000, 20_000), (10_000, 10_000)):
        folder = tmp_path / str(size[0])
        folder.mkdir()
        Image.new("1", size).save(folder / "bomb.png")
        with pytest.raises(DataError, match=r"bomb\.png is not a whole picture: Image size"):
            load_unlabelled(folder, toys.SPEC)


def test_a_picture_is_what_its_name_says(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")  # Pillow would run Ghostscript
    with pytest.raises(DataError, match=r"a\.png is not a whole picture"):
        load_unlabelled(tmp_path, toys.SPEC)


@pytest.mark.parametrize("kind", ["no kind", "another shape", "an unknown layer", "no mean"])
def test_metadata_that_is_not_whole_is_named(kind: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    teacher, path = toys.quadrant_teacher(), tmp_path / "m.safetensors"
    images = torch.randint(0, 256, (400, 1, 8, 8), dtype=torch.uint8)
    record_metadata(teacher, images, path)
    with safe_open(path, "pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert header["format"] == FORMAT
    name = next(name for name in tensors if name.endswith("/mean"))
    if kind == "no kind":
        del header["kind"]
    elif kind == "another shape":
        tensors[name] = tensors[name][:, 1:].contiguous()
    elif kind == "no mean":
        del tensors[name]
    else:
        tensors = {f"x{key}": value for key, value in tensors.items()}
    save_file(tensors, path, metadata=header)
    with pytest.raises(TeacherError, match=r"m\.safetensors is not a file of metadata: "):
        load_metadata(path, teacher)


def test_a_packed_file_cannot_ask_for_any_number_of_weights(tmp_path: Path) -> None:
    import struct
    import zlib

    path = tmp_path / "n.packed"
    plain = [{"name": "a", "shape": [2**40], "dtype": "float32"}]
    shared = [{"name": "a", "shape": [4], "entries": 1, "num": 10**12, "codes": [[0, 0]]}]
    for header in ({"card": {}, "shared": [], "plain": plain}, {"shared": shared, "plain": []}):
        head = zlib.compress(json.dumps({"card": {}} | header).encode())
        path.write_bytes(MAGIC + struct.pack("<II", len(head), 0) + head)
        with pytest.raises(ExportError, match=r"n\.packed is not a whole packed network"):
            load_packed(path)


@pytest.mark.parametrize("deep", ["lists", "tables", "a few"])
def test_files_that_are_nested_too_deep_are_named(deep: str, tmp_path: Path) -> None:
    text = {"lists": 100_000 * "[", "tables": 100_000 * '{"a":', "a few": 99 * "[" + 99 * "]"}[deep]
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "a.toml").write_text(f"a = {text}")
    with pytest.raises(RunError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json", RunError)
    with pytest.raises(ConfigError, match=r"a\.toml is not valid TOML"):
        read_toml(tmp_path / "a.toml")
    for name in ("a.json", "a.toml"):
        with pytest.raises(TeacherError, match="is not valid"):
            read_card(tmp_path / name)


@pytest.mark.parametrize("value", [10**30, -(10**30), 10**5000, 2**63], ids=quoted)
def test_counts_have_an_upper_end(value: int) -> None:
    for name in (
        "steps",
        "batch_size",
        "buffer_size",
        "num_validation",
        "validate_every",
        "prefill",
    ):
        given: dict[str, Any] = {name: value}
        with pytest.raises(ConfigError, match=name):
            DistillConfig(**given)
    with pytest.raises(ConfigError, match="num_classes"):
        TeacherFile(weights="x", num_classes=value)
    with pytest.raises(ConfigError, match="at most 1,000,000,000; got 1000000001"):
        DistillConfig(steps=10**9 + 1)


@pytest.mark.parametrize("value", [1e308, nan, -inf, inf, 10**400], ids=quoted)
def test_floats_have_an_upper_end(value: float) -> None:
    for name in ("lr", "temperature", "weight_decay", "clip_gradient"):
        given: dict[str, Any] = {name: value}
        with pytest.raises(ConfigError, match=name):
            DistillConfig(**given)
    with pytest.raises(ConfigError, match="checkpoint_every"):
        DistillJob(
            teacher=TeacherFile(weights="x"),
            student="a:b",
            method="noise",
            synthesis=NoiseConfig(),
            checkpoint_every=value,
        )


def test_settings_take_strings_lists_and_tables_from_python() -> None:
    settings = DistillConfig(losses=["mse", "l1"], optimizer="sgd", lr=1, augment={"shift": 1})  # type: ignore[arg-type]
    assert settings.losses == (LossName.MSE, LossName.L1)
    assert settings.optimizer is Optimizer.SGD
    assert isinstance(settings.lr, float)
    assert settings.augment.shift == 1.0
    assert PruneConfig(importance="taylor").importance is Importance.TAYLOR  # type: ignore[arg-type]
    assert DeepInversionConfig(start="structured").start is Start.STRUCTURED  # type: ignore[arg-type]
    assert TeacherFile(weights=Path("a/b.pt")).weights == "a/b.pt"  # type: ignore[arg-type]
    assert DistillConfig(steps=np.int64(3)).steps == 3  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="importance must be one of"):
        PruneConfig(importance="loud")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="steps must be an integer; got '3'"):
        DistillConfig(steps="3")  # type: ignore[arg-type]


def test_paths_are_strings_and_enums_are_strings_in_python(tmp_path: Path) -> None:
    path = str(tmp_path / "t.safetensors")
    save_file(toys.small_cnn().state_dict(), path)
    assert load_weights(path).keys() == toys.small_cnn().state_dict().keys()
    teacher = Teacher(load_module("toys:small_cnn", path), toys.SPEC, precision="bfloat16")
    assert teacher.precision is Precision.BFLOAT16
    with pytest.raises(ConfigError, match="precision must be one of"):
        Teacher(toys.small_cnn(), toys.SPEC, precision="half")
    record = export(teacher.module, str(tmp_path / "n.onnx"), toys.SPEC)
    assert load_exported(record.path)(torch.zeros(1, 1, 8, 8)).shape == (1, 4)
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 1, 8, 8), np.uint8), y=np.arange(4))
    assert len(load_images(str(tmp_path / "d.npz"), toys.SPEC, 4)[0]) == 4
    with pytest.raises(TeacherError, match="no weights at x"):
        load_weights("x")


def test_the_global_generators_are_left_as_they_were(tmp_path: Path) -> None:
    import random

    def states() -> tuple[object, ...]:
        of_numpy = np.random.get_state()
        return torch.get_rng_state().tolist(), str(of_numpy), random.getstate()

    path, before = tmp_path / "t.safetensors", states()
    save_file(toys.small_cnn().state_dict(), path)
    model = load_module("test_reading:drawing_cnn", path)
    assert states() == before
    factorize(model, toys.SPEC, FactorizeConfig(energy=0.5, first_layer=True))
    assert states() == before
    for kind in ("pt2", "onnx"):
        export(model, tmp_path / f"n.{kind}", toys.SPEC)
        assert states() == before
    open_from(
        TeacherFile(weights=str(path), factory="toys:small_cnn", shape=(1, 8, 8), range=(0, 1))
    )
    assert states() == before


def drawing_cnn() -> nn.Module:
    """A network whose factory draws from every generator."""
    import random

    np.random.rand()
    random.random()
    return toys.SmallCnn()


def test_a_network_on_a_gpu_is_exported_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toys.small_cnn()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        monkeypatch.setattr(export_module, "device_of", lambda module: torch.device("cuda"))
    model = model.to(device)
    assert export_module.on_cpu(model) is not model
    assert export(model, tmp_path / "n.onnx", toys.SPEC).max_abs_difference < 1e-3
    assert next(model.parameters()).device.type == device


@pytest.mark.parametrize("kind", ["onnx", "pt2", "pte"])
def test_exported_files_that_are_damaged_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"n.{kind}"
    for data in (b"", b"hello", np.random.default_rng(0).bytes(4000)):
        path.write_bytes(data)
        with pytest.raises(ExportError, match=rf"n\.{kind} does not open in its runtime"):
            load_exported(path)


def test_a_damaged_pte_does_not_end_the_process(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    path = tmp_path / "n.pte"
    export(toys.small_cnn(), path, toys.SPEC)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(whole)
        at = int(rng.integers(100, len(whole) - 100))
        damaged[at : at + 60] = rng.bytes(60)
        path.write_bytes(damaged)
        try:
            load_exported(path)
        except ExportError as error:
            assert "n.pte" in str(error)  # noqa: PT017


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A teacher's file with a card beside it."""
    return toys.write_teacher(tmp_path)


def run_command(
    arguments: list[str], *, folder: Path, command: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the installed command, as its script does, in a folder."""
    code = "import sys; from dreamstill.cli.main import main; sys.exit(main())"
    source, tests = Path(dreamstill.__file__).parents[1], Path(__file__).parent
    path = os.pathsep.join([environment.pop("GUARD", ""), str(source), str(tests)]).strip(":")
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_settings_file_may_hold_every_option_and_flags_win(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = teacher.parent / "c.toml", teacher.parent / "out"
    config.write_text(f'num_images = 60\nout = "{out}"\nseed = 3\n[teacher]\nweights = "none"\n')
    command = ["synthesize", "--config", str(config), "--teacher.weights", str(teacher), "--json"]
    assert cli.main([*command, "--seed", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 60
    assert (out / "images.npz").is_file()
    np.savez(teacher.parent / "x.npz", x=np.zeros((99, 1, 8, 8), np.uint8))
    config.write_text(f'images = "{teacher.parent / "x.npz"}"\n')
    command = ["inspect", "--config", str(config), "--teacher.weights", str(teacher), "--json"]
    assert cli.main(command) == 0
    assert "data_similarity" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("text", "flag", "message"),
    [
        (
            "synthesis = 3\n",
            "--synthesis.batch_size=8",
            "synthesis must be a table of settings; got 3",
        ),
        (
            'method = "structured_noise"\n[synthesis]\nshapes = 3\n',
            "--synthesis.shapes.cells=4",
            "shapes must be a table",
        ),
        ("teacher = 'x'\n", "--teacher.num_classes=4", "teacher must be a table of settings"),
        ("imagse = 'x'\n", "--seed=3", "unknown setting imagse"),
    ],
)
def test_what_a_flag_does_not_lie_beside_is_named(
    text: str, flag: str, message: str, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = teacher.parent / "c.toml"
    config.write_text(text)
    command = ["synthesize", "--config", str(config), "--out", str(teacher.parent / "out"), flag]
    command += [] if "teacher" in text else ["--teacher.weights", str(teacher)]
    assert cli.main(command) == 2
    assert message in capsys.readouterr().err


def test_a_misspelt_table_for_inspect_is_named(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = teacher.parent / "c.toml"
    config.write_text("[teachr]\nnum_classes = 3\n")
    command = ["inspect", "--config", str(config), "--teacher.weights", str(teacher)]
    assert cli.main(command) == 2
    assert "unknown setting teachr" in capsys.readouterr().err


def test_the_last_of_a_flag_given_twice_counts(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, images in (("a.toml", 20), ("b.toml", 30)):
        (teacher.parent / name).write_text(f"num_images = {images}\n")
    files = [str(teacher.parent / name) for name in ("a.toml", "b.toml")]
    command = ["synthesize", "--config", files[0], "--config", files[1], "--json"]
    command += ["--teacher.weights", str(teacher), "--out", str(teacher.parent / "out")]
    assert cli.main([*command, "--method", "zskd", "--method", "noise"]) == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 30


def test_a_reader_that_leaves_ends_the_command_quietly(teacher: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from dreamstill.cli.main import main; sys.exit(main())"
    path = os.pathsep.join([str(Path(dreamstill.__file__).parents[1]), str(Path(__file__).parent)])
    for more in (["--json"], []):
        ran = subprocess.run(
            [sys.executable, "-c", code, "inspect", "--teacher.weights", str(teacher), *more],
            env=os.environ | {"PYTHONPATH": path},
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (141, "")
    os.close(write)


def test_a_full_standard_output_is_one_line(teacher: Path) -> None:
    code = "import sys; from dreamstill.cli.main import main; sys.exit(main())"
    path = os.pathsep.join([str(Path(dreamstill.__file__).parents[1]), str(Path(__file__).parent)])
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-c", code, "inspect", "--teacher.weights", str(teacher), "--json"],
            env=os.environ | {"PYTHONPATH": path},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (2, "dreamstill: No space left on device\n")


def test_files_of_the_working_folder_do_not_take_the_place_of_libraries(teacher: Path) -> None:
    folder = teacher.parent / "mine"
    folder.mkdir()
    for name in ("onnxscript", "onnx", "onnxruntime", "onnx_ir", "ml_dtypes"):
        (folder / f"{name}.py").write_text("raise SystemExit('I am the file of the folder')\n")
    (folder / "beside.py").write_text("from toys import small_cnn as net\n")
    code = "import sys; from dreamstill.cli.main import main; sys.exit(main())"
    path = os.pathsep.join([str(Path(dreamstill.__file__).parents[1]), str(Path(__file__).parent)])
    arguments = ["quantize", "--teacher.weights", str(teacher), "--num-images", "16", "--json"]
    ran = subprocess.run(
        [
            sys.executable,
            "-c",  # which puts the working folder first, as -m does
            code,
            *arguments,
            "--out",
            "out",
            "--teacher.factory",
            "beside:net",
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert (folder / "out" / "network.onnx").is_file()


def test_a_path_that_is_no_text_can_be_printed(teacher: Path) -> None:
    out = teacher.parent / os.fsdecode(b"out\xff")
    arguments = ["synthesize", "--teacher.weights", str(teacher), "--num-images", "9"]
    ran = run_command([*arguments, "--out", str(out)], folder=teacher.parent)
    assert ran.returncode == 0, ran.stderr
    assert (out / "images.npz").is_file()


GUARD = """
import os, sys
ALLOWED = os.environ["ALLOWED"].split(os.pathsep)
def watch(event, arguments):
    if event.startswith("socket."):
        os.write(2, f"opened a socket: {event} {arguments}".encode())
        os._exit(99)
    if event == "open" and isinstance(arguments[0], (str, bytes)) and (arguments[2] or 0) & 0o103:
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(tuple(ALLOWED)):
            os.write(2, f"wrote {path}".encode())
            os._exit(99)
sys.addaudithook(watch)
"""


def test_no_socket_is_opened_and_nothing_is_written_elsewhere(teacher: Path) -> None:
    """`export` and `compress`: within the run's folder and the temporary one alone."""
    folder = teacher.parent
    for name in ("guard", "home", "temporary"):
        (folder / name).mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    (folder / "stages.toml").write_text(
        f'num_images = 16\n[teacher]\nweights = "{teacher}"\n[[stage]]\ntask = "int8"\n'
    )
    environment = {
        "GUARD": str(folder / "guard"),
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
        "ALLOWED": os.pathsep.join([str(folder / "out"), str(folder / "temporary"), "/dev/"]),
    }
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"):
        os.environ.pop(name, None)
    sizes = [
        "--distill.steps",
        "2",
        "--distill.num_validation",
        "16",
        "--synthesis.batch_size",
        "16",
    ]
    made = ["--student", "toys:student", *sizes, "--distill.buffer_size", "64", "--out", "out_run"]
    commands = [
        ["distill", "--teacher.weights", str(teacher), *made],
        ["export", "out_run"],
        ["compress", "stages.toml", "--out", "out_compress"],
    ]
    for arguments in commands:
        ran = run_command(arguments, folder=folder, **environment)
        assert ran.returncode == 0, ran.stderr
    assert (folder / "out_run" / "student.onnx").is_file()
    assert (folder / "out_compress" / "network.int8.onnx").is_file()
    assert not list((folder / "home").iterdir())
    network = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    if network.returncode == 0:
        probe = "import socket; socket.socket()"
        caught = subprocess.run(
            [sys.executable, "-c", probe],
            env=os.environ | environment | {"PYTHONPATH": str(folder / "guard")},
            capture_output=True,
            check=False,
        )
        assert caught.returncode == 99


def test_telemetry_is_off_unless_the_user_wants_it() -> None:
    code = (
        "import os, sys; from dreamstill.exporters.formats import onnxruntime\n"
        "onnxruntime('quantization')\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    source = {"PYTHONPATH": str(Path(dreamstill.__file__).parents[1])}
    for given, expected in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | source | given,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.strip() == expected
    sources = Path(dreamstill.__file__).parent.rglob("*.py")
    lines = [line for path in sources for line in path.read_text().splitlines()]
    assert not [
        line for line in lines if line.strip().startswith(("import onnxrun", "from onnxrun"))
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["quantize", "--quantize.without_inputs", "true"],
        ["merge", "--merge.reconstruct", "0", "--merge.layers", ""],
        ["factorize", "--factorize.reconstruct", "0", "--factorize.responses", "0"],
    ],
    ids=lambda options: options[0],
)
def test_a_task_that_looks_at_no_image_makes_none(
    options: list[str], teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 4))
    save_file(model.state_dict(), teacher)
    out = teacher.parent / "out"
    command = [*options, "--teacher.weights", str(teacher), "--out", str(out)]
    command += ["--teacher.factory", "test_reading:mlp"]
    assert cli.main([*command, "--method", "zskd"]) == 2
    assert "no effect on tasks that look at no image" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert not list(out.glob("images.*"))
    summary = json.loads((out / "summary.json").read_text())
    assert "agreement" not in summary["stages"][0]
    assert "agreement was not measured" in (out / "report.html").read_text()
    measured = [*command[:-1], command[-1], "--num-images", "16"]
    measured[measured.index(str(out))] = str(out) + "2"
    assert cli.main([*measured, "--json"]) == 0
    assert (
        "agreement" in json.loads((out.parent / "out2" / "summary.json").read_text())["stages"][0]
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 4))


@pytest.mark.parametrize("command", ["compress", "quantize", "continual"])
def test_compress_and_learn_classes_take_device_and_precision(
    command: str, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = teacher.parent
    x = np.random.default_rng(0).integers(0, 256, (16, 1, 8, 8), np.uint8)
    np.savez(folder / "new.npz", x=x, y=4 + np.arange(16) % 2)
    (folder / "stages.toml").write_text(
        f'num_images = 16\ndevice = "cpu"\n[teacher]\nweights = "{teacher}"\n'
        '[[stage]]\ntask = "distill"\nstudent = "toys:student"\nsteps = 2\n'
    )
    start = {
        "compress": ["compress", str(folder / "stages.toml")],
        "quantize": ["quantize", "--teacher.weights", str(teacher), "--num-images", "16"],
        "continual": [
            *("learn_classes", "--teacher.weights", str(teacher), "--num-images", "16"),
            *("--new", str(folder / "new.npz"), "--learn_classes.steps", "2"),
        ],
    }[command]
    for flag, message in ((["--device", "abacus"], "abacus"), (["--precision", "half"], "'half'")):
        assert cli.main([*start, *flag, "--out", str(folder / "no")]) == 2
        assert message in capsys.readouterr().err
        assert not (folder / "no").exists()
    out = folder / "out"
    assert cli.main([*start, "--precision", "bfloat16", "--out", str(out), "--json"]) == 0
    settings = json.loads((out / "config.json").read_text())
    assert (settings["precision"], settings["device"]) == ("bfloat16", "cpu")
