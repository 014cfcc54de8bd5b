"""Learn new classes from their images and from synthetic images of the old classes.

- `inversion`: DeepInversion (Yin et al. 2020, section 4.5). Cross-entropy on the new images, and
  distillation from the old network on new and synthetic images. On synthetic images the target
  gives the new classes probability 0; otherwise old images are classified as new classes.
- `abd`: "Always Be Dreaming" (Smith et al., ICCV 2021, equations 8 to 11). Cross-entropy among the
  new classes on the new images, cross-entropy over all classes with fixed features, and feature
  distillation weighted by the old head. Class weights are those of the authors' code.
- `lwf`: Learning without Forgetting (Li and Hoiem 2016), without synthetic images.
- `finetune`: cross-entropy on the new images alone, the baseline.

All recipes use Adam with cosine annealing; Smith et al. use 250 epochs of SGD at 0.1 with three
drops.
"""

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dreamstill.continual.config import LearnClassesConfig, Recipe
from dreamstill.errors import DataError, NonFiniteError, TeacherError
from dreamstill.evaluation import accuracy
from dreamstill.graph.modules import replace_module
from dreamstill.losses.logits import kl_divergence
from dreamstill.nn.copying import copy_network
from dreamstill.nn.seeded import seeded
from dreamstill.progress import OnProgress, Progress
from dreamstill.teacher import Teacher

__all__ = [
    "Recipe",
    "average_and_forgetting",
    "check_new_classes",
    "compare_classes",
    "examples",
    "grow",
    "learn",
]


def grow(teacher: Teacher, num_classes: int, rng: torch.Generator) -> nn.Module:
    """Copy the network and extend its last linear layer to `num_classes` outputs.

    Raises TeacherError if there is no last linear layer.
    """
    check_head(teacher)
    old, name = teacher.last_linear, str(teacher.capabilities.last_linear)
    with seeded(rng):
        head = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    with torch.no_grad():
        head.weight[: old.out_features] = old.weight
        if old.bias is not None:
            head.bias[: old.out_features] = old.bias
    model = copy_network(teacher.module)
    replace_module(model, name, head.to(teacher.device))
    return model.requires_grad_(True)


def check_head(teacher: Teacher) -> None:
    """Raise TeacherError if the network has no last linear layer, or outputs no classes."""
    if not teacher.capabilities.classes:
        raise TeacherError(
            f"learning new classes needs classes of images; the outputs are {teacher.output_kind}"
        )
    if teacher.capabilities.last_linear is None:
        raise TeacherError("learning new classes needs a last linear layer")


def check_new_classes(teacher: Teacher, images: Tensor, labels: Tensor) -> None:
    """Raise DataError unless each image has a label, and labels continue those of the old classes.

    Raises TeacherError if the network has no last linear layer.
    """
    check_head(teacher)
    old = teacher.num_classes
    if len(images) == 0 or len(images) != len(labels):
        raise DataError(f"new classes need images and labels; got {len(images)}, {len(labels)}")
    if int(labels.min()) < old:
        raise DataError(f"labels of new classes must be {old} or more; got {int(labels.min())}")
    wanted = range(old, min(int(labels.max()), old + len(labels)))
    if missing := sorted(set(wanted) - set(labels.tolist())):
        raise DataError(f"new classes are numbered on from {old}: no image is of {missing[0]}")


def learn(
    teacher: Teacher,
    synthetic: Tensor,
    images: Tensor,
    labels: Tensor,
    config: LearnClassesConfig,
    *,
    rng: torch.Generator,
    on_progress: OnProgress = lambda progress: None,
) -> Teacher:
    """Train a copy of the network on new classes, and return it.

    Args:
        teacher: network of the K old classes; not changed.
        synthetic: synthetic images, uint8 (N, C, H, W); not used by lwf and finetune.
        images: real images of the new classes, uint8 (M, C, H, W).
        labels: labels of the new images, (M,), from K on.
        config: recipe and training settings.
        rng: generator for the weights of the new outputs and for sampling.
        on_progress: called after each step.

    Raises:
        DataError, TeacherError: see `check_new_classes`; or there are no synthetic images.
        NonFiniteError: the loss is NaN or infinite.

    """
    check_new_classes(teacher, images, labels)
    model = grow(teacher, int(labels.max()) + 1, rng)
    student = Teacher(
        model, teacher.input_spec, device=str(teacher.device), precision=teacher.precision
    )
    model = student.module.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    if config.reads_images and len(synthetic) == 0:
        raise DataError(f"{config.recipe.value} needs synthetic images of the old classes; got 0")

    def draw(num: int) -> Tensor:
        return torch.randint(num, (config.batch_size,), generator=rng, device=rng.device).cpu()

    for step in range(1, config.steps + 1):
        index = draw(len(images))
        new = teacher.input_spec.encode(images[index].to(teacher.device))
        target = labels[index].to(teacher.device)
        replayed = new[:0]
        if config.reads_images:
            index = draw(len(synthetic))
            replayed = teacher.input_spec.encode(synthetic[index].to(teacher.device))
        model.train()
        loss = _loss(student, teacher, new, target, replayed, config)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss became {loss.item()} at step {step}; lower lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_progress(Progress("learn", step, config.steps, {"step": step, "loss": loss.item()}))
    return Teacher(
        model, teacher.input_spec, device=str(teacher.device), precision=teacher.precision
    )


