"""Bad inputs for every verb and reader: what lies in a file's place, what it holds, and numbers.

A case prepares an empty folder and says what is run there, arguments of the command line or a call
of a reader, and a part of what the answer must say.
"""

import contextlib
import io
import json
import os
import shutil
import socket
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamstill.cli import main as cli
from dreamstill.compression.config import PackConfig
from dreamstill.compression.deep_compression.file_format import load_packed, save_packed
from dreamstill.compression.deep_compression.pack import pack
from dreamstill.data.images import load_images, load_unlabelled
from dreamstill.distillation.config import DistillConfig
from dreamstill.exporters.formats import load_exported
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.card import read_card
from dreamstill.loaders.state_dict import load_weights
from dreamstill.nn.seeded import seeded
from dreamstill.synthesis.activation_statistics import load_metadata
from dreamstill.teacher import Teacher

__all__ = [
    "CARD",
    "FACTORY",
    "INPUT",
    "Case",
    "Good",
    "What",
    "array_cases",
    "file_cases",
    "junk",
    "make_good",
    "net",
    "picture_cases",
    "record_cases",
]

FACTORY = "benchmarks.bad_cases:net"
CARD = {"factory": FACTORY, "shape": [1, 8, 8], "mean": [0.5], "std": [0.25], "num_classes": 4}
INPUT = InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.25,))

What = list[str] | Callable[[], object]
Put = Callable[[Path], object]
"""Makes something at a path."""


class Net(nn.Module):
    """A small network with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 4) logits."""
        logits: Tensor = self.head(self.norm(self.conv(x)).relu().flatten(1))
        return logits


def net() -> Net:
    """Build it so that every class is named by some images."""
    with seeded(torch.Generator().manual_seed(0)), torch.no_grad():
        model = Net().eval()
        model.head.bias.sub_(model(torch.randn(256, 1, 8, 8)).mean(0))
    return model.train()


class Case(NamedTuple):
    """A bad input."""

    name: str
    prepare: Callable[[Path], What]
    says: str
    """A part of the answer: the value, or the name of the file."""


class Good(NamedTuple):
    """A folder of whole files, to be damaged."""

    folder: Path
    teacher: Teacher

    @property
    def options(self) -> list[str]:
        """The teacher, for a command."""
        return ["--teacher.weights", str(self.folder / "teacher.safetensors")]

    def copy(self, name: str, folder: Path) -> Path:
        """Copy a file or folder of it to another, to be damaged there."""
        copied = folder / name
        if (whole := self.folder / name).is_dir():
            shutil.copytree(whole, copied)
        else:
            shutil.copy(whole, copied)
        return copied


def make_good(folder: Path, *, exports: bool = True) -> Good:
    """Run what makes every kind of file, into a folder; without exports it is sooner done."""
    save_file(net().state_dict(), folder / "teacher.safetensors")
    torch.save(net().state_dict(), folder / "teacher.pt")
    (folder / "teacher.json").write_text(json.dumps(CARD))
    good = Good(folder, Teacher(net(), INPUT))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 1, 8, 8), np.uint8)
    named = good.teacher(INPUT.encode(torch.from_numpy(x))).argmax(1).numpy()
    np.savez(folder / "images.npz", x=x, y=np.arange(64) % 4)
    np.savez(folder / "new.npz", x=x, y=4 + np.arange(64) % 2)
    assert len(set(named.tolist())) == 4, "every class has images to record"

    def command(*arguments: str) -> None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            if cli.main([*arguments, "--json"]):
                raise SystemExit(f"cannot make what is to be damaged: {said.getvalue()}")

    images = ["--images", str(folder / "images.npz")]
    command("metadata", *good.options, *images, "--out", str(folder / "metadata.safetensors"))
    training = [
        "--distill.steps",
        "4",
        "--distill.num_validation",
        "16",
        "--distill.buffer_size",
        "64",
    ]
    run = ["--student", FACTORY, "--synthesis.batch_size", "16", "--out", str(folder / "run")]
    command("distill", *good.options, *run, *training)
    command("evaluate", str(folder / "run"), *images)
    if exports:
        command("export", str(folder / "run"))
        command("quantize", *good.options, *images, "--out", str(folder / "compressed"))
        new = ["--new", str(folder / "new.npz"), *images, "--learn_classes.steps", "2"]
        command("learn_classes", *good.options, *new, "--out", str(folder / "continual"))
    config = PackConfig(rounds=1, finetune=DistillConfig(steps=1, num_validation=8))
    packed = pack(good.teacher, torch.from_numpy(x), config, rng=torch.Generator())
    save_packed(packed, folder / "net.packed")
    for kind in ("png", "jpeg", "bmp", "tiff", "webp"):
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(folder / f"a.{kind}")
    return good


