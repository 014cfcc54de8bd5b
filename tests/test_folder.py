"""A run's folder: resumed to what it was, of one process, whole, and clean after mistakes."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dreamstill
import toys
from dreamstill.cli import main as cli
from dreamstill.data.batch import Batch
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.config import DistillConfig
from dreamstill.errors import ConfigError, DataError, ExportError, NonFiniteError, RunError
from dreamstill.exporters.int8 import export_int8
from dreamstill.files import image_store as store
from dreamstill.files.writing import write_atomically
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.config import CompressJob, DistillJob, read_job
from dreamstill.pipelines.distill import distill
from dreamstill.pipelines.run_directory import check_empty, is_vacant, locked
from dreamstill.pipelines.summary import read_run
from dreamstill.pipelines.synthesize import draw_images, synthesize
from dreamstill.progress import Progress
from dreamstill.synthesis.activation_statistics import record_metadata
from dreamstill.synthesis.config import DaflConfig, NoiseConfig, StructuredNoiseConfig
from dreamstill.synthesis.methods import dafl

SHORT = DistillConfig(
    steps=12,
    batch_size=16,
    prefill=32,
    fresh_every=4,
    buffer_size=64,
    num_validation=32,
    validate_every=6,
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return toys.write_teacher(tmp_path)


def job_of(weights: Path, **changes: Any) -> DistillJob:
    job = DistillJob(
        teacher=TeacherFile(weights=str(weights)),
        student="toys:seeded_student",
        method="structured_noise",
        synthesis=StructuredNoiseConfig(batch_size=16),
        distill=SHORT,
        checkpoint_every=0.0,
    )
    return replace(job, **changes)


def run(
    folder: Path, job: DistillJob, *, resume: bool = False, stop_after: int | None = None
) -> None:
    """A distillation, stopped after so many batches and steps."""
    done = 0

    def count(progress: Progress) -> None:
        nonlocal done
        done += 1
        if done == stop_after:
            raise KeyboardInterrupt

    distill(folder, job, open_from(job.teacher), resume=resume, on_progress=count)


@pytest.fixture
def stopped(weights: Path, tmp_path: Path) -> Path:
    """The folder of a distillation that was stopped at its sixth step."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", job_of(weights), stop_after=9)
    return tmp_path / "run"


# ---- the buffer's file and the checkpoint


def header(path: Path) -> int:
    """Bytes before the images."""
    return path.stat().st_size - 64 * 64


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def in_place_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


