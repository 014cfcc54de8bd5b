"""Run one benchmark by name.

    python -m benchmarks --list
    python -m benchmarks NAME --data FOLDER [--rows ROW ...] [--seeds N] [--resume] [--tiny]

Each benchmark is a TOML file in configs/. Studies of their own are modules of this package, run by
the same command with options of their own: `python -m benchmarks kills --help`.
"""

import argparse
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from benchmarks.kinds import open_kind
from benchmarks.runner import CONFIGS, RECORDS, Kind, Record, run
from dreamstill.pipelines.process import flush_denormals

STUDIES = (
    "any_teacher_networks",
    "architectures",
    "bad_inputs",
    "black_box",
    "cost",
    "curve",
    "device_files",
    "efficientnet",
    "filled_shapes_data",
    "front",
    "goal",
    "independent",
    "kills",
    "kl_directions",
    "memory",
    "onnx_operators",
    "peers",
    "pictures",
    "processes",
    "robustness",
    "same_bits",
    "score",
    "speed",
    "table",
    "train_teacher",
)


def first_line(path: Path) -> str:
    """Return the sentence in which a file says what it is."""
    return path.read_text().partition("\n")[0].strip('"# ')


def names() -> list[str]:
    """Return the benchmarks that TOML files describe; those whose names begin with _ are bases."""
    return sorted(path.stem for path in CONFIGS.glob("[!_]*.toml"))


def listing() -> str:
    """Return the names of all benchmarks and studies, with a sentence each."""
    paths = {name: CONFIGS / f"{name}.toml" for name in names()}
    for name in STUDIES:
        package = Path(__file__).with_name(name)
        paths[name] = package / "__main__.py" if package.is_dir() else package.with_suffix(".py")
    return "\n".join(f"{name:32} {first_line(path)}" for name, path in paths.items())


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the options of a benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Run a benchmark and write its record."
    )
    parser.add_argument("name", choices=names(), metavar="NAME", help="see --list")
    default = os.environ.get("DREAMSTILL_DATA")
    parser.add_argument("--data", type=Path, default=default, help="folder of data .npz")
    parser.add_argument("--teachers", type=Path, default=Path("benchmarks/teachers"))
    parser.add_argument("--out", type=Path, help="JSON record [benchmarks/records/NAME.json]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="by name [all]")
    parser.add_argument("--sources", nargs="+", metavar="SOURCE", help="of images, by name [all]")
    parser.add_argument("--resume", action="store_true", help="add the runs that the record lacks")
    parser.add_argument("--reuse", type=Path, help="take rows of the same settings from a record")
    parser.add_argument("--tiny", action="store_true", help="one short run; writes no record")
    args = parser.parse_args(arguments)
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    args.kind = open_kind(args.name, args.data, args.teachers, tiny=args.tiny)
    args.cells = cells = args.kind.cells()
    for option in ("row", "source"):
        known = dict.fromkeys(filter(None, (getattr(cell, option) for cell in cells)))
        wanted = getattr(args, f"{option}s") or list(known)
        if unknown := [name for name in wanted if name not in known]:
            parser.error(f"unknown {option} {unknown[0]!r}; known: {'; '.join(known)}")
        args.cells = [cell for cell in args.cells if getattr(cell, option) in (None, *wanted)]
    if not args.cells:
        parser.error(f"none of these rows has images of {' or '.join(args.sources)}")
    for path in args.kind.needed(args.cells):
        if not path.is_file():
            folder = "--data" if path.suffix == ".npz" else "--teachers"
            parser.error(f"there is no {path}: give {folder} FOLDER")
    return args


def head_of(name: str, kind: Kind) -> dict[str, Any]:
    """Return what stands in a record before its rows."""
    head = {"name": name} | kind.described()
    if kind.names_teacher:
        card = json.loads(kind.weights.with_suffix(".json").read_text())
        keys = ("factory", "accuracy", "trained_on", "settings")
        head["teacher"] = {key: card[key] for key in keys}
    return head


def main(arguments: list[str]) -> None:
    if arguments == ["--list"]:
        print(listing())
    elif arguments and arguments[0] in STUDIES:
        sys.argv = arguments
        runpy.run_module(f"benchmarks.{arguments[0]}", run_name="__main__", alter_sys=True)
    else:
        flush_denormals()
        args = parse(arguments)
        out = args.out or RECORDS / f"{args.name}.json"
        head = head_of(args.name, args.kind)
        record = Record(None if args.tiny else out, args.kind, head, resume=args.resume)
        cells = record.reuse(args.reuse, args.cells) if args.reuse else args.cells
        run(args.kind, cells, record, 1 if args.tiny else args.seeds)


if __name__ == "__main__":
    main(sys.argv[1:])