def file_cases(good: Good) -> Iterator[Case]:
    """Everything in place of every file that a command or a reader takes."""
    for place, run in (places(good) | readers(good)).items():
        for wrong, put in (NODES | junk()).items():
            if wrong == "folder" and place.startswith("images"):
                continue  # an empty folder, which has its own cases
            if wrong == "no bytes" and place in ("settings", "TOML card"):
                continue  # an empty table
            yield Case(f"{wrong} for {place}", partial(_in_place, place, put, run), "damaged_")


def _in_place(place: str, put: Put, run: Callable[[Path, Path], What], folder: Path) -> What:
    path = folder / f"damaged_{SUFFIXES.get(place, place)}"
    put(path)
    return run(folder, path)


SUFFIXES = {
    "weights": "w.safetensors",
    "torch weights": "w.pt",
    "card": "c.json",
    "TOML card": "c.toml",
    "settings": "s.toml",
    "stages": "stages.toml",
    "packed": "n.packed",
    "metadata": "m.safetensors",
    "metadata of a method": "m.safetensors",
    **{f"exported {kind}": f"n.{kind}" for kind in ("onnx", "pt2", "pte")},
}


def places(good: Good) -> dict[str, Callable[[Path, Path], What]]:
    """Where a command takes a file: from the folder and the file's path to the arguments."""
    card = str(good.folder / "teacher.json")
    images = ["--images", str(good.folder / "images.npz")]

    def weights(folder: Path, path: Path) -> What:
        return ["inspect", "--teacher.weights", str(path), "--teacher.card", card]

    def torch_weights(folder: Path, path: Path) -> What:
        teacher = ["--teacher.weights", str(path), "--teacher.card", card]
        return ["quantize", *teacher, *images, "--out", str(folder / "out")]

    def of(command: str, *flags: str) -> Callable[[Path, Path], What]:
        def run(folder: Path, path: Path) -> What:
            out = [] if command in ("inspect", "evaluate") else ["--out", str(folder / "out")]
            return [*command.split(), *good.options, *flags, str(path), *out]

        return run

    def evaluate(folder: Path, path: Path) -> What:
        return ["evaluate", str(good.folder / "run"), "--images", str(path)]

    def compress(folder: Path, path: Path) -> What:
        return ["compress", str(path), "--out", str(folder / "out")]

    new = ["--new", str(good.folder / "new.npz"), "--images"]
    method = ["--method", "metadata", "--synthesis.file"]
    return {
        "weights": weights,
        "torch weights": torch_weights,
        "card": of("inspect", "--teacher.card"),
        "TOML card": of("synthesize", "--teacher.card"),
        "settings": of("distill", "--student", FACTORY, "--config"),
        "stages": compress,
        "images of inspect": of("inspect", "--images"),
        "images of metadata": of("metadata", "--images"),
        "images of evaluate": evaluate,
        "images of a task": of("quantize", "--images"),
        "images of continual": of("learn_classes", *new),
        "images of new classes": of("learn_classes", "--new"),
        "images to measure on": of("prune", *images, "--real"),
        "metadata of a method": of("synthesize", *method),
    }


def readers(good: Good) -> dict[str, Callable[[Path, Path], What]]:
    """Readers that are called from Python."""

    def call(read: Put) -> Callable[[Path, Path], What]:
        return lambda folder, path: partial(read, path)

    return {
        "card read": call(read_card),
        "weights read": call(load_weights),
        "images read": call(lambda path: load_unlabelled(path, INPUT)),
        "images with labels": call(lambda path: load_images(path, INPUT, 4)),
        "metadata": call(lambda path: load_metadata(path, good.teacher)),
        "packed": call(load_packed),
        **{f"exported {kind}": call(load_exported) for kind in ("onnx", "pt2", "pte")},
    }


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)  # a whole path may be too long for one


NODES: dict[str, Put] = {
    "nothing": lambda path: None,
    "folder": Path.mkdir,
    "FIFO": os.mkfifo,
    "socket": _socket,
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to(path.parent / "absent"),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
}
"""What may lie where a file is looked for."""


