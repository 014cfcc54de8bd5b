"""LeNet-5 and ResNet-20 as files for devices, floats and int8, each measured in its own runtime.

    pip install 'dreamstill[litert]'
    python -m benchmarks independent --data FOLDER --weights FILE --network resnet20 --out TEACHERS
    python -m benchmarks device_files --data FOLDER --teachers benchmarks/teachers TEACHERS

Accuracy is on the test sets of FOLDER's mnist.npz and cifar10.npz. int8 files are calibrated on
images of the default method, on noise, and on real images; nothing is set but their number. Half
of them calibrate; the files are compared on the others. Bytes of a .tflite file are also the flash
that its C array takes; arena_bytes is the estimate for TensorFlow Lite Micro.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamstill.data.images import load_images, load_unlabelled
from dreamstill.evaluation import accuracy, agreement, answers, predict
from dreamstill.exporters.c_array import arena_bytes
from dreamstill.exporters.formats import RUNTIMES, export, load_exported
from dreamstill.exporters.int8 import export_int8
from dreamstill.files.writing import write_json
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.process import flush_denormals
from dreamstill.pipelines.run_directory import environment
from dreamstill.pipelines.synthesize import draw_images
from dreamstill.profiling import measure_latency
from dreamstill.synthesis.presets import method_config
from dreamstill.teacher import Teacher

NETWORKS = {"lenet5_mnist": "mnist", "resnet20": "cifar10"}
"""Data set of each network."""
SOURCES = {"default": "image_programs", "noise": "noise"}


def source_images(source: str, teacher: Teacher, data: Path, num_images: int) -> Tensor:
    """Return the images that calibrate, uint8 (N, C, H, W)."""
    if source == "real":
        return load_unlabelled(data, teacher.input_spec)[:num_images]
    method = SOURCES[source]
    return draw_images(teacher, method, method_config(method, {}), num_images, seed=0)[0]


def files(
    teacher: Teacher, data: Path, folder: Path, formats: list[str], num_images: int
) -> Iterator[tuple[str, Path]]:
    """Write the files of a network, and yield a name and a path for each."""
    for kind in formats:
        path = folder / f"float.{kind}"
        export(teacher.module, path, teacher.input_spec)
        yield f"{kind}, floats", path
    for source in (*SOURCES, "real"):
        images = source_images(source, teacher, data, num_images)
        for kind in formats:
            path = folder / f"{source}.{kind}"
            export_int8(teacher.module, teacher.input_spec, images, path)
            yield f"{kind}, int8 from {source} images", path


def measured(path: Path, teacher: Teacher, x: Tensor, y: Tensor, wanted: Tensor) -> dict[str, Any]:
    """Return what a file is and does: accuracy and agreement are in %."""
    run, runtime = load_exported(path), RUNTIMES[path.suffix[1:]]
    logits = answers(run, teacher.input_spec, x)
    row = {
        "runtime": runtime,
        "bytes": path.stat().st_size,
        "accuracy": round(100 * accuracy(logits, y), 2),
        "agreement": round(100 * agreement(logits, wanted), 2),
        "latency_ms": asdict(measure_latency(run, teacher.input_spec, runtime=runtime)),
    }
    return row | ({"arena_bytes": arena_bytes(path.read_bytes())} if runtime == "LiteRT" else {})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks device_files")
    default = os.environ.get("DREAMSTILL_DATA")
    parser.add_argument("--data", type=Path, default=default, required=default is None)
    parser.add_argument(
        "--teachers", type=Path, nargs="+", required=True, help="folders of the two networks"
    )
    parser.add_argument("--formats", nargs="+", default=["onnx", "tflite"])
    parser.add_argument("--num_images", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/device_files.json"))
    args = parser.parse_args()
    flush_denormals()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "name": "device_files",
        "settings": {"num_images": args.num_images, "threads": 1},
        "environment": environment("cpu"),
        "networks": {},
    }
    for name, data_set in NETWORKS.items():
        paths = [folder / f"{name}.safetensors" for folder in args.teachers]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            parser.error(
                f"there is no {name}.safetensors in {' or '.join(map(str, args.teachers))}"
            )
        teacher, data = open_from(TeacherFile(weights=str(path))), args.data / f"{data_set}.npz"
        x, y = load_images(data, teacher.input_spec, teacher.num_classes)
        wanted = predict(teacher.module, teacher.input_spec, x)
        rows = record["networks"][name] = {"PyTorch": round(100 * accuracy(wanted, y), 2)}
        with tempfile.TemporaryDirectory() as folder:
            made = files(teacher, data, Path(folder), args.formats, args.num_images)
            for row, file in made:
                rows[row] = measured(file, teacher, x, y, wanted)
                print(name, row, rows[row], flush=True)
                write_json(args.out, record)


if __name__ == "__main__":
    main()
