"""Export networks and compare each file with the network in the file's own runtime."""

import contextlib
import faulthandler
import importlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.config import from_plain, to_plain
from dreamstill.errors import DreamstillError, ExportError, innermost
from dreamstill.evaluation import device_of, evaluating
from dreamstill.exporters import c_array, litert, onnx_file, pt2
from dreamstill.files.reading import StrPath, reading
from dreamstill.files.writing import write_atomically
from dreamstill.input_spec import InputSpec
from dreamstill.nn.copying import copy_network
from dreamstill.nn.seeded import rng_kept
from dreamstill.output_spec import UNSEEN, OutputKind
from dreamstill.quiet import quiet

__all__ = [
    "ExportRecord",
    "RUNTIMES",
    "check_formats",
    "export",
    "load_exported",
    "on_cpu",
    "onnxruntime",
    "open_written",
    "stored_bytes",
    "to_pt2",
    "to_pte",
]

TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """Result of an export."""

    path: str
    format: str
    bytes: int
    """Size of the file; of a C header, that of the array in it."""
    max_abs_difference: float
    """Largest absolute difference of a logit over batches of 1 and 7 random images."""


def check_formats(names: Iterable[str], *, also: Sequence[str] = ()) -> None:
    """Raise ExportError if a format is unknown or its library is not installed.

    Args:
        names: of the formats.
        also: names that are known besides those of the formats that are exported.

    """
    for name in names:
        if name not in _WRITERS and name not in also:
            raise ExportError(f"unknown format {name!r}; known: {', '.join((*_WRITERS, *also))}")
        for library, extra in _EXTRAS.get(name, {}).items():
            if importlib.util.find_spec(library) is None:
                raise ExportError(f"no {library}: pip install 'dreamstill[{extra}]'")


def on_cpu(module: nn.Module) -> nn.Module:
    """Return the network if it is on the CPU, otherwise a copy on the CPU."""
    return module if device_of(module).type == "cpu" else copy_network(module).cpu()


def onnxruntime(part: str = "") -> Any:
    """Import onnxruntime, or a submodule such as "quantization", with telemetry disabled.

    Telemetry opens sockets and writes to the home directory, and can only be disabled before the
    import. A value of ORT_DISABLE_TELEMETRY that is already set is kept.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module(f"onnxruntime.{part}" if part else "onnxruntime")


@rng_kept()  # exporters draw from the global generator
def export(
    model: nn.Module,
    path: StrPath,
    input_spec: InputSpec,
    *,
    outputs: OutputKind | str = OutputKind.CLASSES,
) -> ExportRecord:
    """Export a network, run the file in its runtime, and compare the logits.

    Args:
        model: network on any device; not modified.
        path: file to write: .onnx or .pt2, with a dynamic batch size; or .pte, .tflite, or .h (a C
            array of a .tflite file), with a batch size of 1 because their runtimes plan memory
            ahead.
        input_spec: input of the network.
        outputs: what the outputs say, which an .onnx file remembers.

    Returns:
        The path, format and size of the file, and the largest difference of a logit.

    Raises:
        ExportError: the format is unknown, its library is not installed, the network cannot be
            exported, the file cannot be written, or a logit differs by more than 1e-4 * max(1,
            largest logit). No file is left behind.

    """
    path, model = Path(path), on_cpu(model)
    kind, said = path.suffix[1:], from_plain(OutputKind, outputs, "outputs")
    check_formats([kind])
    differences = []

    def compare(temporary: Path) -> None:
        differences.append(_compare(model, input_spec, open_written(temporary)))

    try:
        with evaluating(model), quiet():
            write = partial(_to_onnx, outputs=said) if kind == "onnx" else _WRITERS[kind]
            data = write(model, input_spec)
            if kind == "h":
                data = c_array.to_header(data, path.stem, input_spec)
            write_atomically(path, data, check=compare, error=ExportError)
    except DreamstillError as error:
        raise ExportError(str(error)) from error
    except Exception as error:  # exporters raise many kinds of their own
        raise ExportError(f"cannot export to {path.suffix}: {_reason(error)}") from error
    return ExportRecord(str(path), kind, stored_bytes(path), differences[0])


def stored_bytes(path: Path) -> int:
    """Return the size of a file; of a C header, that of the array in it."""
    return len(c_array.read_header(path)) if path.suffix == ".h" else path.stat().st_size


def _reason(error: BaseException) -> str:
    """Return the root cause of an error, or advice if the network's code fixes the batch size."""
    reason = innermost(error)
    if any(sign in reason for sign in ("Constraints violated", "Got invalid dimensions")):
        return "the network's code fixes the batch size: it takes x.shape[0], not len(x) or an int"
    return reason