def junk() -> dict[str, Put]:
    """What may be in it."""
    archive, noise = io.BytesIO(), np.random.default_rng(0).bytes(4000)
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("hello.txt", "hello")
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "png")
    contents = {
        "no bytes": b"",
        "zeros": bytes(4000),
        "noise": noise,
        "a word": b"= hello",
        "a picture": picture.getvalue(),
        "an archive": archive.getvalue(),
        "half an archive": archive.getvalue()[:60],
        "a list": b"[1]\n= 2",
        "deep lists": b"a = " + 100_000 * b"[",
        "deep tables": 100_000 * b'{"a":',
        "UTF-16": "shape = [1, 8, 8]".encode("utf-16"),
        "a null": b"\0= null",
        "a program": b"#!/bin/sh\nexit 0\n= 1",
        "a pickle of code": b"cposix\nsystem\n(S'touch ran'\ntR.",
    }
    return {name: partial(Path.write_bytes, data=data) for name, data in contents.items()}


def record_cases(good: Good) -> Iterator[Case]:
    """Records in a run's folder that are not what a run writes."""
    needed = {
        "report": ("config.json", "summary.json", "environment.json", "pictures.npz"),
        "export": ("config.json", "summary.json", "student.json", "student.safetensors"),
        "evaluate": ("config.json", "result.json", "student.json", "student.safetensors"),
        "resume": ("config.json", "checkpoint.pt"),
    }
    inside = {name: put for name, put in (NODES | junk()).items() if name not in ABSENT}
    for verb, names in needed.items():
        for name in names:
            for wrong, put in inside.items():
                prepare = partial(_damaged_record, good, "run", name, put, verb)
                yield Case(f"{verb}: {wrong} for {name}", prepare, name)
    for folder in (name for name in ("compressed", "continual") if (good.folder / name).is_dir()):
        for name in ("config.json", "summary.json"):
            for wrong, put in inside.items():
                prepare = partial(_damaged_record, good, folder, name, put, "report")
                yield Case(f"report of {folder}: {wrong} for {name}", prepare, name)
    huge = [(name, field, 10**30) for name, field, _ in TYPES if name == "config.json"]
    for name, field, value in (*TYPES, *huge):
        for verb in ("report",) if name == "summary.json" else ("evaluate", "export"):
            put = partial(_set_field, field=field, value=value)
            prepare = partial(_damaged_record, good, "run", name, put, verb)
            says = "student" if name == "student.json" else "run"
            yield Case(f"{verb}: {field} {value!r:.20} in {name}", prepare, says)


ABSENT = {"nothing", "FIFO", "socket", "folder", "link to itself", "link to nothing"} | {
    "endless device"
}
"""A record that is not there, or cannot be one, is left out of a report."""
TYPES: list[tuple[str, str, object]] = [
    *(("config.json", field, "x") for field in ("distill", "seed", "inherit", "reconstruct")),
    *(("config.json", f"distill.{field}", None) for field in ("steps", "lr", "temperature")),
    *(("config.json", field, [1]) for field in ("teacher", "synthesis", "student", "method")),
    *(("config.json", field, {"a": 1}) for field in ("device", "precision", "distill.losses")),
    *(("config.json", f"teacher.{field}", 1) for field in ("weights", "factory", "mean")),
    *(("summary.json", field, [1]) for field in ("teacher", "student", "teacher.bytes")),
    *(("summary.json", f"student.{field}", {}) for field in ("latency_ms", "accuracy")),
    ("student.json", "factory", 5),
]
"""Fields of another type: file, field, value."""


def _damaged_record(good: Good, run: str, name: str, put: Put, verb: str, folder: Path) -> What:
    path = good.copy(run, folder) / name
    if "value" not in getattr(put, "keywords", {}):
        path.unlink()
    put(path)
    images = ["--images", str(good.folder / "images.npz")] if verb == "evaluate" else []
    command = ["distill", "--resume"] if verb == "resume" else [verb]
    return [*command, str(folder / run), *images]


def _set_field(path: Path, *, field: str, value: object) -> None:
    record = json.loads(path.read_text())
    *tables, last = field.split(".")
    table = record
    for part in tables:
        table = table[part]
    table[last] = value
    path.write_text(json.dumps(record))


