"""Bad inputs and damaged files against every verb and reader: what is not answered as it should be.

    python -m benchmarks bad_inputs [--every 1] [--damaged 5000] [--only WORDS]

Every case of `bad_cases` and `bad_values` must be answered within 10 s by exit code 2 and one line
of under 400 characters on stderr that names the value, and nothing may be left behind; a few are
run as processes of their own. Then whole files are damaged by chance and read: what is raised must
be one of our errors. Prints the counts, and what falls short.
"""

import argparse
import contextlib
import io
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.bad_cases import (
    INPUT,
    Case,
    Good,
    What,
    array_cases,
    file_cases,
    make_good,
    picture_cases,
    record_cases,
)
from benchmarks.bad_values import card_cases, number_cases, path_cases, toml_cases, weight_cases
from dreamstill.cli import main as cli
from dreamstill.compression.deep_compression.file_format import load_packed
from dreamstill.config import read_plain
from dreamstill.data.images import load_images, load_unlabelled
from dreamstill.errors import DreamstillError
from dreamstill.exporters.formats import load_exported
from dreamstill.loaders.card import read_card
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.state_dict import load_module
from dreamstill.loaders.teacher_file import open_from
from dreamstill.synthesis.activation_statistics import load_metadata

LONGEST, SECONDS, PROCESSES = 400, 10.0, 10


class TooLong(BaseException):
    """No reader catches it."""


class Answer(NamedTuple):
    """What came back."""

    code: int
    out: str
    err: str
    seconds: float


def all_cases(good: Good) -> list[Case]:
    """Every case, each name once."""
    makers = [file_cases, record_cases, array_cases, picture_cases]
    makers += [card_cases, weight_cases, toml_cases, number_cases, path_cases]
    cases = {case.name: case for make in makers for case in make(good)}
    return list(cases.values())


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TooLong in the body where it takes longer."""

    def stop(number: int, frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def written_to(number: int) -> Iterator[Callable[[], str]]:
    """What libraries write to a file descriptor, past Python."""
    kept = os.dup(number)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), number)
        try:
            yield lambda: os.pread(file.fileno(), 10_000, 0).decode(errors="replace")
        finally:
            os.dup2(kept, number)
            os.close(kept)


def answer(what: What) -> Answer:
    """Run a command in this process, or call a reader; a reader's error is as a command's."""
    out, err = io.StringIO(), io.StringIO()
    start, code = time.monotonic(), 0
    with (
        written_to(1) as past_out,
        written_to(2) as past_err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        at_most(SECONDS),
    ):
        if isinstance(what, list):
            code = cli.main(what)
        else:
            try:
                what()
            except DreamstillError as error:
                code = 2
                print(f"dreamstill: {error}", file=sys.stderr)
        said = out.getvalue() + past_out(), err.getvalue() + past_err()
    return Answer(code, *said, time.monotonic() - start)


def as_process(what: What) -> Answer:
    """Run a command as a process of its own; what counts is its time on a processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "dreamstill.cli.main", *what]  # type: ignore[misc]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Answer(ran.returncode, ran.stdout, ran.stderr, spent)


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files below a folder; a folder in it just is there."""
    found = {}
    for path in folder.rglob("*"):
        seen = path.lstat()
        is_folder = stat.S_ISDIR(seen.st_mode)
        found[str(path)] = (0, 0) if is_folder else (seen.st_size, seen.st_mtime_ns)
    return found


def shortcoming(case: Case, run: Callable[[What], Answer] = answer) -> str:
    """What is wrong with the answer to a case; nothing where it is as it should be."""
    with tempfile.TemporaryDirectory() as name:
        what = case.prepare(Path(name))
        before = files_below(Path(name))
        try:
            got = run(what)
        except (Exception, TooLong, SystemExit) as error:
            return f"{type(error).__name__}: {error!s:.300}"
        left = {k for k, v in files_below(Path(name)).items() if before.get(k) != v}
        gone = before.keys() - files_below(Path(name)).keys()
    line = got.err.removesuffix("\n")
    wrong = {
        f"exit code {got.code}": got.code != 2,
        f"not one line: {got.err!r}": "\n" in line or not line.startswith("dreamstill: "),
        f"{len(line)} characters": len(line) >= LONGEST,
        f"does not say {case.says!r}: {line}": case.says not in line,
        f"on stdout: {got.out!r:.200}": bool(got.out),
        f"left behind: {sorted(left | gone)}": bool(left | gone),
        f"{got.seconds:.1f} s": got.seconds > SECONDS,
    }
    return "; ".join(text for text, is_so in wrong.items() if is_so)


def damaged_files(
    good: Good, num: int, seed: int = 0
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Whole files with something changed by chance, in turn, and what reads each.

    Yields the file's name and the call.
    """
    rng, weights = random.Random(seed), good.folder / "teacher.safetensors"
    pictures = good.folder / "pictures"
    pictures.mkdir(exist_ok=True)
    factory = "benchmarks.bad_cases:net"
    read: dict[str, Callable[[Path], object]] = {
        "teacher.safetensors": lambda path: load_module(factory, path),
        "teacher.pt": lambda path: load_module(factory, path),
        "teacher.json": read_card,
        "images.npz": lambda path: load_images(path, INPUT, 4),
        "metadata.safetensors": lambda path: load_metadata(path, good.teacher),
        "net.packed": load_packed,
        "run/config.json": read_plain,
        **{f"a.{kind}": _as_picture for kind in ("png", "jpeg", "bmp", "tiff", "webp")},
    }
    slow: dict[str, Callable[[Path], object]] = {
        "run/student.onnx": load_exported,
        "run/student.pt2": load_exported,
        "card": lambda path: open_from(TeacherFile(weights=str(weights), card=str(path))),
    }
    there = {name: good.folder / name for name in (*read, *slow)} | {
        "card": good.folder / "teacher.json"
    }
    whole = {name: path.read_bytes() for name, path in there.items() if path.is_file()}
    reads = read | slow
    names = [*read] * 8 + [name for name in slow if name in whole]
    for index in range(num):
        name = names[index % len(names)]
        suffix = ".json" if name == "card" else Path(name).suffix
        path = pictures / f"damaged{suffix}"
        path.write_bytes(changed(whole[name], rng))
        yield name, partial(reads[name], path)