def _example(spec: InputSpec, num: int) -> Tensor:
    """Return random images (num, C, H, W) that span the valid range."""
    rng = torch.Generator().manual_seed(num)
    return spec.normalize(torch.rand(num, *spec.shape, generator=rng))


def _compare(module: nn.Module, spec: InputSpec, run: Callable[[Tensor], Tensor]) -> float:
    """Return the largest difference of a logit; raise ExportError if above the tolerance."""
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


def _to_onnx(module: nn.Module, spec: InputSpec, outputs: OutputKind = OutputKind.CLASSES) -> bytes:
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
    notes = program.model.metadata_props
    notes |= {name: json.dumps(value) for name, value in to_plain(spec).items()}
    if outputs in UNSEEN:
        notes["outputs"] = json.dumps(outputs)
    return onnx_file.to_bytes(program.model)  # without paths and lines of the source code


def to_pt2(module: nn.Module, spec: InputSpec) -> bytes:
    """Return the bytes of a network's .pt2 file, PyTorch's own format."""
    shapes = ({0: torch.export.Dim("batch")},)
    return pt2.to_pt2(torch.export.export(module, (_example(spec, 2),), dynamic_shapes=shapes))


def to_pte(module: nn.Module, spec: InputSpec) -> bytes:
    """Return the bytes of a network's .pte file for ExecuTorch, lowered to XNNPACK's kernels."""
    exir = importlib.import_module("executorch.exir")
    xnnpack = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    config = importlib.import_module("executorch.backends.xnnpack.partition.config")
    program = torch.export.export(module, (_example(spec, 1),))
    kinds = config.ALL_PARTITIONER_CONFIGS
    if any("prelu" in str(n.target) and n.meta["val"].ndim != 4 for n in program.graph.nodes):
        kinds = [kind for kind in kinds if kind.__name__ != "PreluConfig"]  # 4D inputs only
    partitioner = xnnpack.XnnpackPartitioner(configs=kinds)
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[partitioner])
    return bytes(lowered.to_executorch().buffer)


def _to_tflite(module: nn.Module, spec: InputSpec) -> bytes:
    return litert.to_tflite(module, _example(spec, 1))


_WRITERS: dict[str, Callable[[nn.Module, InputSpec], bytes]] = {
    "onnx": _to_onnx,
    "pt2": to_pt2,
    "pte": to_pte,
    "tflite": _to_tflite,
    "h": _to_tflite,
}
_EXTRAS = {
    "pte": {"executorch": "executorch"},
    "tflite": {"litert_torch": "litert"},
    "h": {"litert_torch": "litert"},
}
"""Libraries of a format that are optional, and the extra that installs each."""
RUNTIMES = {
    "onnx": "onnxruntime",
    "pt2": "PyTorch's torch.export",
    "pte": "ExecuTorch",
    "tflite": "LiteRT",
    "h": "LiteRT",
}
"""Name of the runtime of each format."""


def load_exported(path: StrPath) -> Callable[[Tensor], Tensor]:
    """Open an exported file; return a function of inputs (N, C, H, W) to logits (N, K).

    Raises ExportError if the file is missing or damaged, or if its runtime is not installed.
    """
    path = Path(path)
    with reading(path, ExportError, "does not open in its runtime"), quiet():
        check_formats([path.suffix[1:]])
        if path.suffix == ".pte":
            _try_pte(path)
        return open_written(path)


def _try_pte(path: Path) -> None:
    """Open a .pte file in a forked process first, since ExecuTorch may abort on a damaged file."""
    if path.read_bytes()[4:8] != b"ET12":
        raise ValueError("it is not a program of ExecuTorch")
    if not hasattr(os, "fork"):  # on Windows
        return
    importlib.import_module("executorch.runtime")  # import before the fork, only once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fork has no other threads, and none are needed
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            faulthandler.disable()  # the parent reports the crash
            for descriptor in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            open_written(path)
        os._exit(0)  # the parent raises the same exception again
    _, status = os.waitpid(child, 0)
    if status:
        raise ValueError("ExecuTorch aborts when it opens it")


def open_written(path: Path) -> Callable[[Tensor], Tensor]:
    """Open a file that was just written; `load_exported` also handles damaged files."""
    if path.suffix == ".pte":
        runtime = importlib.import_module("executorch.runtime").Runtime.get()
        method = runtime.load_program(path).load_method("forward")

        def run_pte(inputs: Tensor) -> Tensor:  # clone: the runtime reuses its output buffer
            return torch.cat([method.execute((image,))[0].clone() for image in inputs.split(1)])

        return run_pte
    if path.suffix == ".pt2":
        return pt2.open_pt2(path)
    if path.suffix in (".tflite", ".h"):
        return litert.open_tflite(
            c_array.read_header(path) if path.suffix == ".h" else path.read_bytes()
        )
    session = onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run_onnx(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"input": inputs.numpy()})[0])

    return run_onnx
