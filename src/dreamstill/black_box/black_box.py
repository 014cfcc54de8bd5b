"""A teacher of which only the answers are known, to images, within a budget."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dreamstill.black_box.config import NUM_EXAMINED, Answers, BlackBoxConfig
from dreamstill.black_box.endpoints import HttpEndpoint, OnnxFile
from dreamstill.black_box.forward_differences import estimated
from dreamstill.black_box.interface import Answer, Interface
from dreamstill.config import MOST, Precision, from_plain
from dreamstill.errors import ConfigError, TeacherError
from dreamstill.files.reading import StrPath
from dreamstill.input_spec import InputSpec
from dreamstill.nn.checks import probing_images
from dreamstill.output_spec import OutputSpec
from dreamstill.teacher import Capabilities, Teacher

__all__ = ["BlackBox"]

TOLERANCE = 1e-3
"""Largest difference between two answers for an image, as a share of the largest score."""


class BlackBox(Teacher):
    """A teacher of which only the answers are known: any function, an endpoint, a closed file.

    It serves wherever a teacher serves that needs neither layers nor weights. No image is asked
    about twice, and there are never more queries than `config.budget`; see `BlackBoxConfig`. On
    opening it is asked about three images, once for a cache.

    Args:
        answer: returns scores (N, K) or labels (N,) for images (N, C, H, W), a NumPy array: an
            array, a tensor or lists. ConnectionError and TimeoutError stand for a request that is
            worth sending again. Or the address of an endpoint: see `HttpEndpoint`.
        input_spec: shape and normalization of what it takes.
        config: what it answers, and how it is asked.
        num_classes: K; needed where it answers with labels, else checked.
        device: where students are trained.
        precision: of students; auto is float32.
        name: its name in messages and in the cache. Default: that of the function, or the address.

    Raises:
        BudgetError: the budget is below three.
        ConfigError: num_classes is missing.
        RunError: the cache is not one, or another teacher's.
        TeacherError: it fails, does not answer as `config` says, or its answer for an image
            changes between requests or with the other images.

    Examples:
        >>> import dreamstill as ds
        >>> spec = ds.InputSpec((1, 2, 2), mean=(0.5,), std=(0.5,))
        >>> config = ds.BlackBoxConfig(answers="labels", budget=1000)
        >>> teacher = ds.BlackBox(lambda x: x[:, 0, 0, 0] > 0, spec, config, num_classes=2)
        >>> teacher(spec.normalize(torch.ones(1, 1, 2, 2))).argmax(1).item(), teacher.queries
        (1, 4)

    """

    module: Interface

    def __init__(
        self,
        answer: Answer | str,
        input_spec: InputSpec,
        config: BlackBoxConfig | None = None,
        *,
        num_classes: int | None = None,
        device: str = "cpu",
        precision: Precision | str = Precision.AUTO,
        name: str | None = None,
    ) -> None:
        config = config or BlackBoxConfig()
        if isinstance(answer, str):
            answer = HttpEndpoint(answer, timeout=config.timeout)
        if num_classes is None and config.answers is Answers.LABELS:
            raise ConfigError("labels do not say how many classes there are: give num_classes")
        if num_classes is not None:
            OutputSpec(num_classes)  # raises
        self.precision = from_plain(Precision, precision, "precision")
        if self.precision is Precision.AUTO:
            self.precision = Precision.FLOAT32
        self.input_spec, self.source, self._device = input_spec, None, torch.device(device)
        self._layouts = WeakKeyDictionary()
        self.factory = name or _name_of(answer)
        self.module = Interface(
            answer, input_spec, config, name=self.factory, num_classes=num_classes
        )
        self.output_spec = OutputSpec(_examined(self.module))
        if num_classes not in (None, self.num_classes):  # of answers in the cache
            raise TeacherError(f"{self.factory} has {self.num_classes} classes, not {num_classes}")
        self.capabilities = Capabilities(
            gradient=config.gradient_directions > 0,
            batch_norm=(),
            last_linear=None,
            num_features=None,
            obstacle="only its answers are known",
            scores=config.answers is not Answers.LABELS,
            budget=config.budget,
        )

    @classmethod
    def from_onnx(
        cls,
        path: StrPath,
        input_spec: InputSpec,
        config: BlackBoxConfig | None = None,
        **options: Any,
    ) -> "BlackBox":
        """Open an ONNX file in onnxruntime, as a black box; see `BlackBox` for the arguments."""
        file = OnnxFile(path)
        return cls(file, input_spec, config, **{"name": f"onnxruntime:{file.digest}"} | options)

    def __repr__(self) -> str:
        shape, config = "x".join(map(str, self.input_spec.shape)), self.module.config
        return (
            f"BlackBox({self.factory}, {shape} -> {config.answers} of {self.num_classes} classes, "
            f"{self.queries:,} of {config.budget:,} queries)"
        )

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return logits (N, num_classes) for inputs (N, C, H, W).

        They have a gradient, an estimate, if `config.gradient_directions` is above 0 and the inputs
        need one. Raises BudgetError, TeacherError: see `Interface.ask`.
        """
        num_directions = self.module.config.gradient_directions
        if num_directions and torch.is_grad_enabled() and inputs.requires_grad:
            return estimated(self.module, inputs, num_directions)
        logits: Tensor = self.module(inputs)
        return logits

    @property
    def queries(self) -> int:
        """Images sent so far, by all runs that share the cache."""
        return self.module.store.spent

    @queries.setter
    def queries(self, num: int) -> None:
        """Count those of a run that is resumed without a cache; the number never falls."""
        self.module.store.spend(max(0, num - self.queries), MOST)

    @property
    def device(self) -> torch.device:
        """Device on which students are trained."""
        return self._device


def _name_of(answer: Any) -> str:
    if isinstance(answer, HttpEndpoint):
        return answer.url
    own = getattr(answer, "__qualname__", type(answer).__qualname__)
    return f"{getattr(answer, '__module__', type(answer).__module__)}:{own}"


def _examined(interface: Interface) -> int:
    """Return the number of classes; raise TeacherError if answers for an image change."""
    images = probing_images(interface.spec.shape)[: NUM_EXAMINED - 1]  # one is asked again
    pixels = (255 * images).round().to(torch.uint8)
    together = interface.ask(pixels)
    interface.num_classes = together.shape[1]
    if not interface.store.examined:
        alone = interface.request(pixels[1:].numpy())
        error = (interface.logits(torch.from_numpy(alone)) - together[1:]).abs().max().item()
        if error > TOLERANCE * together.abs().max().item() + 1e-5:
            raise TeacherError(
                f"{interface.name} answers differently when it is asked again about one image of "
                "two: an answer must depend on its image alone"
            )
        interface.store.set_examined()
    return together.shape[1]
