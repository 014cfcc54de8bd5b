"""Export static int8 files, calibrated on images.

`onnxruntime.quantization.quantize_static` quantizes .onnx files; torchao's `prepare_pt2e` and
`convert_pt2e` quantize .pt2 and ExecuTorch's .pte files, and ai-edge-quantizer LiteRT's .tflite
files. Only onnxruntime has percentile and entropy calibration, so that its own is used for all
formats, with more histogram bins for entropy: the default, as many as int8 has steps, never narrows
a range. Every file is run in its runtime and compared with the network.
"""

import importlib
import importlib.util
import logging
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from dreamstill.config import OutputKind, from_plain
from dreamstill.errors import DreamstillError, ExportError, innermost
from dreamstill.evaluation import agreement, answers, evaluating, predict
from dreamstill.exporters import c_array, litert, onnx_file
from dreamstill.exporters.config import MOST_SEEN, Backend, Calibration
from dreamstill.exporters.formats import (
    check_formats,
    export,
    on_cpu,
    onnxruntime,
    open_written,
    stored_bytes,
    to_pt2,
    to_pte,
)
from dreamstill.files.reading import StrPath
from dreamstill.files.writing import write_atomically
from dreamstill.input_spec import InputSpec
from dreamstill.nn.hooks import some_of
from dreamstill.nn.seeded import rng_kept
from dreamstill.quiet import quiet

__all__ = [
    "Backend",
    "Int8Record",
    "Calibration",
    "check_int8_formats",
    "check_int8_layers",
    "export_int8",
]


log = logging.getLogger(__name__)

ANNOTATION = "quantization_annotation"
"""Key under which torchao's quantizers note what is to be quantized."""
CLIPS = (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default)
LAYERS = {
    torch.ops.aten.conv1d.default: "torch.nn.modules.conv.Conv1d",
    torch.ops.aten.conv2d.default: "torch.nn.modules.conv.Conv2d",
    torch.ops.aten.linear.default: "torch.nn.modules.linear.Linear",
}
"""Operators of layers that are quantized, with the classes that torchao knows them by."""
BINS = {Calibration.PERCENTILE: 2048, Calibration.ENTROPY: 1024}
"""Bins of an activation's histogram; the time of entropy grows with their square."""
AGREED_ON = {
    OutputKind.CLASSES: "the images",
    OutputKind.LABELS: "the labels of the images",
    OutputKind.VALUES: "the variance of its values",
    OutputKind.DENSE: "the pixels",
}
STEPS = 256
"""Number of int8 values."""
PERCENTILE = 99.999
MOST_OVERHEAD = 2**20
"""Bytes of a file beside its weights, more or less."""


@dataclass(frozen=True, slots=True)
class Int8Record:
    """Result of an int8 export."""

    path: str
    bytes: int
    agreement: float
    """How far file and network agree, 0 to 1: see `dreamstill.evaluation.agreement`."""


def check_int8_formats(names: Iterable[str]) -> None:
    """Raise ExportError if a format is unknown or its libraries are not installed."""
    kinds = set(names)
    check_formats(sorted(kinds))
    if kinds & {"pt2", "pte"} and importlib.util.find_spec("torchao") is None:
        raise ExportError("no torchao: pip install 'dreamstill[quantize]'")


def check_int8_layers(model: nn.Module, names: Iterable[str]) -> None:
    """Raise ExportError if the int8 kernels of a format do not support a layer."""
    if "pte" not in names:
        return
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            raise ExportError(
                f"{name} is a {type(layer).__name__}, which ExecuTorch's int8 kernels lack: leave "
                "pte out of the formats, or export the floats"
            )


