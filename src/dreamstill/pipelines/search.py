"""Try candidates toward a goal of compression, and keep what each of them came to.

Quick candidates come first, without training; if none of them is good enough, the best are tried
again with as many training steps as the time that is left allows. Each has a directory with its
stages and result.json, so that a finished one is not run again on resuming; which one is next
depends on the results so far alone.
"""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamstill.compression.config import Rounding
from dreamstill.config import read_plain, to_plain
from dreamstill.errors import DreamstillError
from dreamstill.exporters.config import Calibration
from dreamstill.exporters.formats import export
from dreamstill.files.writing import write_json
from dreamstill.formatting import agreement_of, duration, shown
from dreamstill.pipelines.candidates import (
    LEAST,
    Candidate,
    Family,
    best_of,
    families,
    int8_of,
    quantized,
    refusal,
    share_for,
)
from dreamstill.pipelines.compress import Made, other_stage, run_stages
from dreamstill.pipelines.config import CompressJob, StageConfig
from dreamstill.pipelines.distill import open_student
from dreamstill.pipelines.goal import PACKED, GoalJob
from dreamstill.progress import OnProgress
from dreamstill.synthesis.validation_set import ValidationSet
from dreamstill.teacher import Teacher

__all__ = ["Prepared", "Search"]

log = logging.getLogger(__name__)

TRIES = 3
"""Shares that a family is tried with, until its file is small enough."""
FAR = 1.25
"""Times too many bytes from which int8 is the way, and not fewer channels."""
TUNED = 3
"""Families that are tried again with training."""
FEWEST, MOST_STEPS = 100, 2000
"""Training steps of a candidate: with fewer it is not worth beginning."""


class Prepared(NamedTuple):
    """Images that candidates are made and compared with, and the seconds that they took."""

    images: Tensor
    """uint8 (N, C, H, W)."""
    validation: ValidationSet
    seconds: float
    """That the preparation took."""
    step_seconds: float
    """Of a training step."""


