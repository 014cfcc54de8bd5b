"""Turn a budget of minutes or of image visits into a number of steps."""

import copy
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn

from dreamstill.distillation.batch_stream import replay
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.model_selection import ModelSelector
from dreamstill.distillation.trainer import Trainer
from dreamstill.errors import ConfigError
from dreamstill.nn.copying import copy_network
from dreamstill.nn.seeded import rng_kept
from dreamstill.process_group import from_main, world_size
from dreamstill.quiet import without_messages
from dreamstill.synthesis.base import Method
from dreamstill.synthesis.validation_set import validation_set
from dreamstill.teacher import Teacher

__all__ = ["seconds_per_batch", "within_budget"]

log = logging.getLogger(__name__)


TIMED = 8
"""Steps that are timed; the first is slower, and the last has a validation."""


def within_budget(
    teacher: Teacher,
    student: nn.Module,
    config: DistillConfig,
    method: Method | None = None,
    *,
    inherited: Mapping[str, Tensor] | None = None,
) -> DistillConfig:
    """Return a configuration with the steps that its minutes or visits hold, in their place.

    Steps are timed on copies, and where the method goes on making images, its second batch of two;
    networks, method and random numbers stay as they were.

    Args:
        teacher, student, inherited: see `Trainer`.
        config: returned as it is if it has neither minutes nor visits.
        method: makes the images; None if they are given.

    Raises ConfigError for minutes of a black box, whose answers cost.

    """
    if config.minutes is None and config.visits is None:
        return config
    if config.minutes is not None and teacher.capabilities.budget is not None:
        raise ConfigError(
            "minutes would spend queries of the black box on timing: give steps or visits"
        )
    period, visits, making = 1, config.batch_size, 0.0
    every = config.fresh_period(method.fresh_every) if method else 0
    if method is not None and every:
        period = math.ceil(method.repeat / every) * every  # from one new batch to the next
        visits = (period - method.repeat) * config.batch_size
        visits += method.repeat * method.config.batch_size
        making = seconds_per_batch(method, student) if config.minutes is not None else 0.0
    if config.visits is not None:
        steps = math.ceil(config.visits * period / visits)
        log.info("%s image visits take %s steps.", f"{config.visits:,}", f"{steps:,}")
    else:
        assert config.minutes is not None
        training = (
            visits / config.batch_size * _seconds_per_step(teacher, student, config, inherited)
        )
        making /= world_size()  # the processes make their batches at the same time
        steps = from_main(max(1, int(60 * config.minutes * period / (training + making))))
        text = "%s steps fit in %s minutes, from the time of %d steps."
        log.info(text, f"{steps:,}", f"{config.minutes:g}", TIMED)
    return replace(config, steps=steps, minutes=None, visits=None)


def _seconds_per_step(
    teacher: Teacher,
    student: nn.Module,
    config: DistillConfig,
    inherited: Mapping[str, Tensor] | None,
) -> float:
    """Return the seconds of a step on stored images, with its share of a validation."""
    spec, queries = teacher.input_spec, teacher.queries
    rng = torch.Generator(teacher.device).manual_seed(0)
    validation = validation_set(teacher, config.num_validation)
    selector = ModelSelector(validation, spec, teacher.output_kind)
    timed = replace(config, steps=TIMED, validate_every=TIMED, minutes=None, visits=None)
    batches = replay(spec.noise(config.batch_size), spec, config, rng)
    with rng_kept(), without_messages():
        trainer = Trainer(
            *(teacher, copy_network(student), batches, selector, timed),
            rng=rng,
            inherited=inherited,
        )
        spent, begun = [], time.perf_counter()
        for _ in trainer.run():
            spent.append(time.perf_counter() - begun)
            begun = time.perf_counter()
    teacher.queries = queries
    step = median(spent[1:-1])
    return step + max(0.0, spent[-1] - step) / config.validate_every


def seconds_per_batch(method: Method, student: nn.Module) -> float:
    """Return the seconds in which a method makes a batch after its first; it stays as it was."""
    state, numbers = copy.deepcopy(method.state_dict()), method.rng.get_state()
    queries, shown = method.teacher.queries, copy_network(student)
    with rng_kept():
        method.next_batch(shown)
        begun = time.perf_counter()
        method.next_batch(shown)
        spent = time.perf_counter() - begun
    method.load_state_dict(state)
    method.rng.set_state(numbers)
    method.teacher.queries = queries
    return spent
