"""Inspect a teacher, and run a distillation with its report."""

from collections.abc import Callable
from typing import Any

from dreamstill.data.images import load_unlabelled
from dreamstill.files.reading import StrPath
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.config import DistillJob
from dreamstill.pipelines.distill import distill
from dreamstill.pipelines.summary import summarize
from dreamstill.progress import Progress
from dreamstill.report import write_report
from dreamstill.synthesis.methods.knowledge_within import data_similarity
from dreamstill.synthesis.registry import METHODS, missing_capabilities
from dreamstill.teacher import Teacher

__all__ = ["distill_and_report", "inspect"]

OnProgress = Callable[[Progress], None]


def inspect(teacher: Teacher, images: StrPath | None = None) -> dict[str, Any]:
    """Return the input, size, capabilities and usable methods of a teacher, as plain values.

    With unlabeled images (.npz with x), includes their `data_similarity` to the training data.
    """
    capabilities = teacher.capabilities
    similarity = {}
    if images is not None:
        given = teacher.input_spec.encode(load_unlabelled(images, teacher.input_spec)[:2000])
        similarity["data_similarity"] = data_similarity(teacher, given.to(teacher.device))
    return similarity | {
        "input": list(teacher.input_spec.shape),
        "mean": list(teacher.input_spec.mean),
        "std": list(teacher.input_spec.std),
        "num_classes": teacher.num_classes,
        "parameters": sum(p.numel() for p in teacher.module.parameters()),
        "gradient": capabilities.gradient,
        "batch_norm_layers": len(capabilities.batch_norm),
        "last_linear": capabilities.last_linear,
        "penultimate_features": capabilities.num_features,
        "methods": [name for name in METHODS if not missing_capabilities(name, teacher)],
        "fingerprint": teacher.fingerprint,
    }


def distill_and_report(
    folder: StrPath, job: DistillJob, *, resume: bool = False, on_progress: OnProgress
) -> dict[str, Any]:
    """Distill, measure the student without real data, write the report; return the summary."""
    teacher = open_from(job.teacher, device=job.device, precision=job.precision)
    distill(folder, job, teacher, resume=resume, on_progress=on_progress)
    summary = summarize(folder)
    write_report(folder)
    return summary