@rng_kept()  # exporters draw from the global generator
def export_int8(
    model: nn.Module,
    spec: InputSpec,
    images: Tensor,
    path: StrPath,
    *,
    calibration: Calibration | str | None = None,
    backend: Backend | str = Backend.X86,
    outputs: OutputKind | str = OutputKind.CLASSES,
) -> Int8Record:
    """Write a static int8 file and compare it with the network in its runtime.

    Args:
        model: full-precision network on any device; not modified.
        spec: input of the network.
        images: uint8 (N, C, H, W), at most 1024 used: one half to calibrate, one to compare.
        path: file to write, with suffix .onnx, .pt2, .pte, .tflite or .h (a C array of a .tflite
            file).
        calibration: min-max, percentile or entropy; None: least squared error for .pt2 and .pte,
            min-max for the others.
        backend: kernels for .pt2.
        outputs: what the network's outputs say.

    Raises:
        ExportError: the format is unknown, a library is not installed or fails, or the file agrees
            with the network on less than half of the images, in which case it is deleted.

    """
    path, model = Path(path), on_cpu(model)
    chosen: Calibration | None = from_plain(Calibration | None, calibration, "calibration")
    kernels: Backend = from_plain(Backend, backend, "backend")
    kind: OutputKind = from_plain(OutputKind, outputs, "outputs")
    check_int8_formats([path.suffix[1:]])
    check_int8_layers(model, [path.suffix[1:]])
    images = some_of(images, MOST_SEEN)
    half = max(1, len(images) // 2)
    seen, compared = images[:half], images[-half:]
    agreements = []

    def compare(temporary: Path) -> None:
        logits = answers(open_written(temporary), spec, compared)
        agreements.append(agreement(logits, predict(model, spec, compared), kind))
        if agreements[0] < 0.5:
            raise ExportError(
                f"the int8 file agrees with the network on {agreements[0]:.0%} of {AGREED_ON[kind]}"
            )

    try:
        with evaluating(model), quiet():
            data = _to_file(path, model, spec, seen, chosen, kernels, kind)
            write_atomically(path, data, check=compare, error=ExportError)
    except DreamstillError as error:
        raise ExportError(str(error)) from error
    except Exception as error:  # quantizers raise many kinds of their own
        raise ExportError(f"cannot quantize to {path.name}: {innermost(error)}") from error
    made = stored_bytes(path)
    _warn_of_floats(path.name, made, model)
    return Int8Record(str(path), made, agreements[0])


def _warn_of_floats(name: str, made: int, model: nn.Module) -> None:
    """Warn of an int8 file whose bytes are so many that some layers must have stayed floats."""
    in_int8 = sum(p.numel() for p in model.parameters())
    if made > 2 * in_int8 + MOST_OVERHEAD:
        log.warning(
            "%s has %s bytes, and its weights in int8 would take %s: some of its layers have "
            "stayed floats",
            *(name, f"{made:,}", f"{in_int8:,}"),
        )


def _to_file(
    path: Path,
    model: nn.Module,
    spec: InputSpec,
    images: Tensor,
    calibration: Calibration | None,
    backend: Backend,
    outputs: OutputKind,
) -> bytes:
    if path.suffix == ".onnx":
        return _to_onnx(model, spec, images, calibration, outputs)
    if path.suffix == ".tflite":
        return _to_tflite(model, spec, images, calibration)
    if path.suffix == ".h":
        return c_array.to_header(_to_tflite(model, spec, images, calibration), path.stem, spec)
    if path.suffix == ".pt2":
        quantizer = _quantizer(backend, calibration)
        return to_pt2(_quantized(model, spec, images, quantizer), spec)
    return to_pte(_quantized(model, spec, images, _executorch(calibration)), spec)


class _Reader:
    """Calibration data reader, which gives onnxruntime one batch at a time."""

    def __init__(self, spec: InputSpec, images: Tensor) -> None:
        parts = images.split(32)
        if len(parts) > 1 and len(parts[-1]) < len(parts[0]):
            parts = parts[:-1]  # histograms need batches of equal size
        self.batches = iter(spec.encode(part).numpy() for part in parts)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch}


def _to_onnx(
    model: nn.Module,
    spec: InputSpec,
    images: Tensor,
    calibration: Calibration | None,
    outputs: OutputKind,
) -> bytes:
    quantization = onnxruntime("quantization")
    quant_pre_process = onnxruntime("quantization.shape_inference").quant_pre_process

    methods = quantization.CalibrationMethod
    with tempfile.TemporaryDirectory() as folder:
        whole, ready, done = (Path(folder) / f"{name}.onnx" for name in ("whole", "ready", "done"))
        export(model, whole, spec, outputs=outputs)
        quant_pre_process(whole, ready, skip_symbolic_shape=True)
        overrides = {}
        if calibration is Calibration.ENTROPY:  # quantize_static has no option for the bins
            calibrator = quantization.create_calibrator(
                ready,
                augmented_model_path=str(Path(folder) / "observed.onnx"),
                calibrate_method=methods.Entropy,
                extra_options={"num_bins": BINS[calibration], "num_quantized_bins": STEPS},
            )
            calibrator.collect_data(_Reader(spec, images))
            overrides = {
                name: [dict(zip(("rmin", "rmax"), found.range_value, strict=True))]
                for name, found in calibrator.compute_data().items()
            }
        percentile = calibration is Calibration.PERCENTILE
        quantization.quantize_static(
            ready,
            done,
            _Reader(spec, images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            calibrate_method=methods.Percentile if percentile else methods.MinMax,
            extra_options={"CalibPercentile": PERCENTILE, "TensorQuantOverrides": overrides},
        )
        return onnx_file.to_bytes(ir.load(done), short_names=True)


def _to_tflite(
    model: nn.Module, spec: InputSpec, images: Tensor, calibration: Calibration | None
) -> bytes:
    by_histogram = calibration in (Calibration.PERCENTILE, Calibration.ENTROPY)
    choose = partial(range_of, calibration) if calibration and by_histogram else None
    return litert.to_int8_tflite(model, [spec.encode(image) for image in images.split(1)], choose)


def _quantizer(backend: Backend, calibration: Calibration | None) -> Any:
    if backend is Backend.XNNPACK:
        return _xnnpack(
            "torchao.testing.pt2e._xnnpack_quantizer", calibration
        )  # needs no ExecuTorch
    x86 = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    config = x86.get_default_x86_inductor_quantization_config()
    return x86.X86InductorQuantizer().set_global(_observed_by(calibration, config))


def _executorch(calibration: Calibration | None) -> Any:
    return _xnnpack("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", calibration)


def _xnnpack(module: str, calibration: Calibration | None) -> Any:
    xnnpack = importlib.import_module(module)
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)

    class Clipping(xnnpack.XNNPACKQuantizer):  # type: ignore[misc, name-defined]
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            super().annotate(model)
            _quantize_behind_clips(model)
            return model

    return Clipping().set_global(_observed_by(calibration, config))


