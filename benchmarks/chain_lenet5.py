"""From a teacher's file to one int8 ONNX and one packed file, in one command: chain_lenet5.toml.

    python -m benchmarks.chain_lenet5 --data FOLDER

The chain is run for each seed; the accuracy of the int8 file is onnxruntime's, that of the packed
one is of the network decoded from it.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from dreamstill.chain import read_chain, run_chain
from dreamstill.flags import read_toml
from dreamstill.folder import environment
from dreamstill.run import settle_process

CHAIN = Path(__file__).with_suffix(".toml")


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description="A chain on LeNet-5.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/chain_lenet5.json"))
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    plain = read_toml(CHAIN)
    networks: list[list[dict[str, Any]]] = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            chain = read_chain(plain | {"seed": seed})
            made = run_chain(Path(folder) / "run", chain, real=args.data / "mnist.npz")
        networks.append([made["teacher"] | {"task": "teacher"}, *made["links"]])
        print(
            "seed", seed, [(n["task"], n["accuracy"], n["bytes"]) for n in networks[-1]], flush=True
        )
        record = {
            "name": "chain_lenet5",
            "data": "mnist",
            "settings": plain,
            "environment": environment("cpu"),
            "rows": {of[0]["task"]: row(of) for of in zip(*networks, strict=True)},
        }
        args.out.write_text(json.dumps(record, indent=2) + "\n")


def row(runs: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """A network of the chain over the seeds."""
    accuracies = [round(100 * run["accuracy"], 2) for run in runs]
    return {
        "accuracy_mean": round(statistics.mean(accuracies), 2),
        "accuracy_std": round(statistics.stdev(accuracies), 2) if len(runs) > 1 else None,
        "bytes": round(statistics.mean(run["bytes"] for run in runs)),
        "macs": round(statistics.mean(run["macs"] for run in runs)),
        "latency_ms": round(statistics.median(run["latency_ms"]["median"] for run in runs), 3),
        "runs": accuracies,
    }


if __name__ == "__main__":
    main()
