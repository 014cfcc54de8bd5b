"""Runs that are killed and resumed: do they end as those that nothing interrupted?

    python -m benchmarks kills

Every method makes images and a student, a compression has four stages, and a network learns two new
classes: each once without interruption, then again with `kill -9` at random moments, resumed until
it ends. Then two processes resume each kind of folder at the same time: one of them is refused.

All are of LeNet-5 with BatchNorm at a size that takes seconds. Processes are forked, so that a
restart costs no import, and the parent computes nothing itself.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

import dreamstill
from dreamstill.data.images import load_images
from dreamstill.distillation.config import DistillConfig
from dreamstill.errors import DreamstillError
from dreamstill.files.writing import write_json
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.config import (
    CompressJob,
    DistillJob,
    JobConfig,
    LearnClassesStage,
    StageConfig,
    SynthesizeJob,
    read_job,
)
from dreamstill.pipelines.distill import distill
from dreamstill.pipelines.process import flush_denormals
from dreamstill.pipelines.run_directory import environment
from dreamstill.pipelines.synthesize import synthesize
from dreamstill.synthesis.activation_statistics import record_metadata
from dreamstill.synthesis.registry import METHODS

__all__ = ["Case", "cases", "killed", "killed_and_resumed", "two_at_once"]

SIZES = {
    "batch_size": 16,
    "steps": 3,
    "low_resolution_steps": 0,
    "generator_steps": 2,
    "student_steps": 2,
    "widths": (8, 4),
    "memory": 40,
    "latent": 8,
}
"""Of methods, as far as they have such a setting."""
STUDENT = DistillConfig(
    steps=24,
    batch_size=16,
    num_validation=32,
    prefill=32,
    fresh_every=3,
    buffer_size=64,
    validate_every=8,
)
TUNE = {"steps": 6, "batch_size": 16, "num_validation": 16, "validate_every": 3}
STAGE_TABLES = [
    {"task": "distill", "student": "dreamstill.nn.lenet:lenet5_half_bn", **TUNE},
    {"task": "prune", "keep": 0.8, "rounds": 2, "finetune": TUNE},
    {"task": "int8"},
    {"task": "pack", "rounds": 1, "finetune": TUNE},
]
SLOW = ("torch._dynamo", "torch.onnx", "torch.export", "torchao", "torch_pruning", "onnxruntime")
"""Imports that every process would do anew."""
FAILED, REFUSED = 1, 2
"""What a forked process exits with."""


@dataclass(frozen=True)
class Case:
    """A run that can be resumed, and what of its folder has to come out alike."""

    run: Callable[[Path, bool], object]
    """In a folder, new or resumed."""
    found: Callable[[Path], Any]
    """Plain values that are equal where the runs are."""


def small(method: str, **changes: Any) -> Any:
    """A method's settings at a size that takes seconds."""
    kind = METHODS[method].config
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in (SIZES | changes).items() if name in known})


def cases(weights: Path, folder: Path) -> dict[str, Case]:
    """Every run, by name; `folder` has the inputs that `prepare` made."""
    teacher = TeacherFile(weights=str(weights))
    found: dict[str, Case] = {}
    for method in METHODS:
        job = DistillJob(
            teacher=teacher,
            student="dreamstill.nn.lenet:lenet5_half_bn",
            method=method,
            synthesis=small(method, file=str(folder / "metadata.safetensors")),
            distill=STUDENT,
            checkpoint_every=0.05,
        )
        found[f"distill, {method}"] = Case(
            lambda at, resume, job=job: distill(at, job, open_from(job.teacher), resume=resume),  # type: ignore[misc]
            student_of,
        )
        if not job.needs_student:
            shared = {field.name: getattr(job, field.name) for field in fields(JobConfig)}
            images = SynthesizeJob(**shared, num_images=100)
            found[f"synthesize, {method}"] = Case(
                lambda at, resume, job=images: synthesize(at, job, resume=resume),  # type: ignore[misc]
                arrays_of,
            )
    plain = {"teacher": {"weights": str(weights)}, "num_images": 128, "stage": STAGE_TABLES}
    compression = read_job(CompressJob, plain | {"synthesis": {"batch_size": 16}})
    found["compress"] = Case(
        lambda at, resume: run_compression(at, compression, resume=resume), stages_of
    )
    learning = CompressJob(
        teacher=teacher,
        num_images=128,
        method="structured_noise",
        synthesis=small("structured_noise"),
        stages=(
            StageConfig(
                task="learn_classes",
                config=LearnClassesStage(new=str(folder / "new.npz"), steps=40, batch_size=16),
            ),
        ),
    )
    found["learn_classes"] = Case(
        lambda at, resume: run_compression(at, learning, resume=resume),
        lambda at: tensors_of(at / "network.safetensors") | arrays_of(at),
    )
    return found


