"""Digests of what short runs of every kind end with, to see that a change left every bit alone.

    python -m benchmarks same_bits            # before the change, and after it

The runs are those of `kills`, and a compression by the tasks that it leaves out. Weights and images
are hashed, not the names of files or fields, which may change.
"""

import argparse
import hashlib
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.kills import TUNE, Case, cases, prepare, stages_of
from dreamstill.pipelines.compress import run_compression
from dreamstill.pipelines.config import CompressJob, read_job
from dreamstill.pipelines.process import flush_denormals

REST = [
    {"task": "prune", "keep": 0.8, "rounds": 2, "finetune": TUNE},
    {"task": "merge", "keep": 0.8, "finetune": TUNE},
    {"task": "factorize", "keep": 0.8, "reconstruct": 64},
    {"task": "quantize", "weight_bits": 4, "activation_bits": 4, "finetune": TUNE},
    {"task": "pack", "rounds": 1, "keep": 0.3, "finetune": TUNE},
]


def digest_of(found: dict[str, Any]) -> str:
    """Return the digest of a run's tensors and images, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(found):
        if isinstance(found[name], bytes) and not name.endswith((".onnx", ".packed")):
            digest.update(found[name])
    return digest.hexdigest()[:16]


def main() -> None:
    flush_denormals()
    parser = argparse.ArgumentParser(description="Digests of what short runs end with.")
    parser.add_argument("--teachers", type=Path, default=Path("benchmarks/teachers"))
    weights = parser.parse_args().teachers / "lenet5_bn_mnist.safetensors"
    with tempfile.TemporaryDirectory() as temporary:
        prepare(weights, Path(temporary))
        runs = cases(weights, Path(temporary))
        plain = {"teacher": {"weights": str(weights)}, "num_images": 128, "stage": REST}
        rest = read_job(CompressJob, plain | {"synthesis": {"batch_size": 16}})
        runs["compress by the rest"] = Case(
            lambda at, resume: run_compression(at, rest, resume=resume), stages_of
        )
        for number, (name, case) in enumerate(runs.items()):
            folder = Path(temporary) / f"run {number}"
            case.run(folder, False)
            print(f"{digest_of(case.found(folder))}  {name}", flush=True)


if __name__ == "__main__":
    main()
