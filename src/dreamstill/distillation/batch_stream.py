"""Batches to train on: fresh ones of a method, and stored images again."""

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dreamstill.data.augmentation import augment
from dreamstill.data.batch import Batch, TrainingBatch
from dreamstill.data.class_coverage import class_entropy
from dreamstill.data.config import NO_AUGMENTATION
from dreamstill.data.replay_buffer import ReplayBuffer
from dreamstill.distillation.config import DistillConfig, FinetuneConfig
from dreamstill.errors import BudgetError, ConfigError
from dreamstill.files.checkpoints import Stateful
from dreamstill.input_spec import InputSpec
from dreamstill.process_group import gathered, world_size
from dreamstill.progress import Progress
from dreamstill.synthesis.base import Method

__all__ = ["BatchStream", "replay"]


def replay(
    images: Tensor, spec: InputSpec, config: FinetuneConfig, rng: torch.Generator
) -> Iterator[TrainingBatch]:
    """Yield batches of stored images without end, drawn with replacement and augmented.

    Args:
        images: uint8 (N, C, H, W).
        spec: the teacher's input.
        config: its `batch_size` and `augment` are read.
        rng: draws; the batches are on its device.

    """
    while True:
        index = torch.randint(len(images), (config.batch_size,), generator=rng, device=rng.device)
        chosen = spec.encode(images[index.to(images.device)].to(rng.device))
        yield augment(chosen, spec, config.augment, rng), None


