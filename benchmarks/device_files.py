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
"""Methods of the images that are not real."""


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
        yield f"floats, .{kind}", path
    for source in (*SOURCES, "real"):
        images = source_images(source, teacher, data, num_images)
        for kind in formats:
            path = folder / f"{source}.{kind}"
            export_int8(teacher.module, teacher.input_spec, images, path)
            yield f"int8 from {source} images, .{kind}", path


def measured(path: Path, teacher: Teacher, x: Tensor, y: Tensor, wanted: Tensor) -> dict[str, Any]:
    """Return what a file is and does: accuracy and agreement are in %."""
    run, runtime = load_exported(path), RUNTIMES[path.suffix[1:]]
    logits = answers(run, teacher.input_spec, x)
    latency = measure_latency(run, teacher.input_spec, num_runs=200, runtime=runtime)
    row = {
        "runtime": runtime,
        "bytes": path.stat().st_size,
        "accuracy": round(100 * accuracy(logits, y), 2),
        "agreement": round(100 * agreement(logits, wanted), 2),
        "latency_ms": round(latency.median, 3),
    }
    return row | ({"arena_bytes": arena_bytes(path.read_bytes())} if runtime == "LiteRT" else {})


def teacher_path(name: str, folders: list[Path]) -> Path:
    """Return the weights of a network in the first folder that has them; exit if none has."""
    paths = [folder / f"{name}.safetensors" for folder in folders]
    for path in paths:
        if path.is_file():
            return path
    raise SystemExit(f"there is no {' or '.join(map(str, paths))}: give --teachers FOLDER ...")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks device_files")
    default = os.environ.get("DREAMSTILL_DATA")
    parser.add_argument("--data", type=Path, default=default, required=default is None)
    parser.add_argument("--teachers", type=Path, nargs="+", required=True, help="folders of both")
    parser.add_argument("--formats", nargs="+", default=["onnx", "tflite"])
    parser.add_argument("--num_images", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/device_files.json"))
    args = parser.parse_args()
    paths = {name: teacher_path(name, args.teachers) for name in NETWORKS}
    flush_denormals()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # onnxruntime takes a thread a core
    record: dict[str, Any] = {
        "name": "device_files",
        "data": "accuracy on the test set in %; latency of one image on one core",
        "settings": {"num_images": args.num_images},
        "environment": environment("cpu"),
        "rows": {},
    }
    for name, data_set in NETWORKS.items():
        teacher = open_from(TeacherFile(weights=str(paths[name])))
        data = args.data / f"{data_set}.npz"
        x, y = load_images(data, teacher.input_spec, teacher.num_classes)
        wanted = predict(teacher.module, teacher.input_spec, x)
        with tempfile.TemporaryDirectory() as folder:
            made = files(teacher, data, Path(folder), args.formats, args.num_images)
            for row, file in made:
                figures = measured(file, teacher, x, y, wanted)
                record["rows"][f"{name}, {row}"] = figures
                print(name, row, figures, flush=True)
                write_json(args.out, record)


if __name__ == "__main__":
    main()