def archived(path: Path) -> None:
    images = np.load(path)
    with path.open("wb") as file:
        np.savez(file, x=images)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "its folder deleted": lambda path: shutil.rmtree(path.parent),
    "black": lambda p: changed(p, lambda data: data[: header(p)] + bytes(64 * 64)),
    "all zeros": lambda path: changed(path, lambda data: bytes(len(data))),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: changed(path, lambda data: data[:-100]),
    "one bit": lambda p: changed(
        p, lambda data: data[: header(p)] + bytes([data[header(p)] ^ 1]) + data[header(p) + 1 :]
    ),
    "of another type": lambda path: np.save(path, np.zeros((64, 1, 8, 8), np.float32)),
    "of signed bytes": lambda path: np.save(path, np.load(path).astype(np.int8)),
    "of another shape": lambda path: np.save(path, np.load(path).reshape(64, 1, 4, 16)),
    "longer": lambda path: np.save(path, np.zeros((65, 1, 8, 8), np.uint8)),
    "in columns": lambda path: np.save(path, np.asfortranarray(np.load(path))),
    "in another order": lambda path: np.save(path, np.load(path)[::-1].copy()),
    "an archive": lambda path: archived(path),
    "a folder": lambda path: in_place_of(path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_resume_whose_images_are_not_there_is_refused(
    damage: str, stopped: Path, weights: Path
) -> None:
    path = stopped / "replay_buffer" / "images.npy"
    DAMAGES[damage](path)
    left = path.read_bytes() if path.is_file() else None
    with pytest.raises(RunError) as caught:
        run(stopped, job_of(weights), resume=True)
    assert "\n" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == left
    assert not (stopped / "student.safetensors").exists()


@pytest.mark.parametrize("damage", ["deleted", "black", "one bit", "of another type"])
def test_a_report_is_not_of_other_images(damage: str, weights: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", job_of(weights))
    DAMAGES[damage](tmp_path / "run" / "replay_buffer" / "images.npy")
    with pytest.raises(RunError, match=r"images\.npy"):
        ReplayBuffer.reopen(tmp_path / "run" / "replay_buffer", toys.SPEC)


@pytest.mark.parametrize("card", ["{}", "[]", '{"capacity": -1, "added": 2}', '{"capacity": "x"}'])
def test_a_pool_whose_card_is_damaged_is_named(card: str, tmp_path: Path) -> None:
    ReplayBuffer(tmp_path, toys.SPEC, 4).commit()
    (tmp_path / "buffer.json").write_text(card)
    with pytest.raises(RunError, match=r"buffer\.json is damaged"):
        ReplayBuffer.reopen(tmp_path, toys.SPEC)


def test_a_pool_may_be_in_memory_alone() -> None:
    buffer = ReplayBuffer(None, toys.SPEC, 5)
    images = torch.arange(7 * 64, dtype=torch.uint8).view(7, 1, 8, 8)
    for part in images.split(3):
        buffer.add(Batch(toys.SPEC.encode(part), torch.zeros(len(part), 4)))
    buffer.commit()
    assert torch.equal(buffer.images(), images[[5, 6, 2, 3, 4]])


OTHERS: dict[str, dict[str, Any]] = {
    "another student": {"student": "toys:student"},
    "another method": {"method": "noise", "synthesis": NoiseConfig(batch_size=16)},
    "another seed": {"seed": 1},
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_run_is_refused(
    other: str, stopped: Path, weights: Path, tmp_path: Path
) -> None:
    job = job_of(weights, **OTHERS[other])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "other", job, stop_after=9)
    shutil.copy(tmp_path / "other" / "checkpoint.pt", stopped / "checkpoint.pt")
    with pytest.raises(RunError, match=r"checkpoint\.pt is of another run"):
        run(stopped, job_of(weights), resume=True)


def test_the_pool_and_the_checkpoint_of_two_times_do_not_go_together(
    stopped: Path, weights: Path, tmp_path: Path
) -> None:
    old = (stopped / "checkpoint.pt").read_bytes()
    run(stopped, job_of(weights), resume=True)
    (stopped / "checkpoint.pt").write_bytes(old)
    # it had images that are overwritten since
    buffer = np.lib.format.open_memmap(stopped / "replay_buffer" / "images.npy", mode="r+")
    buffer[:4] = 7
    buffer.flush()
    with pytest.raises(RunError, match="does not hold the images of its checkpoint"):
        run(stopped, job_of(weights), resume=True)


@pytest.mark.parametrize("lost", ["work", "seconds", "process_rng", "origin"])
def test_a_checkpoint_without_its_parts_is_named(lost: str, stopped: Path, weights: Path) -> None:
    state = torch.load(stopped / "checkpoint.pt")
    del state[lost]
    torch.save(state, stopped / "checkpoint.pt")
    with pytest.raises(RunError, match=r"checkpoint\.pt (does not fit|is of another run)"):
        run(stopped, job_of(weights), resume=True)


# ---- the teacher's card


def with_card(weights: Path, **changes: Any) -> None:
    path = weights.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def gelu_cnn() -> toys.SmallCnn:
    """The same weights in another network."""
    return toys.small_cnn()


CARDS: dict[str, dict[str, Any]] = {
    "mean": {"mean": [0.1]},
    "std": {"std": [0.26]},
    "factory": {"factory": "test_folder:gelu_cnn"},
    "shape": {"shape": [1, 10, 8]},
}


@pytest.mark.parametrize("card", CARDS)
def test_a_card_that_has_changed_is_noticed_wherever_a_run_is_read(
    card: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "new.npz", x=np.zeros((8, 1, 8, 8), np.uint8), y=np.arange(8) % 2 + 4)
    np.savez(tmp_path / "x.npz", x=np.zeros((8, 1, 8, 8), np.uint8), y=np.arange(8) % 4)
    of = ["--teacher.weights", str(weights)]
    out = {name: ["--out", str(tmp_path / name)] for name in ("distill", "merge", "new", "images")}
    small = [
        *("--distill.steps", "2", "--distill.num_validation", "8", "--distill.buffer_size", "8")
    ]
    commands = {
        "distill": ["distill", *of, "--student", "toys:student", *small],
        "merge": ["quantize", *of, "--num-images", "64"],
        "new": ["learn_classes", *of, "--new", str(tmp_path / "new.npz"), "--num-images", "64"],
        "images": ["synthesize", *of, "--num-images", "64"],
    }
    commands["new"] += ["--learn_classes.steps", "2"]
    for name, command in commands.items():
        assert cli.main([*command, *out[name]]) == 0
    with_card(weights, **CARDS[card])
    if card == "shape":  # of which the images given are not any more
        del commands["new"]
    folder = str(tmp_path / "distill")
    resumed = [[*commands[name], *out[name], "--resume"] for name in commands if name != "distill"]
    resumed += [["distill", "--resume", folder], ["export", folder, "--formats", "onnx"]]
    if card != "shape":
        resumed.append(["evaluate", folder, "--images", str(tmp_path / "x.npz")])
    capsys.readouterr()
    for command in resumed:
        assert cli.main(command) == 2, command
        said = capsys.readouterr().err
        assert "was started with another teacher" in said, (command, said)
        assert said.count("\n") == 1
    assert not (tmp_path / "distill" / "student.onnx").exists()


def test_a_teacher_is_named_by_all_that_decides_its_answers(weights: Path) -> None:
    names = {open_from(TeacherFile(weights=str(weights))).fingerprint}
    for changes in ({"mean": (0.4,)}, {"std": (0.2,)}, {"factory": "test_folder:gelu_cnn"}):
        names.add(open_from(TeacherFile(weights=str(weights), **changes)).fingerprint)
    assert len(names) == 4
    given = TeacherFile(weights=str(weights), mean=(0.5,), std=(0.25,), num_classes=4)
    assert open_from(given).fingerprint in names


# ---- settings


@pytest.mark.parametrize("command", ["resume", "evaluate", "export"])
def test_settings_that_were_edited_are_noticed(
    command: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run(folder, job_of(weights))
    config = json.loads((folder / "config.json").read_text())
    config["distill"]["lr"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    np.savez(tmp_path / "x.npz", x=np.zeros((8, 1, 8, 8), np.uint8), y=np.arange(8) % 4)
    arguments = {
        "resume": ["distill", "--resume", str(folder)],
        "evaluate": ["evaluate", str(folder), "--images", str(tmp_path / "x.npz")],
        "export": ["export", str(folder)],
    }[command]
    assert cli.main(arguments) == 2
    assert "config.json was edited after the run began" in capsys.readouterr().err


def test_edited_settings_of_a_compression_are_noticed(weights: Path, tmp_path: Path) -> None:
    plain = {
        "teacher": {"weights": str(weights)},
        "num_images": 64,
        "stage": [{"task": "quantize"}],
    }
    folder = tmp_path / "run"
    run_compression(folder, read_job(CompressJob, plain))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"seed": 7}))
    with pytest.raises(RunError, match="was edited"):
        run_compression(folder, read_job(CompressJob, plain | {"seed": 7}), resume=True)


# ---- one process


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    paths = [str(Path(dreamstill.__file__).parents[1]), str(Path(__file__).parent)]
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


HOLD = (
    "import sys, time; from pathlib import Path\n"
    "from dreamstill.pipelines.run_directory import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(stopped: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is at work in the stopped run."""
    process = start("-c", HOLD, str(stopped))
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_until_the_first_is_gone(
    stopped: Path, weights: Path, holder: subprocess.Popen[str]
) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="another process is at work in"):
        run(stopped, job_of(weights), resume=True)
    assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()} == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (stopped / ".lock").exists()  # which locks nothing any more
    run(stopped, job_of(weights), resume=True)
    assert not (stopped / ".lock").exists()


