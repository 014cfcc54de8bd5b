"""Ask a teacher of which only the answers are known: in batches, within a budget, never twice."""

import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dreamstill.black_box.answer_store import AnswerStore
from dreamstill.black_box.config import Answers, BlackBoxConfig, ImageFormat
from dreamstill.errors import BudgetError, DreamstillError, TeacherError, first_line, quoted
from dreamstill.input_spec import InputSpec
from dreamstill.nn.closed import ClosedNetwork

__all__ = ["LABEL_LOGIT", "Answer", "Interface"]

Answer = Callable[[Any], Any]
"""From images (N, C, H, W), a NumPy array, to their answers: an array, a tensor or lists.

It raises ConnectionError or TimeoutError for a request that is worth sending again."""
LABEL_LOGIT = 20.0
"""Logit of the named class, where labels are all that is answered; those of the others are 0."""
LEAST_PROBABILITY = 1e-7
"""Least probability, in place of 0 with its infinite logarithm: a float32 is no finer near 1."""
LONGEST_WAIT = 60.0

log = logging.getLogger(__name__)


class Interface(ClosedNetwork):
    """A network that is asked for its answers, in the form of a module from inputs to logits.

    Images are rounded to 8 bits before they are sent, as in a file, and known by their pixels.

    Args:
        answer: see `Answer`.
        spec: input of the network.
        config: how it is asked.
        name: of the network, for messages and the cache.
        num_classes: K; None takes it from the first scores.

    Raises:
        RunError: the cache is no cache, or another network's.

    """

    reason = (
        "a black box has no layers or weights; distill a student from it first, and change that"
    )

    def __init__(
        self,
        answer: Answer,
        spec: InputSpec,
        config: BlackBoxConfig,
        *,
        name: str,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.answer, self.spec, self.config, self.name = answer, spec, config, name
        self.num_classes = num_classes
        shape, mean, std = (",".join(map(str, v)) for v in (spec.shape, spec.mean, spec.std))
        sent = config.images if config.images is ImageFormat.PIXELS else f"{mean} {std}"
        kinds = f"{num_classes} labels" if config.answers is Answers.LABELS else config.answers
        owner = f"{name} ({kinds} for {shape} {sent})"
        self.store = AnswerStore(config.cache, owner)
        self._next_request = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Interface":
        raise TeacherError("a black box has no layers or weights to copy")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K) for inputs (N, C, H, W), without a gradient; see `ask`."""
        return self.ask(self.spec.decode(inputs.detach()))

    def ask(self, pixels: Tensor) -> Tensor:
        """Return logits (N, K), on the device of uint8 pixels (N, C, H, W).

        Raises:
            BudgetError: there are more unknown images than the budget leaves; none is sent.
            TeacherError: the answer is no answer, or the requests fail.

        """
        images = pixels.cpu().numpy()
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        first = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))
        known = self.store.find([*first])
        new = sorted(index for key, index in first.items() if key not in known)
        self._check_budget(len(new))
        for start in range(0, len(new), self.config.batch_size):
            some = new[start : start + self.config.batch_size]
            rows = self.request(images[some])
            answered = {keys[i]: row.tobytes() for i, row in zip(some, rows, strict=True)}
            self.store.keep(answered)
            known |= answered
        dtype = np.int64 if self.config.answers is Answers.LABELS else np.float32
        rows = np.stack([np.frombuffer(known[key], dtype) for key in keys])  # (N, K) or (N, 1)
        return self.logits(torch.from_numpy(rows)).to(pixels.device)

    def _check_budget(self, num: int) -> None:
        spent, budget = self.store.spent, self.config.budget
        if spent + num > budget:
            raise BudgetError(
                f"{num:,} more queries exceed the budget of {self.name}: {spent:,} of {budget:,} "
                "are spent; raise budget, or ask for fewer images"
            )

    def request(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Send images, again after a failure that may pass; return their checked answers.

        Every image that is sent counts, since the other side may have counted it.
        """
        images: NDArray[Any] = pixels
        if self.config.images is ImageFormat.INPUTS:
            images = self.spec.encode(torch.from_numpy(pixels)).numpy()
        for failed in range(self.config.retries + 1):
            self._take_turn()
            if not self.store.spend(len(images), self.config.budget):
                self._check_budget(len(images))
            try:
                answer = self.answer(images.copy())  # which it may change
            except (ConnectionError, TimeoutError) as error:
                reason = first_line(error)
                if failed < self.config.retries:
                    seconds = min(LONGEST_WAIT, self.config.wait * 2**failed)
                    log.info("%s: %s; again in %.3g s.", self.name, reason, seconds)
                    time.sleep(seconds)
                continue
            except DreamstillError:
                raise
            except Exception as error:  # the user's own code can raise anything
                raise TeacherError(f"{self.name} failed: {first_line(error)}") from error
            return self._checked(answer, len(images))
        raise TeacherError(
            f"{self.name} failed {self.config.retries + 1} times, the last with: {reason}"
        )

    def _take_turn(self) -> None:
        """Wait until the rate allows the next request."""
        if self.config.rate:
            time.sleep(max(0.0, self._next_request - time.monotonic()))
            self._next_request = time.monotonic() + 1 / self.config.rate

    def _checked(self, answer: Any, num: int) -> NDArray[Any]:
        """Return float32 scores (N, K) or int64 labels (N, 1); TeacherError if they are neither."""
        kind = self.config.answers
        labels, classes = kind is Answers.LABELS, self.num_classes
        wanted = f"{num} labels" if labels else f"({num}, {classes or 'K'}) {kind}"
        try:
            plain = answer.detach().cpu().numpy() if isinstance(answer, Tensor) else answer
            rows: NDArray[Any] = np.asarray(plain, np.float64)
        except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, text
            raise TeacherError(
                f"{self.name} must answer with {wanted}; got {quoted(answer)}"
            ) from error
        if rows.shape[:1] != (num,) or rows.ndim != (1 if labels else 2):
            raise TeacherError(f"{self.name} must answer with {wanted}; got shape {rows.shape}")
        if not labels and rows.shape[1] != (classes or rows.shape[1]):
            raise TeacherError(f"{self.name} must answer with {wanted}; got shape {rows.shape}")
        if not np.isfinite(rows).all():
            raise TeacherError(f"{self.name} answers with values that are not finite, for pixels")
        if labels:
            return self._checked_labels(rows)
        if rows.shape[1] < 2:
            raise TeacherError(f"{self.name} must have at least 2 classes; got {rows.shape[1]}")
        total = rows.sum(1)
        likely = bool((rows >= 0).all() and (abs(total - 1) < 1e-2).all())
        if kind is Answers.LOGITS and likely and num > 1:
            raise TeacherError(f"{self.name} answers with probabilities: set answers to them")
        if kind is Answers.PROBABILITIES and not likely:
            odd = int(abs(total - 1).argmax())
            raise TeacherError(
                f"{self.name} must answer with probabilities, which are at least 0 and sum to 1; "
                f"got {quoted(rows[odd].round(4).tolist())}, which sum to {total[odd]:.4g}"
            )
        return rows.astype(np.float32)

    def _checked_labels(self, rows: NDArray[np.float64]) -> NDArray[np.int64]:
        assert self.num_classes is not None
        wrong = rows[(rows != rows.round()) | (rows < 0) | (rows >= self.num_classes)]
        if wrong.size:
            raise TeacherError(
                f"{self.name} must answer with labels, the integers 0 to {self.num_classes - 1}; "
                f"got {wrong[0]:g}"
            )
        return rows[:, None].astype(np.int64)

    def logits(self, rows: Tensor) -> Tensor:
        """Return checked answers as logits (N, K), of zero mean where they were probabilities.

        Softmax gives the probabilities back: logits are known up to a constant. Source of the mean:
        Truong et al. 2021 (DFME), section 3.4.
        """
        match self.config.answers:
            case Answers.LABELS:
                assert self.num_classes is not None
                return LABEL_LOGIT * F.one_hot(rows[:, 0], self.num_classes).float()
            case Answers.PROBABILITIES:
                logits = rows.clamp_min(LEAST_PROBABILITY).log()
                return logits - logits.mean(1, keepdim=True)
            case _:
                return rows