def prepare(weights: Path, folder: Path) -> None:
    """Write what the runs are given: images of new classes, and the teacher's metadata."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 1, 28, 28), np.uint8)
    np.savez(folder / "new.npz", x=x, y=np.arange(64) % 2 + 10)
    teacher = open_from(TeacherFile(weights=str(weights)))
    digits = Path(dreamstill.__file__).parent / "assets" / "digits.npz"
    images, _ = load_images(digits, teacher.input_spec, teacher.num_classes)
    record_metadata(teacher, images, folder / "metadata.safetensors")


def tensors_of(path: Path) -> dict[str, Any]:
    """Of a .safetensors file, as bytes."""
    return {name: value.tobytes() for name, value in load_file(path).items()}


def arrays_of(folder: Path) -> dict[str, Any]:
    """Of images.npz, as bytes."""
    with np.load(folder / "images.npz") as archive:
        return {name: archive[name].tobytes() for name in archive.files}


def student_of(folder: Path) -> dict[str, Any]:
    """The student, the images that it learned from, its losses, and how it was chosen."""
    log = (folder / "log.jsonl").read_text().splitlines()
    losses = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in log]
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"]
    images = (folder / "replay_buffer" / "images.npy").read_bytes()
    return {"log": losses, "result": result, "images": images} | tensors_of(
        folder / "student.safetensors"
    )


def stages_of(folder: Path) -> dict[str, Any]:
    """The images, every stage's network and the files that were made of it."""
    found = arrays_of(folder)
    for path in sorted((folder / "stages").iterdir()):
        if path.suffix == ".pt":
            state = torch.load(path, weights_only=False).state_dict()  # we wrote it
            found |= {f"{path.name} {k}": v.numpy().tobytes() for k, v in state.items()}
        elif path.suffix in (".onnx", ".packed"):
            found[path.name] = path.read_bytes()
    return found


