"""Run the demo on the embedded teacher."""

from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from dreamstill.data.images import load_images
from dreamstill.distillation.config import DistillConfig
from dreamstill.files.reading import StrPath
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.config import DistillJob
from dreamstill.pipelines.distill import distill
from dreamstill.pipelines.jobs import OnProgress
from dreamstill.pipelines.summary import export_run, summarize
from dreamstill.report import write_report
from dreamstill.synthesis.config import NoiseConfig, StructuredNoiseConfig

__all__ = ["demo"]


def demo_jobs(weights: Path, seed: int, steps: int) -> tuple[DistillJob, DistillJob]:
    """Return the demo's job and its noise baseline, which differ in the method alone."""
    # small batches: on such a small network the number of steps matters more than their size
    distillation = DistillConfig(
        steps=steps, batch_size=64, lr=1e-3, validate_every=500, buffer_size=5000, inherit=True
    )
    job = DistillJob(
        teacher=TeacherFile(weights=str(weights)),
        student="dreamstill.nn.lenet:lenet5_half",
        method="structured_noise",
        synthesis=StructuredNoiseConfig(batch_size=64),
        distill=distillation,
        seed=seed,
    )
    return job, replace(job, method="noise", synthesis=NoiseConfig(batch_size=64))


def demo(
    folder: StrPath,
    *,
    seed: int = 0,
    steps: int = 1000,
    resume: bool = False,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Distill LeNet-5 to LeNet-5-Half, with its noise baseline, evaluation, exports and report."""
    folder = Path(folder)
    with as_file(files("dreamstill") / "assets") as assets:
        job, baseline = demo_jobs(assets / "lenet5_mnist.safetensors", seed, steps)
        baseline_folder = folder / "noise_baseline"
        resuming = resume and (baseline_folder / "config.json").is_file()
        distill(folder, job, open_from(job.teacher), resume=resume, on_progress=on_progress)
        distill(
            baseline_folder,
            baseline,
            open_from(baseline.teacher),
            resume=resuming,
            on_progress=on_progress,
        )
        teacher = open_from(job.teacher)
        real = load_images(assets / "digits.npz", teacher.input_spec, teacher.num_classes)
        export_run(folder)
        source = "2,000 real MNIST digits, unseen by the teacher"
        summary = summarize(folder, real=real, source=source, baseline=baseline_folder)
    write_report(folder)
    return summary
