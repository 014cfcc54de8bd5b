"""Write a network in a device's format, re-open it in its own runtime, compare, or fail."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamstill.errors import ExportError, first_line
from dreamstill.evaluate import evaluating
from dreamstill.teacher import InputSpec

__all__ = ["ExportRecord", "export", "load_exported"]

TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """What was written and how far its answers are from the network's."""

    path: str
    format: str
    bytes: int
    max_abs_difference: float
    """Largest difference of a logit, over batches of 1 and 7 random images."""


def export(module: nn.Module, spec: InputSpec, path: Path) -> ExportRecord:
    """Export by the suffix of `path`, .onnx or .pt2, with a free batch size, and verify.

    Raises:
        ExportError: the suffix is unknown, the network cannot be exported, the file cannot be
            written, or a logit differs by more than 1e-4 of max(1, largest logit). Nothing is
            left behind then.

    """
    formats = {".onnx": _write_onnx, ".pt2": _write_pt2}
    if path.suffix not in formats:
        raise ExportError(f"unknown format {path.suffix or path.name!r}; known: .onnx, .pt2")
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with evaluating(module), _quiet():
            formats[path.suffix](module, spec, temporary)
            difference = _compare(module, spec, load_exported(temporary))
        temporary.replace(path)
    except ExportError:
        raise
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    except Exception as error:  # exporters raise many kinds of their own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ExportError(f"cannot export to {path.suffix}: {first_line(cause)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return ExportRecord(str(path), path.suffix[1:], path.stat().st_size, difference)


def _example(spec: InputSpec, num: int) -> Tensor:
    """(num, C, H, W) random images that span the valid range."""
    rng = torch.Generator().manual_seed(num)
    return spec.normalize(torch.rand(num, *spec.shape, generator=rng))


def _compare(module: nn.Module, spec: InputSpec, run: Callable[[Tensor], Tensor]) -> float:
    """Largest difference of logits; ExportError beyond the tolerance."""
    largest = 0.0
    for num in (1, 7):
        inputs = _example(spec, num)
        wanted: Tensor = module(inputs)
        got = run(inputs)
        difference = (got - wanted).abs().max().item() if got.shape == wanted.shape else torch.inf
        allowed = TOLERANCE * max(1.0, wanted.abs().max().item())
        if not difference <= allowed:
            raise ExportError(
                f"the exported file differs from the network by {difference:.3g} "
                f"on {num} images; at most {allowed:.3g} is allowed"
            )
        largest = max(largest, difference)
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters narrate on stdout and warn of their own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write_onnx(module: nn.Module, spec: InputSpec, path: Path) -> None:
    program = torch.onnx.export(
        module,
        (_example(spec, 2),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["input"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    for name in ("shape", "mean", "std"):
        program.model.metadata_props[name] = json.dumps(getattr(spec, name))
    program.save(path, external_data=False)


def _write_pt2(module: nn.Module, spec: InputSpec, path: Path) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (_example(spec, 2),), dynamic_shapes=shapes)
    torch.export.save(program, path)


def load_exported(path: Path) -> Callable[[Tensor], Tensor]:
    """Open a .onnx or .pt2 file in its runtime: (N, C, H, W) inputs to (N, K) logits."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()

        def run_pt2(inputs: Tensor) -> Tensor:
            output: Tensor = module(inputs)
            return output

        return run_pt2
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run_onnx(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"input": inputs.numpy()})[0])

    return run_onnx
