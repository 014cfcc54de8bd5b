"""List what is tried on the way to a goal of compression: stages, quick or with training."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dreamstill.compression.config import (
    FactorizeConfig,
    MergeConfig,
    PackConfig,
    PruneConfig,
    QuantizeConfig,
    Rounding,
    Target,
)
from dreamstill.distillation.config import FinetuneConfig
from dreamstill.errors import DreamstillError
from dreamstill.exporters.config import Calibration, Int8Config
from dreamstill.formatting import half_interval
from dreamstill.graph.channel_groups import ROOTS
from dreamstill.graph.config import kept_share
from dreamstill.loaders.narrower import narrower
from dreamstill.nn.seeded import rng_kept
from dreamstill.pipelines.compress import NUM_VALIDATION
from dreamstill.pipelines.config import DistillStage, StageConfig
from dreamstill.pipelines.distill import open_student
from dreamstill.pipelines.goal import PACKED, GoalJob
from dreamstill.pipelines.stages import check_stages
from dreamstill.profiling import count_macs
from dreamstill.quiet import without_messages
from dreamstill.teacher import Teacher

__all__ = [
    "Candidate",
    "Family",
    "best_of",
    "families",
    "int8_of",
    "quantized",
    "refusal",
    "share_for",
]

BATCH = 64
"""Images of a training step."""
SAME_KL = 1.05
"""Times the least KL divergence up to which one is the same: the tables show two digits."""
LEAST, MOST = 0.02, 0.98
"""Shares of parameters or multiply-accumulates that a family is asked to keep."""


@dataclass(frozen=True)
class Candidate:
    """Stages that are run one after the other on the teacher's network."""

    stages: tuple[StageConfig, ...]

    @property
    def task(self) -> str:
        """Names of the tasks, such as "prune + int8"; inherit is a distillation of auto:SHARE."""
        return " + ".join(map(_task, self.stages))

    @property
    def trainings(self) -> int:
        """Number of times that a network is trained, each of which may keep its start."""
        return sum(_trainings(stage.config) for stage in self.stages)

    @property
    def settings(self) -> str:
        """Return what distinguishes it, such as "keep 0.5, 400 steps"."""
        return ", ".join(text for stage in self.stages for text in _settings(stage.config))


def _task(stage: StageConfig) -> str:
    inherits = kept_share(getattr(stage.config, "student", None)) is not None
    return "inherit" if inherits else stage.task


def _settings(config: Any) -> list[str]:
    """Return the settings of a stage that candidates differ in, in words."""
    texts = list[str]()
    if (width := kept_share(getattr(config, "student", None))) is not None:
        texts.append(f"width {width:g}")
    if (keep := getattr(config, "keep", None)) is not None:
        texts.append(f"keep {keep:.3g}")
    if isinstance(config, Int8Config) and config.calibration is not None:
        texts.append(f"calibration {config.calibration}")
    if isinstance(config, QuantizeConfig):
        texts += [f"{config.weight_bits} bits", f"{config.rounding}"]
    if (trained := _tuning_of(config)) is not None:
        texts.append(f"{_trainings(config) * trained.steps:,} steps")
    return texts


def _tuning_of(config: Any) -> FinetuneConfig | None:
    """Return the training that a stage's configuration asks for, if any."""
    of = config if isinstance(config, FinetuneConfig) else getattr(config, "finetune", None)
    return of if of is not None and of.steps else None


def _trainings(config: Any) -> int:
    return 0 if _tuning_of(config) is None else getattr(config, "rounds", 1)


@dataclass(frozen=True)
class Family:
    """A task that makes the network smaller, to any share."""

    name: str
    make: Callable[[float, int], StageConfig]
    """Function of the share to keep and of training steps, 0 for none, to the stage."""
    trained: bool = False
    """Whether it has nothing to show without training."""


def families(teacher: Teacher, job: GoalJob) -> list[Family]:
    """Return the tasks that make a network smaller toward a goal, the most promising first."""
    target = Target.PARAMETERS if job.goal.by_bytes else Target.MACS
    found = [
        Family("inherit", lambda share, steps: _inherit(teacher, share, target, steps)),
        Family("prune", lambda share, steps: _prune(share, target, steps)),
        Family("factorize", lambda share, steps: _factorize(share, target, steps)),
        Family("merge", _merge),
    ]
    if job.student is not None:
        of = job.student
        found.append(Family("distill", lambda share, steps: _distill(of, steps), trained=True))
    if PACKED in job.format:
        found.append(Family("pack", _pack, trained=True))
    return found


def tuning(steps: int) -> FinetuneConfig | None:
    """Return the fine-tuning of all candidates, or None for 0 steps."""
    if not steps:
        return None
    return FinetuneConfig(steps=steps, batch_size=BATCH, lr=1e-3, num_validation=NUM_VALIDATION)