def test_a_new_run_is_refused_where_another_begins(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    with locked(folder), pytest.raises(RunError, match="another process is at work in"):
        run(folder, job_of(weights))
    run(folder, job_of(weights))


def test_what_reads_a_run_waits_for_what_writes_it(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, job_of(weights))
    with locked(folder):
        assert cli.main(["export", str(folder), "--formats", "onnx"]) == 2
    assert cli.main(["export", str(folder), "--formats", "onnx"]) == 0


def test_a_lock_that_its_owner_removes_is_not_taken_for_held(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / ".lock").unlink()
        with locked(tmp_path):  # whoever removes it gives it up
            pass
    assert is_vacant(tmp_path)


# ---- whole files


def test_files_have_the_mode_of_the_umask(weights: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run(tmp_path / "run", job_of(weights))
        assert cli.main(["export", str(tmp_path / "run"), "--formats", "onnx,pt2"]) == 0
        assert cli.main(["report", str(tmp_path / "run")]) == 0
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


def test_there_is_one_writer_of_files() -> None:
    wanted = {
        "files/writing.py",
        "files/image_store.py",
        "files/checkpoints.py",
        "pipelines/run_directory.py",  # has the lock
    }
    written = re.compile(
        r"\.write_text\(|\.write_bytes\(|save_file\(|np\.save|open_memmap|\.open\(\"[wax]"
        r"|torch\.save\((?!\w+, buffer\))|export\.save\((?!\w+, buffer\))"
    )
    source = Path(dreamstill.__file__).parent
    found = {
        path.relative_to(source).as_posix(): written.findall(path.read_text())
        for path in source.rglob("*.py")
    }
    odd = {name: calls for name, calls in found.items() if calls and name not in wanted}
    assert odd == {"pipelines/distill.py": ['.open("a']}  # the log, which is appended to


def test_a_temporary_name_is_of_its_process(tmp_path: Path) -> None:
    seen: list[Path] = []
    write_atomically(tmp_path / "x.json", b"{}", check=seen.append)
    assert [path.name for path in seen] == [f".x.{os.getpid()}.tmp.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_file_that_is_not_right_gets_no_name(tmp_path: Path) -> None:
    def refuse(temporary: Path) -> None:
        assert temporary.read_bytes() == b"2"
        raise ExportError("not right")

    (tmp_path / "x").write_bytes(b"1")
    with pytest.raises(ExportError, match="not right"):
        write_atomically(tmp_path / "x", b"2", check=refuse)
    with pytest.raises(ExportError):
        write_atomically(tmp_path / "a" / "b" / "x", b"2", check=refuse)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"1"


def test_an_int8_file_that_does_not_agree_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamstill.exporters.int8.agreement", lambda *_: 0.25)
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    (tmp_path / "n.onnx").write_bytes(b"the one before")
    with pytest.raises(ExportError, match="on 25% of the images"):
        export_int8(toys.small_cnn().eval(), toys.SPEC, images, tmp_path / "n.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["n.onnx"]
    assert (tmp_path / "n.onnx").read_bytes() == b"the one before"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a full file system of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    (disk / "filler").write_bytes(bytes(8192))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


WIDE = "toys.SmallCnn(width=999)"
WRITERS = {
    "onnx": f"export({WIDE}.eval(), out / 'n.onnx', toys.SPEC)",
    "pt2": f"export({WIDE}.eval(), out / 'n.pt2', toys.SPEC)",
    "pte": f"export({WIDE}.eval(), out / 'n.pte', toys.SPEC)",
    "int8 onnx": f"export_int8({WIDE}.eval(), toys.SPEC, images, out / 'n.onnx')",
    "int8 pt2": f"export_int8({WIDE}.eval(), toys.SPEC, images, out / 'n.pt2')",
    "packed": f"save_packed({WIDE}, out / 'n.packed')",
    "safetensors": f"save_weights(out / 'n.safetensors', {WIDE})",
    "checkpoint": "save_checkpoint(out / 'c.pt', {'x': torch.randn(9999)})",
    "network": f"save_network({WIDE}, out / 'n.pt')",
    "arrays": "save_arrays(out / 'x.npz', x=torch.rand(9999).numpy())",
    "many arrays": "save_arrays(out / 'x.npz', **{str(i): torch.rand(999).numpy() for i in TEN})",
    "json": "write_json(out / 'x.json', list(range(9999)))",
    "page": "write_atomically(out / 'x.html', b'x' * 99999)",
    "buffer": "ReplayBuffer(out, toys.SPEC, 999)",
}
SCRIPT = """
import sys, torch, toys
from pathlib import Path
from dreamstill.errors import DreamstillError
from dreamstill.exporters.formats import export
from dreamstill.files.checkpoints import *
from dreamstill.files.writing import *
from dreamstill.pipelines.run_directory import *
from dreamstill.pipelines.saved_networks import save_network
from dreamstill.synthesis.activation_statistics import record_metadata
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.exporters.int8 import export_int8
from dreamstill.compression.deep_compression.file_format import save_packed
TEN = range(10)
out, images = Path(sys.argv[1]), torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
for name, call in eval(sys.argv[2]).items():
    before = sorted(out.iterdir())
    try:
        eval(call)
        print(name, "was written")
    except DreamstillError as error:
        if "o space left on device" not in str(error) or "\\n" in str(error):
            print(name, "says", error)
    if sorted(out.iterdir()) != before:
        print(name, "left", sorted(out.iterdir()))
print("done")
"""


def test_a_full_disk_is_one_line_whatever_is_written(tiny_disk: Path) -> None:
    process = start("-c", SCRIPT, str(tiny_disk), repr(WRITERS))
    out, err = process.communicate()
    assert (process.returncode, out) == (0, "done\n"), err[-2000:]


# ---- images


ROOM = (
    r"num_images 1000000000000 needs 80,000,000,000,000 bytes, "
    r"and free are ([\d,]+ in memory and )?[\d,]+ on the disk"
)


def test_images_are_refused_where_there_is_no_room_for_them(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--teacher.weights", str(weights), "--out", str(tmp_path / "a" / "run")]
    for command in (["synthesize"], ["quantize"]):
        began = time.monotonic()
        assert cli.main([*command, *out, "--num-images", str(10**12)]) == 2
        said = capsys.readouterr().err
        assert re.search(ROOM, said)
        assert said.count("\n") == 1
        assert time.monotonic() - began < 20
        assert not (tmp_path / "a").exists()
    with pytest.raises(RunError, match=r"of 64,000,000,000,000 bytes: .*(left|large)"):
        ReplayBuffer(tmp_path / "replay_buffer", toys.SPEC, 10**12)
    assert not list((tmp_path / "replay_buffer").iterdir())


def test_room_in_memory_counts(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setattr(store, "free_memory", lambda: 6000)
    teacher = open_from(TeacherFile(weights=str(weights)))
    with pytest.raises(ConfigError, match="80 needs 6,400 bytes, and free are 6,000 in memory"):
        draw_images(teacher, "noise", NoiseConfig(), 80, seed=0)
    assert len(draw_images(teacher, "noise", NoiseConfig(), 75, seed=0)[0]) == 75


MEASURE = """
import json, resource, sys
from pathlib import Path
from dreamstill.cli import main as cli
arguments = json.loads(sys.argv[1])
assert cli.main(arguments) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_grows_by_the_images_alone(weights: Path, tmp_path: Path) -> None:
    peaks = []
    for num in (512, 8704):
        out = ["--teacher.weights", str(weights), "--out", str(tmp_path / str(num))]
        command = ["synthesize", *out, "--json", "--num-images", str(num), "--method", "noise"]
        process = start("-c", MEASURE, json.dumps(command))
        text, err = process.communicate()
        assert process.returncode == 0, err
        peaks.append(int(text.splitlines()[-1]) * 1024)
    assert (peaks[1] - peaks[0]) / 8192 < 2048  # 20 KB once


DAMAGED_IMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "black": lambda path: np.save(path, np.zeros((60, 1, 8, 8), np.uint8)),
    "of another type": lambda path: np.save(path, np.zeros((60, 1, 8, 8), np.float32)),
    "cut": lambda path: changed(path, lambda data: data[:-100]),
}


@pytest.mark.parametrize("damage", DAMAGED_IMAGES)
def test_images_on_the_way_are_those_that_were_written(
    damage: str, weights: Path, tmp_path: Path
) -> None:
    job, done = job_of(weights, student="none:none"), 0

    def stop(progress: Progress) -> None:
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "run", toys.images_job(job, 60), on_progress=stop)
    DAMAGED_IMAGES[damage](tmp_path / "run" / "images.npy")
    with pytest.raises(RunError):
        synthesize(tmp_path / "run", toys.images_job(job, 60), resume=True)
    assert not (tmp_path / "run" / "images.npz").exists()


# ---- no dead ends


def test_a_folder_of_what_was_not_finished_is_empty(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".settings.123.tmp.json", ".lock", ".student.99.tmp.safetensors", ".x.tmp"):
        (folder / name).write_bytes(b"{")
    check_empty(folder)
    run(folder, job_of(weights))
    assert {path.name for path in folder.glob(".*")} <= {".x.tmp"}


def test_hidden_files_of_others_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("x")
    with pytest.raises(RunError, match="is not empty"):
        check_empty(tmp_path)


@dataclasses.dataclass
class Case:
    """A command with a mistake that its first batch finds."""

    arguments: list[str]
    wrong: list[str]
    right: list[str]


def cases(weights: Path, tmp_path: Path) -> dict[str, Case]:
    np.savez(tmp_path / "new.npz", x=np.zeros((8, 1, 8, 8), np.uint8), y=np.arange(8) % 2 + 4)
    of = ["--teacher.weights", str(weights)]
    method = ["--method", "dafl", "--synthesis.batch_size", "8"]
    images = ["--num-images", "64", *method]
    wrong, right = (["--synthesis.lr", lr] for lr in ("0.9", "0.1"))
    student = [
        "--student",
        "toys:student",
        "--distill.steps",
        "8",
        "--distill.num_validation",
        "16",
    ]
    new = ["--new", str(tmp_path / "new.npz"), "--learn_classes.steps", "2"]
    return {
        "distill": Case(["distill", *of, *student, *method], wrong, right),
        "synthesize": Case(["synthesize", *of, *images], wrong, right),
        "continual": Case(["learn_classes", *of, *new, *images], wrong, right),
        "compress": Case(["quantize", *of, *images], wrong, right),
    }


@pytest.mark.parametrize("name", ["distill", "synthesize", "continual", "compress"])
@pytest.mark.parametrize("given", ["nothing", "a folder"])
def test_the_corrected_command_works_in_the_same_folder(
    name: str,
    given: str,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loss(logits: torch.Tensor, features: torch.Tensor, config: DaflConfig) -> torch.Tensor:
        return logits.sum() * (float("nan") if config.lr > 0.5 else 1)

    monkeypatch.setattr(dafl, "dafl_loss", loss)
    case, folder = cases(weights, tmp_path)[name], tmp_path / "a" / "b" / "run"
    if given == "a folder":
        folder.mkdir(parents=True)
        folder.chmod(0o711)
    before = folder.stat() if folder.exists() else None
    assert cli.main([*case.arguments, *case.wrong, "--out", str(folder)]) == 2
    assert re.search("not finite|became", capsys.readouterr().err)
    if before is None:
        assert not (tmp_path / "a").exists()
    else:
        assert not list(folder.iterdir())
        after = folder.stat()
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert cli.main([*case.arguments, *case.right, "--out", str(folder)]) == 0


def test_metadata_that_cannot_be_recorded_leaves_no_folder(weights: Path, tmp_path: Path) -> None:
    images = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    teacher = open_from(TeacherFile(weights=str(weights)))
    with pytest.raises(DataError, match="at least 2 images of every class"):
        record_metadata(teacher, images, tmp_path / "a" / "b" / "m.safetensors")
    assert not (tmp_path / "a").exists()


def test_what_others_put_into_the_folder_stays(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def note(progress: Progress) -> None:
        (folder / "notes.txt").write_text("mine")
        raise NonFiniteError("a loss")

    job = job_of(weights, checkpoint_every=100.0)
    with pytest.raises(NonFiniteError):
        distill(folder, job, open_from(job.teacher), on_progress=note)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_stays_of_what_fails_before_it_is_worth_anything(
    error: type[BaseException], weights: Path, tmp_path: Path
) -> None:
    def fail(progress: Progress) -> None:
        raise error

    job = job_of(weights, checkpoint_every=100.0)
    with pytest.raises(error):
        distill(tmp_path / "a" / "run", job, open_from(job.teacher), on_progress=fail)
    with pytest.raises(error):
        synthesize(tmp_path / "a" / "images", toys.images_job(job, 64), on_progress=fail)
    assert not (tmp_path / "a").exists()


def test_a_run_that_was_killed_at_its_start_is_taken_up(weights: Path, tmp_path: Path) -> None:
    """Before the first checkpoint there is config.json, with the other first files or alone."""
    job = job_of(weights)
    for whole in (True, False):
        for make in ("distill", "synthesize"):
            folder = tmp_path / f"{make} {whole}"
            script = (
                "import os, sys, pickle; from pathlib import Path\n"
                "from dreamstill.pipelines import run_directory\n"
                "from dreamstill.pipelines.distill import distill\n"
                "from dreamstill.pipelines.synthesize import synthesize\n"
                "from dreamstill.loaders.teacher_file import open_from\nimport toys\n"
                "job, path, whole, make = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
                "die = lambda *_, **__: os._exit(9)\n"
                "if not whole: run_directory.environment = die\n"
                "if make == 'distill':\n"
                "    distill(path, job, open_from(job.teacher), on_progress=die)\n"
                "synthesize(path, toys.images_job(job, 40), on_progress=die)"
            )
            data = pickle.dumps((replace(job, checkpoint_every=100.0), folder, whole, make)).hex()
            process = start("-c", script, data)
            process.communicate()
            assert process.returncode == 9
            assert (folder / "config.json").is_file()
            job_again = replace(job, checkpoint_every=100.0)
            if make == "distill":
                run(folder, job_again, resume=True)
            else:
                synthesize(folder, toys.images_job(job_again, 40), resume=True)
            assert (folder / "environment.json").is_file()
            assert not list(folder.glob(".*"))


def test_a_finished_set_of_images_is_told_of_again(weights: Path, tmp_path: Path) -> None:
    job = job_of(weights)
    made = synthesize(tmp_path / "run", toys.images_job(job, 40))
    assert synthesize(tmp_path / "run", toys.images_job(job, 40), resume=True) == made
    with pytest.raises(RunError, match="another num_images"):
        synthesize(tmp_path / "run", toys.images_job(job, 41), resume=True)
    with pytest.raises(RunError, match="holds no run of distill"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(
    "command", [["report"], ["export"], ["evaluate", "--images", "x.npz"], ["distill", "--resume"]]
)
def test_a_run_of_an_earlier_version_is_refused_in_a_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text('{"method": "noise", "student": "a:b"}')
    assert cli.main([*command, str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds a run of an earlier version, whose settings have other names now" in error