class Search:
    """Search for the best network that meets a goal.

    Args:
        folder: of the candidates' directories.
        job: with the goal and the time.
        teacher: whose network is made smaller.
        whole: its own macs, parameters and bytes, and why it was not_exported, if so.
        on_progress: called after each step.

    """

    prepared: Prepared

    def __init__(
        self,
        folder: Path,
        job: GoalJob,
        teacher: Teacher,
        whole: Mapping[str, Any],
        on_progress: OnProgress,
    ) -> None:
        self.folder, self.job, self.teacher, self.whole = folder, job, teacher, whole
        self.on_progress = on_progress
        self.kind = next((kind for kind in job.format if kind != PACKED), "")
        self.records: list[dict[str, Any]] = []
        self.families: list[Family] = []
        self.int8 = False
        """Whether int8 files can be written."""
        self.refused: dict[str, str] = {}
        """Why the other tasks do not apply, by name."""
        self._check()

    def _check(self) -> None:
        """Find out which tasks apply."""
        goal, closed = self.job.goal, self.whole.get("not_exported")
        only_packed = None if self.kind else f"{PACKED} is the only format asked for"
        if goal.task == "quantize":
            self._note("quantize", refusal([quantized(4, Rounding.NEAREST)], self.teacher))
            return
        reason = only_packed or closed
        if closed and self.job.student is not None:  # whose own network may be another matter
            reason = only_packed
        elif reason is None:
            reason = refusal([int8_of(self.kind)], self.teacher)
        self.int8 = self._note("int8", reason)
        for family in [] if goal.task else families(self.teacher, self.job):
            reason = None if family.name == "pack" else only_packed
            if self._note(family.name, reason or self._refusal(family)):
                self.families.append(family)

    def _note(self, task: str, reason: str | None) -> bool:
        """Note why a task does not apply; return whether it does."""
        if reason is not None:
            self.refused[task] = reason
        return reason is None

    def _refusal(self, family: Family) -> str | None:
        try:
            stage = family.make(0.9, FEWEST if family.trained else 0)
        except DreamstillError as error:  # such as of a teacher without a narrower copy
            return str(error)
        return refusal([stage], self.teacher)

    @property
    def applicable(self) -> list[str]:
        """Names of the tasks that apply."""
        task = self.job.goal.task
        if task:
            return [task] if task not in self.refused else []
        return [family.name for family in self.families] + ["int8"] * self.int8

    @property
    def not_tried(self) -> list[str]:
        """Names of the tasks that apply and are part of no candidate."""
        tried = {task for record in self.records for task in record["task"].split(" + ")}
        return [name for name in self.applicable if name not in tried]

    @property
    def seconds(self) -> float:
        """Seconds of the preparation and of all finished candidates."""
        return self.prepared.seconds + float(sum(record["seconds"] for record in self.records))

    @property
    def seconds_left(self) -> float:
        """Seconds until nothing new is begun."""
        return 60 * self.job.minutes - self.seconds

    def run(self, prepared: Prepared) -> None:
        """Try the quick candidates, then those with training, while there is time."""
        self.prepared = prepared
        self._try_quick()
        if not self.satisfied:
            self._try_trained()

    def _try_quick(self) -> None:
        goal = self.job.goal
        if goal.task == "int8":
            for calibration in (None, Calibration.PERCENTILE):
                self.attempt(int8_of(self.kind, calibration))
        elif goal.task == "quantize":
            self.attempt(quantized(4, Rounding.NEAREST))
        else:
            if self.int8 and goal.by_bytes and "not_exported" not in self.whole:
                self.attempt(int8_of(self.kind))
            for family in self.families:
                if not family.trained:
                    self.adapt(family, 0)

    def _try_trained(self) -> None:
        goal = self.job.goal
        if goal.task == "int8":
            self.attempt(quantized(8, Rounding.ADAROUND), int8_of(self.kind))
        elif goal.task == "quantize":
            for rounding in (Rounding.ADAROUND, Rounding.QDROP):
                self.attempt(quantized(4, rounding))
            if (steps := self.steps_for(1)) and not self.satisfied:
                self.attempt(quantized(4, Rounding.NEAREST, steps))
        else:
            again = self.most_promising()
            for number, family in enumerate(again):
                if (steps := self.steps_for(len(again) - number)) and not self.satisfied:
                    self.adapt(family, steps)

    def adapt(self, family: Family, steps: int) -> None:
        """Try a family with smaller and smaller shares, until its file is small enough."""
        goal, whole = self.job.goal, self.whole
        share, to_int8 = self._first_share(family), self._by_int8(family)
        for _ in range(TRIES):
            stages = [family.make(share, steps)]
            stages += [int8_of(self.kind)] if to_int8 else []
            record = self.attempt(*stages, share=share)
            if record is None or "failed" in record:
                return
            excess = goal.excess(record, whole)
            if max(excess.values()) <= 1 or family.name == "distill":
                return
            can_be_int8 = self.int8 and not to_int8 and family.name != "pack"
            if can_be_int8 and excess["bytes"] > FAR and excess.get("macs", 0) <= 1:
                to_int8 = True
            elif share > LEAST:
                share = max(LEAST, share / max(excess.values()) / 1.02)
            else:
                return

    def _by_int8(self, family: Family) -> bool:
        """Whether a family's networks become int8 files: where bytes are all that counts."""
        return self.job.goal.by_bytes and self.int8 and family.name != "pack"

    def _first_share(self, family: Family) -> float:
        """Return the share to begin with: of the same family what was small enough, if any."""
        own = [r for r in self.finished if r["task"].split(" + ")[0] == family.name]
        tried = [record for record in own if not record["missed"]]
        if tried:
            return float(tried[-1]["share"])
        goal, whole = self.job.goal, self.whole
        if goal.macs is not None:
            return goal.macs
        limit = goal.limits(whole)["bytes"]
        if family.name == "pack":
            return float(limit / whole["parameters"])  # about a byte for each weight that stays
        alone = [record for record in self.finished if record["task"] == "int8"]
        if self._by_int8(family) and alone:
            return share_for(limit, alone[0], 1)
        return share_for(limit, whole, 4)

    def steps_for(self, num: int) -> int:
        """Return the steps for the next of `num` candidates in the time that is left, or 0."""
        steps = int(self.seconds_left / num / self.prepared.step_seconds)
        return min(MOST_STEPS, steps) if steps >= FEWEST else 0

    def most_promising(self) -> list[Family]:
        """Return the families to try with training: those that need it, and the best so far."""
        order = list[str]()
        left = self.finished
        while left:
            best = self._best_of(left)
            order.append(best["task"].split(" + ")[0])
            left = [record for record in left if record is not best]
        of_name = {family.name: family for family in self.families if not family.trained}
        quick = [of_name[name] for name in dict.fromkeys(order) if name in of_name]
        return [family for family in self.families if family.trained] + quick[:TUNED]

    @property
    def finished(self) -> list[dict[str, Any]]:
        """Records of the candidates that ran to their end."""
        return [record for record in self.records if "failed" not in record]

    @property
    def best(self) -> dict[str, Any] | None:
        """Record of the candidate to recommend; None if all have failed."""
        return self._best_of(self.finished) if self.finished else None

    def _best_of(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return best_of(records, len(self.prepared.validation.images))

    @property
    def satisfied(self) -> bool:
        """Whether a candidate meets the goal and loses no more than is allowed."""
        best = self.best
        return best is not None and not best["missed"] and not self.loses_too_much(best)

    def loses_too_much(self, record: Mapping[str, Any]) -> bool:
        """Tell whether the predicted loss of a candidate is above the limit."""
        loss: float = 100 * (1 - record["agreement"])
        return loss > self.job.lose_at_most + 1e-9

    def attempt(self, *stages: StageConfig, share: float | None = None) -> dict[str, Any] | None:
        """Run a candidate, or read what it came to; None if there is no time for it."""
        candidate, number = Candidate(stages), len(self.records) + 1
        folder = self.folder / f"{number}-{candidate.task.replace(' + ', '-')}"
        path = folder / "result.json"
        if path.is_file():
            record = read_plain(path)
        elif self.seconds_left <= 0:
            return None
        else:
            settings = f" ({candidate.settings})" if candidate.settings else ""
            log.info("Trying %s%s.", candidate.task, settings)
            begun = time.monotonic()
            head = {"task": candidate.task, "settings": candidate.settings, "share": share}
            try:
                record = head | self._measured(candidate, folder)
            except DreamstillError as error:
                record = head | {"failed": str(error)}
            record |= {"folder": folder.name, "seconds": round(time.monotonic() - begun, 3)}
            write_json(path, record)
            log.info("%s", self.told(record))
        self.records.append(record)
        return record

    def _measured(self, candidate: Candidate, folder: Path) -> dict[str, Any]:
        """Run a candidate; return its size, agreement and what it misses of the goal."""
        plain = [to_plain(stage) for stage in candidate.stages]
        if other_stage(folder, candidate.stages):  # of a run that was killed, with other minutes
            shutil.rmtree(folder)
        self._begin_with_finished(plain, folder)
        made = self.reopened(candidate.stages, folder)
        last = made[-1]
        names = ("parameters", "macs", "agreement", "kl", "weight_bytes")
        record = {name: last.record[name] for name in names if name in last.record}
        if "files" in last.record:
            record["bytes"] = last.record["files"][0]["bytes"]
        elif self.job.goal.task or not self.kind:
            record["bytes"] = last.record["weight_bytes"]
        else:
            path = folder / f"network.{self.kind}"
            record["bytes"] = export(last.network, path, self.teacher.input_spec).bytes
        excess = self.job.goal.excess(record, self.whole)
        record["missed"] = [name for name, times in excess.items() if times > 1]
        record["excess"] = max(excess.values(), default=0.0)
        warnings = sum(len(one.record.get("warnings", [])) for one in made)
        if warnings and warnings >= candidate.trainings:
            record["settings"] = f"{candidate.settings}, start kept"
        return record | {"stages": plain}

    def _begin_with_finished(self, stages: list[Any], folder: Path) -> None:
        """Copy what an earlier candidate finished of the same stages, so that it is read back."""
        for record in self.finished:
            num = len(record["stages"])
            if record["stages"] == stages[:num] and num < len(stages) and not folder.exists():
                copied = folder.with_name(f".{folder.name}.tmp")  # whole, or not at all
                shutil.rmtree(copied, ignore_errors=True)
                others = shutil.ignore_patterns("result.json", "network.*")
                shutil.copytree(self.folder / record["folder"], copied, ignore=others)
                copied.rename(folder)

    def reopened(self, stages: Sequence[StageConfig], folder: Path) -> list[Made]:
        """Return the networks of a candidate's stages, read back where they are finished."""
        teacher, job, given = self.teacher, self.job, self.prepared
        run = CompressJob(
            teacher=job.teacher, stages=tuple(stages), seed=job.seed, device=job.device
        )
        start, first = teacher.module, stages[0]
        if first.task == "distill" and job.student == first.config.student:
            rng = torch.Generator(teacher.device).manual_seed(job.seed)
            start = open_student(job.student, teacher, rng)
        return run_stages(
            folder, run, teacher, given.images, given.validation, [start], self.on_progress
        )

    def told(self, record: Mapping[str, Any]) -> str:
        """Return what a candidate came to, in a sentence."""
        took = f"in {duration(record['seconds'])}"
        if "failed" in record:
            return f"{record['task']} failed {took}: {record['failed']}"
        known = {"validation_images": len(self.prepared.validation.images)}
        share = agreement_of(known | self.teacher.output_spec.record, record["agreement"])
        size = f"{shown(record['bytes'])} bytes, {shown(record['macs'])} MACs"
        return f"{record['task']}: {size}, agreement {share}, {took}."