class BatchStream(Stateful, Iterator[TrainingBatch]):
    """An endless stream of batches, one for each step, which can be stopped and resumed.

    Fresh batches of a method go into the replay buffer, from which the steps between them are
    served. When the newest one has collapsed to few classes, `check_method` sets the method back to
    its state at the last good one. Several processes each make a batch at the same time, and all of
    them are served the same batches: what `state` names, where the method is not, is theirs too.

    Args:
        method: makes the images.
        buffer: stores them.
        student: what adversarial methods play against.
        config: see DistillConfig.
        rng: draws from the buffer and augments; the method may share it.
        least: images that the buffer must hold before the first step.

    Raises:
        ConfigError: there would be no images.

    """

    state = (
        *("drawn", "warmed_up", "repeats_left", "repeated", "counts", "exhausted"),
        *("waiting", "buffer"),
    )

    def __init__(
        self,
        method: Method,
        buffer: ReplayBuffer,
        student: nn.Module,
        config: DistillConfig,
        *,
        rng: torch.Generator,
        least: int = 0,
    ) -> None:
        self.method, self.buffer, self.student = method, buffer, student
        self.config, self.rng = config, rng
        self.fresh_every = config.fresh_period(method.fresh_every)
        prefill = config.num_prefill(method.fresh_every)
        if prefill == 0 and self.fresh_every == 0:
            raise ConfigError("prefill 0 and fresh_every 0 leave nothing to learn from")
        if self.fresh_every and method.config.batch_size < 2 * world_size() > 2:
            raise ConfigError(
                f"new batches of {method.config.batch_size} are too small for {world_size()} "
                "processes, each of which takes 2 images or more: set synthesis.batch_size"
            )
        self.prefill = max(prefill if config.steps else 0, least)
        self.counts = torch.zeros(method.teacher.num_classes, dtype=torch.int64)
        """Images of each class so far."""
        self.newest = torch.zeros_like(self.counts)
        """Images of each class in the newest fresh batch of this process."""
        self.warmed_up = self.drawn = 0
        self.exhausted = False  # the teacher's budget is spent
        self.repeated: TrainingBatch | None = None  # the fresh batch that is trained on again
        self.repeats_left = 0
        self.waiting: list[tuple[Tensor, ...]] = []
        """Images and logits of batches that the processes have made at once, and none has used."""
        self.healthy = copy.deepcopy(method.state_dict())
        self.batch_size: int = method.config.batch_size
        """Images that the method makes at once."""
        method.anneal_over(math.ceil(self._num_batches(self.batch_size) / world_size()))

    def _num_batches(self, size: int) -> int:
        """Return how many batches of `size` images the method makes in the whole run."""
        config = self.config
        num = math.ceil(self.prefill / size)
        if self.fresh_every:
            num += math.ceil(config.steps / self._period)
        return num

    @property
    def _period(self) -> int:
        """Steps from one fresh batch to the next one that is not a repetition of it."""
        return math.ceil(self.method.repeat / self.fresh_every) * self.fresh_every

    @property
    def num_images(self) -> int:
        """Images that the method makes in the whole run."""
        return self._num_batches(self.batch_size) * self.batch_size

    @property
    def num_visits(self) -> int:
        """Images of all training batches in the whole run."""
        steps, fresh = self.config.steps, 0
        if self.fresh_every:
            whole, rest = divmod(steps, self._period)
            fresh = whole * self.method.repeat + min(rest, self.method.repeat)
        return fresh * self.batch_size + (steps - fresh) * self.config.batch_size

    def fill(self) -> Iterator[Progress]:
        """Warm the method up, and make the images that the buffer begins with.

        Yields after every batch, when a stop is safe.
        """
        while self.warmed_up < self.method.warm_up:
            self.method.next_batch(self.student)
            self.warmed_up += 1
            if self.warmed_up == self.method.warm_up:
                self.healthy = copy.deepcopy(self.method.state_dict())
            yield Progress("warm up", self.warmed_up, self.method.warm_up, {})
        make = self.method.initial_batch if self.fresh_every else self.method.next_batch
        while self.buffer.added < self.prefill and self._made(make):
            yield Progress("synthesize", min(self.buffer.added, self.prefill), self.prefill, {})

    def _made(self, make: Callable[[nn.Module], Batch]) -> Batch | None:
        """Make a batch and store it; return it, or None once the teacher's budget is spent."""
        if self.exhausted:
            return None
        if not self.waiting:
            try:
                batch = make(self.student)
            except BudgetError:
                if not len(self.buffer):
                    raise
                self.exhausted = True
                return None
            self.newest = self.method.teacher.output_spec.counts(batch.logits)
            self.waiting = gathered(batch.images, batch.logits)
        batch = Batch(*self.waiting.pop(0))
        self.buffer.add(batch)
        self.counts += self.method.teacher.output_spec.counts(batch.logits)
        return batch

    def __next__(self) -> TrainingBatch:
        step, self.drawn = self.drawn, self.drawn + 1
        if self.repeated and self.repeats_left:
            self.repeats_left -= 1
            return self._augmented(self.repeated)
        due = self.fresh_every and step % self.fresh_every == 0
        if due and (fresh := self._made(self.method.next_batch)):
            batch, self.repeats_left = (fresh.images, fresh.logits), self.method.repeat - 1
            self.repeated = batch if self.repeats_left else None
            return self._augmented(batch)
        return self._augmented((self.buffer.sample(self.config.batch_size, self.rng), None))

    def _augmented(self, batch: TrainingBatch) -> TrainingBatch:
        """Augment a batch; the teacher's logits of the images before are dropped."""
        if self.config.augment == NO_AUGMENTATION:
            return batch
        spec = self.method.teacher.input_spec
        return augment(batch[0], spec, self.config.augment, self.rng), None

    def check_method(self) -> dict[str, float]:
        """Set a method back that has collapsed; return whether it had.

        It has when the newest batch has less than a third of the class entropy of all batches: a
        generator that makes one image over and over is easy to agree with, and teaches nothing.
        """
        if not self.fresh_every:
            return {}
        most = math.log(max(1, int(self.newest.sum())))  # a small batch cannot have more
        collapsed = 3 * class_entropy(self.newest) < min(most, class_entropy(self.counts))
        if collapsed:
            self.method.load_state_dict(copy.deepcopy(self.healthy))
        else:
            self.healthy = copy.deepcopy(self.method.state_dict())
        return {"collapsed": float(collapsed)}