def _loss(
    student: Teacher,
    teacher: Teacher,
    new: Tensor,
    target: Tensor,
    replayed: Tensor,
    config: LearnClassesConfig,
) -> Tensor:
    both, old = torch.cat([new, replayed]), teacher.num_classes
    if config.recipe is Recipe.ABD:
        return _abd_loss(student, teacher, both, target, config.old_weight)
    logits = student(both)
    loss = F.cross_entropy(logits[: len(new)], target)
    if config.recipe is Recipe.FINETUNE:
        return loss
    with torch.no_grad():
        wanted = teacher(both)
    num_new = len(new)
    kept = kl_divergence(logits[:num_new, :old], wanted[:num_new], config.temperature)
    if len(replayed):  # synthetic images are of old classes only
        padded = F.pad(wanted[num_new:], (0, logits.shape[1] - old), value=-1e4)
        kept = kept + kl_divergence(logits[num_new:], padded, config.temperature)
    return loss + config.old_weight * kept


def _abd_loss(
    student: Teacher, teacher: Teacher, both: Tensor, target: Tensor, keep: float
) -> Tensor:
    """Return the loss of ABD, equations 8 to 11, on `both`: new images, then synthetic ones."""
    num_new, old = len(target), teacher.num_classes
    logits, features = student.with_features(both)
    with torch.no_grad():
        old_logits, old_features = teacher.with_features(both)
    weights = _class_weights(old, logits.shape[1]).to(logits)
    local = F.cross_entropy(logits[:num_new, old:], target - old)
    head = student.last_linear
    everyone = torch.cat([target, old_logits[num_new:].argmax(1)])
    fixed = F.linear(features.detach(), head.weight, head.bias)
    overall = F.cross_entropy(fixed, everyone, reduction="none") * weights[everyone]
    kept = _feature_distillation(features - old_features, teacher.last_linear.weight)
    return weights[-1] * local + overall.mean() + keep * kept


def _class_weights(num_old: int, num_classes: int) -> Tensor:
    """Return ABD's class weights (K,): the fraction of old classes for each old one, else the rest.

    >>> _class_weights(3, 4)
    tensor([0.7500, 0.7500, 0.7500, 0.2500])
    """
    weights = torch.full((num_classes,), num_old / num_classes)
    weights[num_old:] = 1 - num_old / num_classes
    return weights


def _feature_distillation(change: Tensor, head: Tensor) -> Tensor:
    """Return 0.1 times the mean squared change of the old logits (ABD).

    Args:
        change: new features minus old features, (N, features).
        head: weights of the old head, (old classes, features).

    """
    return 0.1 * F.linear(change, head).pow(2).mean()


def average_and_forgetting(accuracies: list[list[float]]) -> tuple[float, float]:
    """Return the mean final accuracy over tasks, and the mean drop from each earlier task's best.

    Args:
        accuracies: row i holds the accuracy on tasks 0 to i after learning task i.

    >>> average, forgetting = average_and_forgetting([[1.0], [0.75, 0.5]])
    >>> average, forgetting
    (0.625, 0.25)

    """
    last = accuracies[-1]
    best = [max(row[task] for row in accuracies if task < len(row)) for task in range(len(last))]
    lost = [b - now for b, now in zip(best[:-1], last[:-1], strict=True)]
    return sum(last) / len(last), sum(lost) / max(1, len(lost))


def compare_classes(before: Tensor, after: Tensor, y: Tensor) -> dict[str, Any]:
    """Return accuracy on old, new and single classes before and after learning, and forgetting.

    The average is over two tasks, the old and the new classes, not over images.

    Args:
        before: logits of the old network, (N, old classes).
        after: logits of the new network, (N, classes).
        y: labels, (N,).

    """
    num_old = before.shape[1]
    old = y < num_old
    by_class = [
        {
            "class": int(k),
            "before": accuracy(before[y == k], y[y == k]) if k < num_old else None,
            "after": accuracy(after[y == k], y[y == k]),
        }
        for k in y.unique()
    ]
    found: dict[str, Any] = {}
    for name, of in (("old", old), ("new", ~old)):
        if of.any():
            found[f"accuracy_{name}"] = accuracy(after[of], y[of])
    if old.any():
        found["accuracy_old_before"] = accuracy(before[old], y[old])
    if old.any() and not old.all():
        found["average_accuracy"], found["forgetting"] = average_and_forgetting(
            [
                [found["accuracy_old_before"]],
                [found["accuracy_old"], found["accuracy_new"]],
            ]
        )
    return found | {"by_class": by_class}


def examples(*sources: tuple[Tensor, Tensor]) -> dict[str, NDArray[Any]]:
    """Return uint8 images (N, C, H, W), 12 per class and source, and their classes (N,).

    Args:
        sources: images and classes.

    """
    picked = [
        (images[index], classes[index])
        for images, classes in sources
        for index in ((classes == k).nonzero()[:12, 0] for k in classes.unique())
    ]
    images, classes = (torch.cat(parts).numpy() for parts in zip(*picked, strict=True))
    return {"images": images, "classes": classes}
