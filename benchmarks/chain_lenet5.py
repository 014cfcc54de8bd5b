"""From a teacher's file to one int8 ONNX and one packed file, in one command: chain_lenet5.toml.

    python -m benchmarks.chain_lenet5 --data FOLDER

The chain is run for each seed, on the images that it synthesizes itself, and on as many real ones
and of clipped noise; the accuracy of the int8 file is onnxruntime's, that of the packed one is of
the network decoded from it.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.compress import source_images
from benchmarks.protocol import made_rows, mean_and_std
from dreamstill.files.reading import read_toml
from dreamstill.files.writing import save_arrays
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.config import CompressJob, read_job
from dreamstill.pipelines.process import settle_process
from dreamstill.pipelines.run_directory import environment

CHAIN = Path(__file__).with_suffix(".toml")
SOURCES = ("ours", "real", "noise")


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description="A chain on LeNet-5.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/chain_lenet5.json"))
    parser.add_argument("--resume", action="store_true", help="make the rows the record lacks")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    record: dict[str, Any] = {
        "name": "chain_lenet5",
        "data": "mnist",
        "settings": read_toml(CHAIN),
        "environment": environment("cpu"),
        "rows": {},
    }
    commit = record["environment"]["commit"]
    if args.resume and (made := made_rows(args.out, record)):
        record["rows"] = made
        record["environment"] = json.loads(args.out.read_text())["environment"]
    for source in SOURCES:
        if row_name("pack", source) in record["rows"]:
            continue
        chains = [run(source, args.data / "mnist.npz", seed) for seed in range(args.seeds)]
        for networks in zip(*chains, strict=True):
            name = row_name(networks[0]["task"], source)
            record["rows"].setdefault(name, row(networks) | {"commit": commit})
            print(name, record["rows"][name], flush=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


def row_name(task: str, source: str) -> str:
    """Of a network of the chain, on other images than its own."""
    return task if source == "ours" or task == "teacher" else f"{task}, {source}"


def run(source: str, data: Path, seed: int) -> list[dict[str, Any]]:
    """The teacher's record and those of the stages."""
    plain = read_toml(CHAIN) | {"seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        if source != "ours":
            teacher = open_from(TeacherFile(**plain["teacher"]))
            images = Path(folder) / "images.npz"
            num = plain.pop("num_images")
            save_arrays(images, x=source_images(source, teacher, data, num, seed).numpy())
            plain["images"] = str(images)
        made = run_compression(Path(folder) / "run", read_job(CompressJob, plain), real=data)
    return [made["teacher"] | {"task": "teacher"}, *made["stages"]]


def row(runs: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """A network of the chain over the seeds."""
    accuracies = [round(100 * run["accuracy"], 2) for run in runs]
    return {
        **mean_and_std(accuracies),
        "bytes": round(statistics.mean(run["bytes"] for run in runs)),
        "macs": round(statistics.mean(run["macs"] for run in runs)),
        "latency_ms": round(statistics.median(run["latency_ms"]["median"] for run in runs), 3),
        "runs": accuracies,
    }


if __name__ == "__main__":
    main()
