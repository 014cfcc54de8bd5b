"""Two processes on two cores beside one: how much faster, and is the student as good?

    python -m benchmarks processes --data FOLDER

Throughput is of a wide CNN to its half on stored images: one process with one thread, one with two,
and two with one thread each take turns in this one run, on a machine where nothing else runs. Then
LeNet-5 of MNIST is distilled to its half from random weights by one process and by two, three seeds
each, with nothing else set.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dreamstill.distillation.config import FinetuneConfig
from dreamstill.distillation.model_selection import ModelSelector
from dreamstill.distillation.trainer import Trainer
from dreamstill.files.writing import write_json
from dreamstill.input_spec import InputSpec
from dreamstill.nn.plain_cnn import plain_cnn, plain_cnn_half
from dreamstill.pipelines.process import flush_denormals
from dreamstill.pipelines.run_directory import environment
from dreamstill.process_group import is_main, together
from dreamstill.synthesis.validation_set import validation_set
from dreamstill.teacher import Teacher

__all__ = ["main", "steps"]

WAYS = {
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two processes, one thread each": (2, 1),
}
"""Processes and threads of each."""
TEACHER = Path(__file__).parent / "teachers" / "lenet5_mnist.safetensors"


def steps(num: int, batch_size: int) -> None:
    """Take steps of a wide CNN's half on random images, and print the seconds of each but two."""
    flush_denormals()
    with together():
        spec = InputSpec((3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
        teacher = Teacher(plain_cnn(), spec, precision="bfloat16")
        config = FinetuneConfig(
            steps=num, batch_size=batch_size, num_validation=16, validate_every=num
        )
        validation = validation_set(teacher, config.num_validation)
        rng = torch.Generator().manual_seed(0)
        batch = spec.encode(spec.noise(batch_size)), None
        selector = ModelSelector(validation, spec, teacher.output_kind)
        trainer = Trainer(teacher, plain_cnn_half(), [batch] * num, selector, config, rng=rng)
        spent, begun = [], time.perf_counter()
        for _ in trainer.run():
            spent.append(time.perf_counter() - begun)
            begun = time.perf_counter()
        if is_main():
            print(json.dumps(spent[1:-1]))


def ran(processes: int, threads: int, *arguments: str) -> str:
    """Run a module in processes of some threads; return what it prints."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
    result = subprocess.run(
        [*command, "-m", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(result.stderr[-2000:])
    return result.stdout


def throughput(turns: int, num: int, batch_size: int) -> dict[str, Any]:
    """Time the ways in turns; return images per second, and the ratio to one thread by turn."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(turns):
        for way, (processes, threads) in WAYS.items():
            arguments = ("benchmarks.processes", "--steps", str(num), "--batch", str(batch_size))
            printed = ran(processes, threads, *arguments).splitlines()[-1]
            seconds[way].append(statistics.median(json.loads(printed)))
    alone = seconds[next(iter(WAYS))]
    return {
        way: {
            "images_per_second": round(batch_size / statistics.median(spent), 1),
            "times_one_thread": [
                round(one / own, 3) for one, own in zip(alone, spent, strict=True)
            ],
        }
        for way, spent in seconds.items()
    }


def accuracies(data: Path, seeds: int, num: int) -> dict[str, Any]:
    """Distill LeNet-5 to its half by one process and by two; return test accuracies in percent."""
    found: dict[str, Any] = {}
    for processes in (1, 2):
        runs = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                ran(
                    *(processes, 1, "dreamstill", "distill", str(TEACHER), "--seed", str(seed)),
                    *("--student", "dreamstill.nn.lenet:lenet5_half", "--inherit", "false"),
                    *("--steps", str(num), "--real", str(data / "mnist.npz"), "--out", str(out)),
                )
                summary = json.loads((out / "summary.json").read_text())
            runs.append(round(100 * summary["student"]["accuracy"], 2))
            print(f"{processes} process(es), seed {seed}: {runs[-1]} %", flush=True)
        found[f"LeNet-5 of MNIST by {processes}"] = {
            "accuracy_mean": round(statistics.mean(runs), 2),
            "accuracy_std": round(statistics.stdev(runs), 2) if seeds > 1 else None,
            "accuracies": runs,
        }
    return found


def main() -> None:
    """Time and distill; write the record."""
    parser = argparse.ArgumentParser(description="Two processes beside one.")
    parser.add_argument(
        "--data", type=Path, help="folder of mnist.npz; without it nothing is distilled"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--distill-steps", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3, help="of throughput; 0: leave it as it is")
    parser.add_argument("--steps", type=int, help="take these steps and print their seconds")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/processes.json"))
    args = parser.parse_args()
    if args.steps is not None:
        steps(args.steps, args.batch)
        return
    record: dict[str, Any] = {
        "name": "processes",
        "data": "a wide CNN to its half in bfloat16; LeNet-5 of MNIST to its half",
        "environment": environment("cpu"),
    }
    if args.out.is_file():  # a part of it may be made anew
        record |= json.loads(args.out.read_text())
    if args.turns:
        timed = throughput(args.turns, 10, args.batch)
        record["rows"] = record.get("rows", {}) | timed
        print(json.dumps(timed, indent=2), flush=True)
        write_json(args.out, record)
    if args.data is not None:
        record["rows"] = record.get("rows", {}) | accuracies(
            args.data, args.seeds, args.distill_steps
        )
    write_json(args.out, record)


if __name__ == "__main__":
    main()