def array_cases(good: Good) -> Iterator[Case]:
    """Archives of arrays that hold something else than images and labels."""
    for wrong, put in _archives().items():
        for verb, flag in (
            ("evaluate", "--images"),
            ("learn_classes", "--new"),
            ("metadata", "--images"),
        ):
            if verb == "metadata" and "label" in wrong:
                continue  # it reads none
            prepare = partial(_with_images, good, verb, flag, "damaged_x.npz", put)
            of_labels = verb == "learn_classes" and wrong in OF_LABELS
            says = "new classes" if of_labels else "damaged_x.npz"
            yield Case(f"{verb}: {wrong}", prepare, says)


OF_LABELS = ("labels below 0", "labels far above", "labels of 64 bits without sign")
"""What is said of them names the label, not the file."""


def _with_images(good: Good, verb: str, flag: str, name: str, put: Put, folder: Path) -> What:
    path = folder / name
    put(path)
    if verb == "evaluate":
        return [verb, str(good.folder / "run"), flag, str(path)]
    more = ["--images", str(good.folder / "images.npz")] if verb == "learn_classes" else []
    return [verb, *good.options, flag, str(path), *more, "--out", str(folder / "out")]


def _archives() -> dict[str, Put]:
    x, y = np.zeros((8, 1, 8, 8), np.uint8), np.arange(8) % 4

    def arrays(**held: object) -> Put:
        return lambda path: np.savez(path, **held)  # type: ignore[arg-type]

    def zipped(entry: bytes, method: int = zipfile.ZIP_STORED) -> Put:
        def put(path: Path) -> None:
            with zipfile.ZipFile(path, "w", method) as archive:
                archive.writestr("x.npy", entry)
                archive.writestr("y.npy", entry)

        return put

    def header(text: str) -> Put:
        coded = text.encode("latin1").ljust(118) + b"\n"
        return zipped(b"\x93NUMPY\x01\x00" + len(coded).to_bytes(2, "little") + coded)

    def patched(field: int, value: int, method: int = zipfile.ZIP_DEFLATED) -> Put:
        """Set a field of every entry, in its own header and in the directory."""

        def put(path: Path) -> None:
            file = io.BytesIO()
            np.save(file, x)
            zipped(file.getvalue(), method)(path)
            data = bytearray(path.read_bytes())
            for sign, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
                at = data.find(sign)
                while at >= 0:
                    start = at + field + shift
                    data[start : start + 2] = value.to_bytes(2, "little")
                    at = data.find(sign, at + 1)
            path.write_bytes(data)

        return put

    shape = "{'descr': '|u1', 'fortran_order': False, 'shape': %s, }"
    return {
        "no arrays": arrays(),
        "another name": arrays(images=x, labels=y),
        "a label too few": arrays(x=x, y=y[:-1]),
        "labels that are fractions": arrays(x=x, y=y / 2),
        "labels below 0": arrays(x=x, y=y - 1),
        "labels far above": arrays(x=x, y=y + 10**12),
        "labels of 64 bits without sign": arrays(x=x, y=np.full(8, 2**64 - 1, np.uint64)),
        "labels in a matrix": arrays(x=x, y=y[:, None]),
        "one label": arrays(x=x, y=1),
        "labels of text": arrays(x=x, y=np.array(["a"] * 8)),
        "labels that are objects": arrays(x=x, y=np.array([None] * 8)),
        "floats": arrays(x=x / 255, y=y),
        "booleans": arrays(x=x > 0, y=y),
        "records": arrays(x=np.zeros(8, "u1,f4"), y=y),
        "dates": arrays(x=x.astype("M8[s]"), y=y),
        "complex numbers": arrays(x=x * 1j, y=y),
        "objects": arrays(x=np.array([{}] * 8), y=y),
        "images of another size": arrays(x=x[..., 1:], y=y),
        "images of three channels": arrays(x=np.repeat(x, 3, 1), y=y),
        "channels last": arrays(x=x.transpose(0, 2, 3, 1), y=y),
        "no image": arrays(x=x[:0], y=y[:0]),
        "one number": arrays(x=np.uint8(1), y=y),
        "a single array": lambda path: path.write_bytes(_npy(x)),
        "deflate64": patched(8, 9),
        "an unknown compression": patched(8, 77),
        "bzip2 that is none": patched(8, 12),
        "lzma that is none": patched(8, 14),
        "a password": patched(6, 1),
        "another checksum": patched(14, 1),
        "more images than memory": header(shape % "(99999999999999, 1, 8, 8)"),
        "more images than bytes": header(shape % "(99, 1, 8, 8)"),
        "fewer images than none": header(shape % "(-3, 1, 8, 8)"),
        "a size of thousands of digits": header(shape % ("9" * 5000)),
        "a header of code": header("__import__('os').mkdir('ran')"),
        "a deep header": header("[" * 9000),
        "no header": zipped(b"\x93NUMPY"),
        "an unknown version": zipped(b"\x93NUMPY\x09\x00" + bytes(80)),
        "an entry that is no array": zipped(b"hello"),
        "an empty entry": zipped(b""),
    }


