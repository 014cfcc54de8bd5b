"""Say what a distillation is about to do, why, and what it takes."""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from dreamstill.config import Precision
from dreamstill.distillation.config import FinetuneConfig, Optimizer
from dreamstill.distillation.distillation import Distillation
from dreamstill.distillation.initialization import Start
from dreamstill.distillation.suiting import suited
from dreamstill.formatting import bytes_of_memory, duration
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import eval_mode, probed_at_once, watched
from dreamstill.nn.seeded import rng_kept
from dreamstill.output_spec import OutputKind
from dreamstill.progress import Progress
from dreamstill.synthesis.methods.fastdfkd import FastDfkd
from dreamstill.synthesis.registry import DEFAULT_METHOD
from dreamstill.synthesis.stored_images import StoredImages
from dreamstill.teacher import Teacher

__all__ = [
    "log_plan",
    "made_by",
    "memory_estimate",
    "memory_on_images",
    "plan",
    "plan_on_images",
    "seconds_per_step",
    "with_time_left",
]

log = logging.getLogger(__name__)

EVENTS, SECONDS = 24, 10.0
"""Batches or steps, or seconds, after which the time that a stage takes is known."""
STAGES = {"synthesize": "Making the images", "distill": "The training"}


def plan(work: Distillation, start: Start, source: str) -> list[str]:
    """Return three sentences: which images, how the student starts, how it is trained; each why.

    Args:
        work: distillation before its first step.
        start: how its student starts.
        source: method, or name of the file of images.

    """
    stream, kind = work.stream, work.teacher.output_kind
    fits = ["labels" if kind is OutputKind.LABELS else "classes"]
    if kind is OutputKind.VALUES:  # which nothing has to be even over
        fits = []
    if work.teacher.capabilities.batch_norm:
        fits.append("BatchNorm statistics")
    origin = f"made by {source}, as asked"
    if source == DEFAULT_METHOD:
        origin = f"drawn by {source}, the default method"
        origin += f", to fit the teacher's {' and '.join(fits)}" if fits else ""
    if isinstance(stream.method, StoredImages):
        origin = f"drawn from {source}, as asked"
    if (budget := work.teacher.capabilities.budget) is not None:
        origin = f"made by {source}, a query each"
    parts = [f"{stream.prefill:,} before the first step"] if stream.prefill else []
    if stream.fresh_every and work.config.steps:
        every = f"every {stream.fresh_every} steps" if stream.fresh_every > 1 else "for each step"
        parts.append(f"{stream.batch_size:,} new ones {every}")
        if made_by(work, source) != source:
            parts[-1] += " by fastdfkd, which teach more"
    images = f"The images are {origin}: {', then '.join(parts)}."
    if budget is not None:
        images += f" Of the budget of {budget:,} queries {work.teacher.queries:,} are spent."
    return [images, start.reason, _training(work.config, stream.num_visits, work.teacher)]


def made_by(work: Distillation, source: str) -> str:
    """Return the source of the images, with the method that follows the default one."""
    followed = source == DEFAULT_METHOD and isinstance(work.stream.method, FastDfkd)
    return f"{source} and fastdfkd" if followed else source


def plan_on_images(
    teacher: Teacher, config: FinetuneConfig, start: Start, num_images: int
) -> list[str]:
    """Return the sentences of `plan` where `num_images` images are given."""
    config = suited(teacher, config)
    images = f"The images are the {num_images:,} that were given."
    visits = config.steps * config.batch_size
    return [images, start.reason, _training(config, visits, teacher)]


def _training(config: FinetuneConfig, visits: int, teacher: Teacher) -> str:
    """Return steps, image visits, batch, losses, optimizer and precision in a sentence."""
    if not config.steps:
        return "It is not trained: 0 steps were asked for."
    return (
        f"It is trained for {config.steps:,} steps, {visits:,} image visits in batches of "
        f"{config.batch_size:,}, by {' + '.join(config.losses)} toward the teacher, with "
        f"{config.optimizer} at {config.lr:g}, in {teacher.precision}."
    )