def _quantize_behind_clips(graph: fx.GraphModule) -> None:
    """Let layers before a ReLU6 or another clip be quantized behind it, where XNNPACK's are.

    Its quantizer has one scale for both, which spends most of the 256 steps on what is clipped.
    """
    for clip in graph.graph.nodes:
        layer = clip.args[0] if clip.target in CLIPS else None
        if not isinstance(layer, fx.Node) or layer.target not in LAYERS or len(layer.users) > 1:
            continue
        before = layer.meta.get(ANNOTATION)
        if before is not None and before.output_qspec is not None:
            found = type(before)(output_qspec=before.output_qspec, _annotated=True)
            clip.meta[ANNOTATION], before.output_qspec = found, None


def _observed_by(calibration: Calibration | None, config: Any) -> Any:
    """Return a quantizer configuration whose activations are calibrated by this method."""
    if calibration is None:
        return config
    observers = importlib.import_module("torchao.quantization.pt2e.observer")
    observer = (
        observers.MinMaxObserver if calibration is Calibration.MIN_MAX else _choosing(calibration)
    )
    activation = replace(
        config.input_activation, observer_or_fake_quant_ctr=observer.with_args(eps=2**-12)
    )
    return replace(config, input_activation=activation, output_activation=activation)


def _choosing(calibration: Calibration) -> Any:
    """Return a torchao observer class that takes its range from `range_of`."""
    observers: Any = importlib.import_module("torchao.quantization.pt2e.observer")

    class Choosing(observers.HistogramObserver):  # type: ignore[misc]
        def calculate_qparams(self) -> Any:
            low, high = range_of(
                calibration, self.histogram.numpy(), self.min_val.item(), self.max_val.item()
            )
            return self._calculate_qparams(torch.tensor(low), torch.tensor(high))

    return Choosing


def range_of(
    calibration: Calibration, counts: NDArray[Any], low: float, high: float
) -> tuple[float, float]:
    """Return the range that onnxruntime chooses for a histogram.

    Args:
        calibration: percentile or entropy.
        counts: numbers of values in equal bins of [low, high].
        low, high: smallest and largest value.

    """
    values = low + (np.arange(len(counts)) + 0.5) * (high - low) / len(counts)
    limit = max(abs(low), abs(high))
    ends = (-limit, limit)
    if calibration is Calibration.PERCENTILE:  # uses a histogram of magnitudes
        values, ends = abs(values), (0.0, limit)
    found, edges = np.histogram(values, BINS[calibration], ends, weights=counts)
    collector = onnxruntime("quantization.calibrate").HistogramCollector(
        method=calibration.value,
        symmetric=True,
        num_bins=BINS[calibration],
        num_quantized_bins=STEPS,
        percentile=PERCENTILE,
        scenario="same",
    )
    collector.histogram_dict = {"": (found, edges, np.float64(low), np.float64(high))}
    chosen = collector.compute_collection_result()[""]
    return float(chosen[0]), float(chosen[1])


def _quantized(model: nn.Module, spec: InputSpec, images: Tensor, quantizer: Any) -> nn.Module:
    """Return the quantized graph of a network, without weights that it does not read."""
    pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    shapes = ({0: torch.export.Dim("batch")},)
    graph = torch.export.export(
        model, (spec.encode(images[:1]).expand(2, -1, -1, -1),), dynamic_shapes=shapes
    ).module()
    for node in graph.graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            call, (_, kind) = list(stack.items())[-1]
            if node.target in LAYERS:  # also of a class of its own
                call, kind = node.name, LAYERS[node.target]
            elif kind in LAYERS.values():  # its padding
                kind = ""
            # a ReLU that runs twice is two layers, not one with two outputs
            node.meta["nn_module_stack"] = stack | {call: (call, kind)}
    prepared = pt2e.prepare_pt2e(graph, quantizer)
    for part in images.split(64):
        prepared(spec.encode(part))
    converted: fx.GraphModule = pt2e.convert_pt2e(prepared)
    read = {node.target for node in converted.graph.nodes if node.op == "get_attr"}
    for name in converted.state_dict().keys() - read:
        owner, _, last = name.rpartition(".")
        delattr(converted.get_submodule(owner), last)
    return converted