def _npy(x: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def picture_cases(good: Good) -> Iterator[Case]:
    """Folders with something else among the pictures, and none of the classes."""
    ways = [("evaluate", "--images", True), ("quantize", "--images", False)]
    ways += [("inspect", "--images", False), ("learn_classes", "--new", True)]
    for wrong, put in (NODES | _pictures(good)).items():
        for verb, flag, labelled in ways:
            if wrong != "nothing":
                prepare = partial(_among_pictures, good, verb, flag, put, labelled=labelled)
                yield Case(f"{verb}: {wrong} among pictures", prepare, "damaged_a.png")
    for wrong, classes in {
        "no class": [],
        "a class too few": ["a", "b", "c"],
        "classes without pictures": ["0", "1"],
        "a class of two hundred digits": ["9" * 200],
        "a class above the last": ["7"],
    }.items():
        prepare = partial(_of_classes, good, classes, empty="without" in wrong)
        yield Case(f"evaluate: {wrong}", prepare, "damaged_x")


def _among_pictures(
    good: Good, verb: str, flag: str, put: Put, folder: Path, *, labelled: bool
) -> What:
    name = "x/4" if labelled and verb == "learn_classes" else "x/0" if labelled else "x"
    (folder / name).mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / name / "b.png")
    put(folder / name / "damaged_a.png")
    out = [] if verb in ("evaluate", "inspect") else ["--out", str(folder / "out")]
    of = [str(good.folder / "run")] if verb == "evaluate" else good.options
    more = ["--images", str(good.folder / "images.npz")] if verb == "learn_classes" else []
    return [verb, *of, flag, str(folder / "x"), *more, *out]


def _of_classes(good: Good, classes: list[str], folder: Path, *, empty: bool) -> What:
    root = folder / "damaged_x"
    root.mkdir()
    for name in classes:
        (root / name).mkdir()
        if not empty:
            Image.new("L", (8, 8)).save(root / name / "a.png")
    return ["evaluate", str(good.folder / "run"), "--images", str(root)]


def _pictures(good: Good) -> dict[str, Put]:
    def saved(mode: str, kind: str, size: tuple[int, int] = (8, 8), **options: object) -> Put:
        return lambda path: Image.new(mode, size).save(path, kind, **options)

    def written(data: bytes) -> Put:
        return lambda path: path.write_bytes(data)

    def turned(orientation: object, *, kind: str = "jpeg") -> Put:
        """A picture whose EXIF is odd."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = exif.tobytes()
        return saved("L", kind, exif=data.replace(b"\x12\x01\x03\x00", b"\x12\x01\x0c\x00"))

    whole = {
        kind: (good.folder / f"a.{kind}").read_bytes()
        for kind in ("png", "jpeg", "tiff", "webp", "bmp")
    }
    return {
        **{f"half a {kind}": written(data[: len(data) // 2]) for kind, data in whole.items()},
        **{f"the head of a {kind}": written(data[:20]) for kind, data in whole.items()},
        "16 bits": saved("I;16", "png"),
        "32 bits": saved("I", "tiff"),
        "floats": saved("F", "tiff"),
        "colors of a laboratory": saved("LAB", "tiff"),
        "a bomb": saved("1", "png", (20_000, 20_000)),
        "half a bomb": saved("1", "png", (10_000, 10_000)),
        "a GIF": saved("L", "gif"),
        "an icon": saved("RGBA", "ico"),
        "PostScript": saved("L", "eps"),
        "a portable graymap": saved("L", "ppm"),
        "a TIFF that points to itself": written(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
        "a TIFF without end": written(b"II*\0\x08\0\0\0\xff\xff" + bytes(200)),
        "no width": written(_png(0, 8)),
        "a width of 2^31": written(_png(2**31 - 1, 2**31 - 1)),
        "a color type that is none": written(_png(8, 8, color=77)),
        **{name: put for name, put in junk().items() if name != "a picture"},
    }


def _png(width: int, height: int, *, color: int = 0) -> bytes:
    """The head of a PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checked

    sizes = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    head = sizes + bytes([8, color, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IEND", b"")