def log_plan(sentences: Sequence[str], memory: int | None = None) -> None:
    """Log the sentences of a plan, and the bytes of memory that it takes, where it is known."""
    for sentence in sentences:
        log.info("%s", sentence)
    if memory is not None:
        size = bytes_of_memory(memory)
        log.info("It takes about %s of memory, by an estimate, beside PyTorch's own.", size)


def memory_estimate(work: Distillation) -> int:
    """Return the bytes that networks, images and activations take at most, by an estimate.

    PyTorch itself, and what a method keeps beside its images, are not in it.
    """
    stream, config = work.stream, work.config
    stored = min(stream.buffer.capacity, stream.num_images) + config.num_validation
    batch = max(config.batch_size, stream.batch_size)
    return _memory(work.teacher, work.student, config, stored, batch, work.to_reconstruct)


def memory_on_images(teacher: Teacher, config: FinetuneConfig, num_images: int) -> int:
    """Return the same for a network like the teacher's that is fine-tuned on images in memory."""
    return _memory(teacher, teacher.module, config, num_images, config.batch_size, 2048)


def _memory(
    teacher: Teacher,
    student: nn.Module,
    config: FinetuneConfig,
    stored: int,
    batch: int,
    to_reconstruct: int,
) -> int:
    moments = 2 if config.optimizer is Optimizer.ADAM else 1
    copies = 3 + moments  # itself, its gradient and the best student so far
    networks = _bytes(teacher.module) + copies * _bytes(student)
    width = teacher.input_spec.noise(1).numel()  # bytes of a stored image
    size = 2 if teacher.precision is Precision.BFLOAT16 else 4
    whole = largest = 0
    if teacher.capabilities.budget is None:  # a black box has its memory elsewhere
        whole, largest = _activations(teacher, teacher.module)
    own, _ = _activations(teacher, student)
    step = batch * (size * (own + 2 * largest) + 12 * width)
    steered = max(32, probed_at_once(teacher.input_spec.shape))
    steering = steered * (size * whole + 16 * width)
    reconstruction = to_reconstruct * 4 * (3 * largest + width)
    validation = 4 * config.num_validation * math.prod(teacher.output_spec.shape)
    return networks + stored * width + validation + max(step, steering, reconstruction)


def _bytes(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))


@torch.no_grad()
def _activations(teacher: Teacher, network: nn.Module) -> tuple[int, int]:
    """Return how many values all layers put out for an image, and the largest layer."""
    sizes: list[int] = []
    leaves = {name: part for name, part in network.named_modules() if not [*part.children()]}

    def look(name: str, given: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel() // 2)

    inputs = teacher.input_spec.encode(teacher.input_spec.noise(2)).to(teacher.device)
    with eval_mode(network), watched(leaves, look):
        network(inputs)
    return sum(sizes), max(sizes, default=0)


def with_time_left(steps: Iterable[Progress]) -> Iterator[Progress]:
    """Pass progress on, and log how long a stage takes as soon as its beginning is measured."""
    stage, events, since = "", 0, 0.0
    for step in steps:
        if step.stage != stage:
            stage, events, since, first = step.stage, 0, time.monotonic(), step.done
        elif stage in STAGES and events < EVENTS:
            events += 1
            spent = time.monotonic() - since
            if events == EVENTS or spent > SECONDS:
                left = spent * (step.total - step.done) / (step.done - first)
                if left > SECONDS:
                    log.info("%s takes about %s more, by its start.", STAGES[stage], duration(left))
                events = EVENTS
        yield step


def seconds_per_step(teacher: Teacher, batch_size: int) -> float:
    """Estimate the seconds of a training step of a network like the teacher's, from three."""
    network = copy_network(teacher.module).train().requires_grad_()
    inputs = teacher.input_spec.encode(teacher.input_spec.noise(batch_size)).to(teacher.device)
    inputs.requires_grad_(teacher.capabilities.gradient)
    spent = []
    with rng_kept():  # dropout draws from it
        for _ in range(3):
            begun = time.perf_counter()
            with torch.no_grad():
                wanted = teacher.run(teacher.module, inputs)
            loss = (teacher.run(network, inputs) - wanted).square().mean()
            if loss.requires_grad:  # a closed network, whose students take about as long, has none
                loss.backward()
            spent.append(time.perf_counter() - begun)
    return 2 * min(spent)  # with the optimizer, augmentation and validation
