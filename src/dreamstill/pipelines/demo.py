"""Run the demo on the embedded teacher."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from dreamstill.data.images import load_real
from dreamstill.distillation.config import DistillConfig
from dreamstill.files.reading import StrPath
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.config import DistillJob
from dreamstill.pipelines.jobs import distill_with_baselines
from dreamstill.pipelines.summary import export_run, summarize
from dreamstill.progress import OnProgress
from dreamstill.report import write_report
from dreamstill.synthesis.config import StructuredNoiseConfig

__all__ = ["demo"]


def demo_job(weights: Path, seed: int, steps: int) -> DistillJob:
    """Return the demo's job."""
    # small batches: on such a small network the number of steps matters more than their size
    distillation = DistillConfig(
        steps=steps, batch_size=64, lr=1e-3, validate_every=500, buffer_size=5000
    )
    return DistillJob(
        teacher=TeacherFile(weights=str(weights)),
        student="dreamstill.nn.lenet:lenet5_half",
        method="structured_noise",
        synthesis=StructuredNoiseConfig(batch_size=64),
        distill=distillation,
        baselines=True,
        seed=seed,
    )


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
        job = demo_job(assets / "lenet5_mnist.safetensors", seed, steps)
        teacher = open_from(job.teacher)
        distill_with_baselines(folder, job, teacher, resume=resume, on_progress=on_progress)
        real = load_real(assets / "digits.npz", teacher.input_spec, teacher.output_spec)
        export_run(folder)
        source = "2,000 real MNIST digits, unseen by the teacher"
        summary = summarize(folder, real=real, source=source)
    write_report(folder)
    return summary
