"""Inspect a teacher, and run a distillation with its baselines and its report."""

import logging
from pathlib import Path
from typing import Any

from dreamstill.config import read_plain
from dreamstill.data.class_coverage import warn_of_classes
from dreamstill.data.images import load_real, load_unlabelled
from dreamstill.distillation.suiting import check_baselines
from dreamstill.errors import ConfigError, RunError
from dreamstill.files.reading import StrPath, understood
from dreamstill.formatting import BASELINES
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.candidates import refusal
from dreamstill.pipelines.config import STAGE_CONFIGS, DistillJob, StageConfig
from dreamstill.pipelines.distill import distill
from dreamstill.pipelines.summary import summarize
from dreamstill.pipelines.synthesize import draw_images
from dreamstill.process_group import from_main, is_main
from dreamstill.progress import OnProgress, under
from dreamstill.quiet import without_messages
from dreamstill.report import write_report
from dreamstill.synthesis.methods.knowledge_within import data_similarity
from dreamstill.synthesis.registry import DEFAULT_METHOD, METHODS, missing_capabilities
from dreamstill.teacher import Teacher

__all__ = ["distill_and_report", "distill_with_baselines", "inspect", "warn_of_input"]

log = logging.getLogger(__name__)

NUM_DRAWN = 128
"""Images that `warn_of_input` looks at."""


def inspect(teacher: Teacher, images: StrPath | None = None) -> dict[str, Any]:
    """Return the input, size, capabilities, tasks and methods of a teacher, as plain values.

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
        "outputs": teacher.output_kind.value,
        "num_classes": teacher.num_classes,
        "parameters": sum(p.numel() for p in teacher.module.parameters()),
        "gradient": capabilities.gradient,
        "batch_norm_layers": len(capabilities.batch_norm),
        "last_linear": capabilities.last_linear,
        "penultimate_features": capabilities.num_features,
        "tasks": [name for name in STAGE_CONFIGS if _applies(name, teacher)],
        "methods": [name for name in METHODS if not missing_capabilities(name, teacher)],
        "fingerprint": teacher.fingerprint,
    }


def _applies(task: str, teacher: Teacher) -> bool:
    """Tell whether a task with default settings can run on a network."""
    if task == "distill":
        return True
    try:
        stage = StageConfig(task=task, config=STAGE_CONFIGS[task]())
    except ConfigError:  # it has a setting without a default, such as new classes
        return False
    return refusal([stage], teacher) is None


def warn_of_input(teacher: Teacher) -> list[str]:
    """Warn if drawn images are nearly all of one class: most often mean or std are wrong.

    Returns the warning, which is logged as well; empty without one. A black box is not asked.
    """
    if teacher.capabilities.budget is not None:
        return []
    method = METHODS[DEFAULT_METHOD].config()
    _, logits = draw_images(teacher, DEFAULT_METHOD, method, NUM_DRAWN, seed=0)
    counts = teacher.output_spec.counts(logits)
    return warn_of_classes(counts, NUM_DRAWN, kind=teacher.output_kind)


def distill_and_report(
    folder: StrPath,
    job: DistillJob,
    *,
    resume: bool = False,
    real: StrPath | None = None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Distill, also the baselines of the job; measure, write the report; return the summary.

    Without `real`, labeled images, no accuracy is measured. Of several processes the main one
    measures and writes, and the others return {}.
    """
    teacher = open_from(job.teacher, device=job.device, precision=job.precision)
    spec = teacher.input_spec
    test = load_real(real, spec, teacher.output_spec) if real and is_main() else None
    distill_with_baselines(folder, job, teacher, resume=resume, on_progress=on_progress)
    if not is_main():
        return {}
    source = Path(real).name if real else ""
    summary = summarize(folder, real=test, source=source, device=job.device)
    write_report(folder)
    return summary


def distill_with_baselines(
    folder: StrPath, job: DistillJob, teacher: Teacher, *, resume: bool, on_progress: OnProgress
) -> None:
    """Distill in a directory, and the baselines of the job in directories below it."""
    check_baselines(teacher, job.baselines)
    if job.bound is not None:
        load_unlabelled(job.bound, teacher.input_spec)  # raises before any work
    distill(folder, job, teacher, resume=resume, on_progress=on_progress)
    steps = None
    if job.distill.minutes is not None:  # the baselines take the same steps
        with understood(path := Path(folder) / "result.json", RunError, "is damaged"):
            steps = from_main(int(read_plain(path)["steps"]) if is_main() else 0)
    for name, baseline in job.baseline_jobs().items():
        below, title = Path(folder) / name, BASELINES[name]
        log.info("The %s: the same student learns from %s.", title, baseline.source)
        teacher.queries = 0
        with without_messages():  # that it learns little is the purpose of a baseline
            distill(
                *(below, baseline, teacher),
                steps=steps,
                resume=resume and (below / "config.json").is_file(),
                on_progress=under(title, on_progress),
            )