def _inherit(teacher: Teacher, share: float, target: Target, steps: int) -> StageConfig:
    frozen = bool(steps and teacher.capabilities.batch_norm)  # drawn images would spoil it
    return _distill(f"auto:{_width(teacher, share, target):.2f}", steps, frozen=frozen)


def _distill(student: str, steps: int, *, frozen: bool = False) -> StageConfig:
    config = DistillStage(
        student=student,
        steps=steps,
        batch_size=BATCH,
        num_validation=NUM_VALIDATION,
        freeze_batch_norm=frozen,
    )
    return StageConfig(task="distill", config=config)


def _prune(share: float, target: Target, steps: int) -> StageConfig:
    rounds = 4 if steps else 1
    config = PruneConfig(
        keep=share,
        target=target,
        keep_layer=0.1 if share < 0.25 else 0.25,
        rounds=rounds,
        finetune=tuning(steps // rounds),
    )
    return StageConfig(task="prune", config=config)


def _factorize(share: float, target: Target, steps: int) -> StageConfig:
    config = FactorizeConfig(keep=share, target=target, finetune=tuning(steps))
    return StageConfig(task="factorize", config=config)


def _merge(share: float, steps: int) -> StageConfig:
    config = MergeConfig(keep=math.sqrt(share), finetune=tuning(steps))  # of both sides of a layer
    return StageConfig(task="merge", config=config)


def _pack(share: float, steps: int) -> StageConfig:
    config = PackConfig(keep=min(1.0, share), rounds=2, finetune=tuning(steps // 2))
    return StageConfig(task="pack", config=config)


def _width(teacher: Teacher, share: float, target: Target) -> float:
    """Return the largest hundredth of every width that keeps at most a share of the target."""

    def cost(width: int) -> int:
        with rng_kept(), without_messages():
            network = narrower(teacher, width / 100) if width < 100 else teacher.module
        if target is Target.MACS:
            return count_macs(network, teacher.input_spec)
        return sum(p.numel() for p in network.parameters())

    low, high, most = 1, 100, share * cost(100)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= most else (low, middle)
    return low / 100


def int8_of(kind: str, calibration: Calibration | None = None) -> StageConfig:
    """Return the stage that writes an int8 file of a format."""
    return StageConfig(task="int8", config=Int8Config(formats=(kind,), calibration=calibration))


def quantized(bits: int, rounding: Rounding, steps: int = 0) -> StageConfig:
    """Return the stage that simulates weights and activations of a number of bits."""
    config = QuantizeConfig(
        weight_bits=bits, activation_bits=bits, rounding=rounding, finetune=tuning(steps)
    )
    return StageConfig(task="quantize", config=config)


def share_for(limit: float, network: Mapping[str, Any], bytes_each: int) -> float:
    """Estimate the share of parameters with which a network's file has at most `limit` bytes.

    Args:
        limit: largest size of the file.
        network: its bytes and parameters; what exceeds the parameters' bytes stays.
        bytes_each: of a parameter in the file.

    >>> share_for(60, {"bytes": 110, "parameters": 25}, 4)
    0.5

    """
    weights: int = bytes_each * network["parameters"]
    rest: int = max(0, network["bytes"] - weights)
    return min(MOST, max(LEAST, (limit - rest) / weights))


def refusal(stages: Sequence[StageConfig], teacher: Teacher) -> str | None:
    """Return the reason why stages cannot run on a teacher's network, or None."""
    network, first = teacher.module, stages[0]
    rng = torch.Generator(teacher.device).manual_seed(0)
    if not any(isinstance(layer, ROOTS) for layer in network.modules()) and first.task != "distill":
        return f"{type(network).__name__} has no layers that can be changed"
    try:
        if first.task == "distill":
            with without_messages():
                network = open_student(first.config.student, teacher, rng)
        check_stages(stages, network, teacher)
    except DreamstillError as error:
        return str(error)
    return None


def best_of(records: Sequence[dict[str, Any]], num: int) -> dict[str, Any]:
    """Return the best record of those that meet the goal, else the one that is nearest to it.

    Agreements that `num` images cannot tell apart are told apart by the KL divergence, and
    divergences that are nearly the same by the bytes, then by which was tried first.

    Args:
        records: with agreement, kl, bytes, what is missed of the goal, and the excess: how many
            times as large as allowed the larger of bytes and macs is.
        num: number of validation images, at least 1.

    """
    records = [record for record in records if not record["missed"]] or [
        min(records, key=lambda record: record["excess"])
    ]
    most = max(record["agreement"] for record in records)
    least = most - half_interval(most, num)
    equal = [record for record in records if record["agreement"] >= least]
    most_kl = SAME_KL * min(record["kl"] for record in equal)
    return min((r for r in equal if r["kl"] <= most_kl), key=lambda record: record["bytes"])