def forked(work: Callable[[], object], said: Path) -> int:
    """Start a process that does some work; what it raises is written to a file."""
    if child := os.fork():
        return child
    code = FAILED
    try:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        work()
        code = 0
    except DreamstillError as error:
        said.write_text(str(error))
        code = REFUSED
    except BaseException:
        said.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def ended(child: int, said: Path) -> None:
    """Wait for a process that is to end well."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise SystemExit(f"a run ended with {code}: {said.read_text() if said.exists() else ''}")


def begin(case: Case, folder: Path, said: Path) -> int:
    """Start a run, or resume it where it has been started."""
    resume = (folder / "config.json").is_file()
    return forked(lambda: case.run(folder, resume), said)


def killed(case: Case, folder: Path, said: Path, delay: float) -> bool:
    """Start or resume a run and kill it after so many seconds; False where it had ended."""
    child = begin(case, folder, said)
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if code := os.waitstatus_to_exitcode(status):
                raise SystemExit(f"a run ended with {code}: {said.read_text()}")
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def killed_and_resumed(
    case: Case, folder: Path, rng: random.Random, *, kills: int, seconds: float
) -> int:
    """Kill a run at random moments, then let it end; how many kills met it at work.

    Args:
        case: the run.
        folder: of it; new.
        rng: of the moments.
        kills: at most.
        seconds: that the run takes.

    """
    met, said = 0, folder.with_suffix(".txt")
    for _ in range(kills):
        if not killed(case, folder, said, rng.uniform(0, seconds)):
            break
        met += 1
    ended(begin(case, folder, said), said)
    return met


def two_at_once(case: Case, folder: Path) -> bool:
    """Let two processes resume a run at the same time: one is refused, in a line.

    False where the second came when the first had ended.
    """
    paths = [folder.with_suffix(f".{number}.txt") for number in range(2)]
    children = [begin(case, folder, said) for said in paths]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if codes == [0, 0]:
        return False
    if sorted(codes) != [0, REFUSED]:
        told = [path.read_text() for path in paths if path.exists()]
        raise SystemExit(f"two processes ended with {codes}: {told}")
    message = paths[codes.index(REFUSED)].read_text()
    refusals = ("another process is at work", "is not empty")  # the latter: before its settings lay
    if not any(refusal in message for refusal in refusals) or "\n" in message:
        raise SystemExit(f"the second process says {message!r}")
    return True


def row_of(name: str, case: Case, folder: Path, rng: random.Random, kills: int) -> dict[str, Any]:
    """Run a case without interruption, with, and by two processes at once."""
    whole, cut, both = (folder / kind for kind in ("whole", "cut", "both"))
    start = time.monotonic()
    ended(begin(case, whole, folder / "whole.txt"), folder / "whole.txt")
    seconds = time.monotonic() - start
    wanted, met = case.found(whole), 0
    while met < kills:
        shutil.rmtree(cut, ignore_errors=True)
        met += killed_and_resumed(case, cut, rng, kills=kills - met, seconds=seconds)
        if case.found(cut) != wanted:
            raise SystemExit(f"{name}: a run that was killed ended otherwise, in {cut}")
        if left := [path.name for path in cut.rglob(".*")]:
            raise SystemExit(f"{name}: a run that was killed left {left}")
    while not (killed(case, both, folder / "both.txt", 0.3 * seconds) and two_at_once(case, both)):
        shutil.rmtree(both)
    if case.found(both) != wanted:
        raise SystemExit(f"{name}: a run that two processes resumed ended otherwise")
    return {"seconds": round(seconds, 2), "kills": met, "ended": "the same", "second": "refused"}


def main() -> None:
    flush_denormals()
    torch.set_num_threads(1)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for name in SLOW:
        importlib.import_module(name)
    parser = argparse.ArgumentParser(description="Runs that are killed and resumed.")
    parser.add_argument("--teachers", type=Path, default=Path("benchmarks/teachers"))
    parser.add_argument("--kills", type=int, default=2, help="of each run; twice for compress [2]")
    parser.add_argument("--runs", nargs="+", help="by name, such as 'distill, dafl' [all]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/kills.json"))
    args = parser.parse_args()
    weights = args.teachers / "lenet5_bn_mnist.safetensors"
    rng, rows = random.Random(args.seed), {}
    with tempfile.TemporaryDirectory() as temporary:
        said = Path(temporary) / "prepare.txt"
        ended(forked(lambda: prepare(weights, Path(temporary)), said), said)
        found = cases(weights, Path(temporary))
        if unknown := {*(args.runs or ())} - found.keys():
            parser.error(f"unknown run {unknown.pop()!r}; known: {'; '.join(found)}")
        for name, case in found.items():
            if args.runs and name not in args.runs:
                continue
            folder = Path(temporary) / name
            folder.mkdir()
            kills = args.kills * (2 if name in ("compress", "learn_classes") else 1)
            rows[name] = row_of(name, case, folder, rng, kills)
            print(name, rows[name], flush=True)
            shutil.rmtree(folder)
    total = sum(row["kills"] for row in rows.values())
    print(f"{total} kills, all resumed to the same bits; {len(rows)} second processes refused")
    record = {
        "name": "kills",
        "data": "runs killed at random moments and resumed: seconds without a kill, kills, the end",
        "settings": {"kills": args.kills, "seed": args.seed},
        "environment": environment("cpu"),
        "rows": rows,
    }
    write_json(args.out, record)


if __name__ == "__main__":
    main()