def _as_picture(path: Path) -> object:
    """Read it from a folder of its own."""
    folder = path.parent / "alone"
    folder.mkdir(exist_ok=True)
    alone = folder / path.name
    path.replace(alone)
    try:
        return load_unlabelled(folder, INPUT)
    finally:
        alone.unlink()


def changed(data: bytes, rng: random.Random) -> bytes:
    """Bytes with something changed: cut, moved, doubled, or a few of them others."""
    new = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        # the heads of files are what is read first
        at = rng.randrange(len(new)) if rng.random() < 0.5 else rng.randrange(min(len(new), 300))
        kind = rng.randrange(7)
        if kind == 0:
            new[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            new[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, ord("9"), ord("["), ord("{")))
        elif kind == 2:
            new[at : at + 4] = rng.choice(
                (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\x80")
            )
        elif kind == 3 and len(new) > 100:
            del new[at : at + rng.randrange(1, 60)]
        elif kind == 4:
            new[at:at] = new[at : at + rng.randrange(1, 60)]
        elif kind == 5:
            other = rng.randrange(len(new))
            new[at : at + 8], new[other : other + 8] = new[other : other + 8], new[at : at + 8]
        elif rng.random() < 0.2:
            del new[max(20, at) :]
    return bytes(new)


def escapes(good: Good, num: int) -> Iterator[str]:
    """What is raised on damaged files and is no error of ours."""
    for name, read in damaged_files(good, num):
        try:
            with written_to(2) as past, at_most(SECONDS):
                read()
                said = past()
        except DreamstillError as error:
            if len(str(error)) >= LONGEST or "\n" in str(error):
                yield f"{name}: {error!s:.300}"
        except (Exception, TooLong) as error:
            yield f"{name}: {type(error).__name__}: {error!s:.300}"
        else:
            if said:
                yield f"{name}: wrote {said:.300}"


def check(
    good: Good, *, every: int, damaged: int, only: str = "", processes: int = 0
) -> tuple[Counter[str], list[str]]:
    """Run cases and damaged files; counts, and what falls short."""
    counts, short = Counter[str](), list[str]()
    cases = [case for case in all_cases(good) if only in case.name]
    for case in cases[::every]:
        counts["bad inputs"] += 1
        if wrong := shortcoming(case):
            short.append(f"{case.name}: {wrong}")
    for case in cases[:: max(1, len(cases) // processes)][:processes] if processes else ():
        with tempfile.TemporaryDirectory() as name:
            is_command = isinstance(case.prepare(Path(name)), list)
        if is_command:
            counts["of them as processes"] += 1
            if wrong := shortcoming(case, as_process):
                short.append(f"as a process: {case.name}: {wrong}")
    counts["damaged files"] = damaged
    short += escapes(good, damaged)
    counts["fall short"] = len(short)
    return counts, short


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Bad inputs against every verb and reader.")
    parser.add_argument("--every", type=int, default=1, help="run every so many-th case")
    parser.add_argument("--damaged", type=int, default=5000, help="files to damage by chance")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        counts, short = check(
            make_good(Path(folder)),
            every=args.every,
            damaged=args.damaged,
            only=args.only,
            processes=PROCESSES,
        )
    for name, count in counts.items():
        print(f"{count:6,} {name}")
    print(*short, sep="\n")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
