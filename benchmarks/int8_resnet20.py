"""int8 files of an independent CIFAR-10 ResNet-20, measured in their runtimes: see `resnets`.

    python -m benchmarks.int8_resnet20 --data FOLDER --weights akamaster_cifar10_resnet20.th

Calibrated on 1,024 images of each source. Latencies are medians for one image, one file after the
other in one process for each seed; a row has the median of its seeds.
"""

import tempfile
from itertools import product
from pathlib import Path

from benchmarks.resnets import SPEC, open_study, source_images
from dreamstill.evaluation import answers
from dreamstill.exporters.formats import export, load_exported
from dreamstill.exporters.int8 import export_int8
from dreamstill.profiling import measure_latency

NUM_IMAGES = 1024
FP32 = (("onnx", "onnxruntime"), ("pt2", "PyTorch"), ("pte", "ExecuTorch"))
INT8 = (("onnx", "onnxruntime"), ("pt2", "PT2E"), ("pte", "ExecuTorch"))


def main() -> None:
    study = open_study("int8_resnet20", 20, {"num_images": NUM_IMAGES})
    teacher = study.teacher

    def measured(row: str, path: Path) -> None:
        run = load_exported(path)
        logits = answers(run, SPEC, study.x)
        latency = round(measure_latency(run, SPEC).median, 2)
        study.add(row, logits, bytes=path.stat().st_size, latency_ms=latency)

    with tempfile.TemporaryDirectory() as folder:
        for kind, runtime in FP32:
            path = Path(folder) / f"whole.{kind}"
            if study.lacks(row := f"FP32, {runtime}"):
                export(teacher.module, path, SPEC)
                measured(row, path)
        for seed, source in product(range(study.seeds), study.sources):
            rows = {f"int8, {runtime}, {source}": kind for kind, runtime in INT8}
            if not any(study.lacks(row, seed) for row in rows):
                continue
            images = source_images(source, teacher, study.data, NUM_IMAGES, seed)
            for row, kind in rows.items():
                if study.lacks(row, seed):
                    path = Path(folder) / f"{source}.{seed}.{kind}"
                    export_int8(teacher.module, SPEC, images, path)
                    measured(row, path)


if __name__ == "__main__":
    main()
