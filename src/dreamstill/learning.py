"""Teach a network new classes, from their file to the device's: no old data."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreamstill.evaluate import accuracy, predict
from dreamstill.export import export
from dreamstill.folder import claim, save_weights, write_json
from dreamstill.images import load_images, load_unlabelled
from dreamstill.run import open_from, seeded_process
from dreamstill.settings import no_effect
from dreamstill.sources import Images, OnProgress, own_images, same_origin
from dreamstill.tasks.continual import ContinualSettings, check_new_classes, learn

__all__ = ["Learning", "learn_classes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning(Images):
    """All that decides what a network that learns new classes becomes."""

    new: str
    """.npz with x, uint8 (N, C, H, W), and y, from the number of old classes on; or a folder of
    pictures for each class, named by its number or numbered in the order of their names."""
    continual: ContinualSettings = field(default_factory=ContinualSettings)

    def __post_init__(self) -> None:
        Images.__post_init__(self)  # slots and super() do not go together
        if not self.continual.dreaming:
            where = f"on {self.continual.recipe.value}, which looks at none"
            no_effect(self, where, "images", "method", "synthesis", "num_images")


def learn_classes(
    folder: Path,
    job: Learning,
    *,
    resume: bool = False,
    real: Path | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Teach a network new classes; writes it as .safetensors, .onnx and .pt2, and its worth.

    Args:
        folder: new, or with `resume` one that holds the same job.
        job: what to do.
        resume: images that are finished are not synthesized again.
        real: .npz with x, y of old and new classes: accuracy on each, at the end.
        on_progress: called after every step.

    """
    teacher = open_from(job.teacher)
    new, labels = load_images(Path(job.new), teacher.spec, first=teacher.num_classes)
    check_new_classes(teacher, new, labels)
    num_classes = int(labels.max()) + 1
    test = load_images(real, teacher.spec, num_classes) if real is not None else None
    dreams = load_unlabelled(Path(job.images), teacher.spec) if job.images else new[:0]
    claim(folder, job, resume=resume)
    same_origin(folder, teacher, dreams if job.images else None)
    if not job.images and job.continual.dreaming:
        dreams = own_images(folder / "images.npz", job, teacher, on_progress)
    rng = torch.Generator().manual_seed(job.seed)
    with seeded_process(job.seed):
        network = learn(
            teacher, dreams, new, labels, job.continual, rng=rng, on_progress=on_progress
        )
    save_weights(folder / "network.safetensors", network.module)
    summary: dict[str, Any] = {
        "old_classes": teacher.num_classes,
        "classes": network.num_classes,
        "files": [
            asdict(export(network.module, teacher.spec, folder / f"network.{kind}"))
            for kind in ("onnx", "pt2")
        ],
    }
    if test is not None:
        x, y = test
        logits = predict(network.module, teacher.spec, x)
        for name, of in (("old", y < teacher.num_classes), ("new", y >= teacher.num_classes)):
            if of.any():
                summary[f"accuracy_{name}"] = accuracy(logits[of], y[of])
    write_json(folder / "summary.json", summary)
    return summary
