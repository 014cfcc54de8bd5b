"""int8 files of an independent CIFAR-10 ResNet-20, measured in their runtimes.

    python -m benchmarks.int8_resnet20 --data FOLDER --weights akamaster_cifar10_resnet20.th

Calibrated on 512 images of each source of `quantize_resnet20`; accuracy on the JPEG copy of
CIFAR-10. Latencies are medians for one image, all of one process after the other.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.independent import SPEC, open_resnet
from benchmarks.quantize_resnet20 import SOURCES, source_images
from dreamstill.evaluate import accuracy, agreement, load_images, measure_latency, predict
from dreamstill.export import export, load_exported
from dreamstill.run import environment, settle_process
from dreamstill.tasks.int8 import export_int8


def main() -> None:
    settle_process()
    parser = argparse.ArgumentParser(description="int8 files of ResNet-20.")
    parser.add_argument("--data", type=Path, default=os.environ.get("DREAMSTILL_DATA"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/int8_resnet20.json"))
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data FOLDER or set DREAMSTILL_DATA")
    data = args.data / "cifar10.npz"
    teacher = open_resnet(args.weights, 20)
    x, y = load_images(data, SPEC, 10)
    whole = predict(teacher.module, SPEC, x)
    record: dict[str, Any] = {
        "name": "int8_resnet20",
        "data": "CIFAR-10 (JPEG copy)",
        "settings": {"num_images": 1024},
        "environment": environment("cpu"),
        "rows": {},
    }

    def measured(row: str, path: Path) -> None:
        run = load_exported(path)
        logits = torch.cat([run(SPEC.encode(part)) for part in x.split(500)])
        record["rows"][row] = {
            "accuracy": round(100 * accuracy(logits, y), 2),
            "agreement": round(100 * agreement(logits, whole), 2),
            "bytes": path.stat().st_size,
            "latency_ms": round(measure_latency(run, SPEC).median, 2),
        }
        print(row, record["rows"][row], flush=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        for kind, runtime in (("onnx", "onnxruntime"), ("pt2", "PyTorch")):
            path = Path(folder) / f"whole.{kind}"
            export(teacher.module, SPEC, path)
            measured(f"FP32, {runtime}", path)
        for source in ("real", *SOURCES):
            images = source_images(source, teacher, data, 1024)
            for kind, runtime in (("onnx", "onnxruntime"), ("pt2", "PT2E")):
                path = Path(folder) / f"{source}.{kind}"
                export_int8(teacher.module, SPEC, images, path)
                measured(f"int8, {runtime}, {source}", path)


if __name__ == "__main__":
    main()
