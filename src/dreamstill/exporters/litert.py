"""Write, quantize and run .tflite files of LiteRT, formerly TensorFlow Lite.

litert-torch converts a network, ai-edge-quantizer quantizes the file, and ai-edge-litert runs it.
All of them are imported late: they are an extra, and take seconds.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dreamstill.quiet import quiet_native

__all__ = ["open_tflite", "parse_tflite", "quantized", "to_int8_tflite", "to_tflite"]

ChooseRange = Callable[[NDArray[Any], float, float], tuple[float, float]]
"""Function of a histogram, counts in equal bins of [low, high], to a range."""
BINS = 2048


def to_tflite(module: nn.Module, image: Tensor) -> bytes:
    """Return the bytes of a network's .tflite file for inputs like `image`, (1, C, H, W)."""
    return _packed(parse_tflite(_converted(module, image)))


def to_int8_tflite(
    module: nn.Module, images: Sequence[Tensor], choose: ChooseRange | None = None
) -> bytes:
    """Return the bytes of a .tflite file whose weights, activations, input and output are int8.

    Args:
        module: network in full precision.
        images: inputs (1, C, H, W) that calibrate.
        choose: range of an activation; None: from its smallest to its largest value.

    """
    quantizer = importlib.import_module("ai_edge_quantizer.quantizer")
    recipe = importlib.import_module("ai_edge_quantizer.recipe")
    data = _converted(module, images[0])
    result = quantizer.Quantizer(data, recipe.static_wi8_ai8()).quantize(
        _ranges(data, images, choose), enable_progress_report=False
    )
    return _packed(parse_tflite(result.quantized_model))


def open_tflite(data: bytes) -> Callable[[Tensor], Tensor]:
    """Return a file's function (N, C, H, W) -> (N, K), which runs one image at a time.

    Images become int8, and int8 logits floats, where the file has int8 inputs and outputs.
    """
    interpreter = _interpreter(data, num_threads=torch.get_num_threads())
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run_one(image: Tensor) -> Tensor:
        interpreter.set_tensor(given["index"], quantized(image.numpy(), given))
        interpreter.invoke()
        return torch.from_numpy(_dequantized(interpreter.get_tensor(made["index"]), made))

    return lambda inputs: torch.cat([run_one(image) for image in inputs.split(1)])


def parse_tflite(data: bytes) -> Any:
    """Return the content of a file as objects of the schema; all weights are in its buffers."""
    utils = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    return utils.read_model_from_bytearray(data)


def _converted(module: nn.Module, image: Tensor) -> bytes:
    with quiet_native():
        convert = importlib.import_module("litert_torch").convert
        return bytes(convert(module, (image,)).model_content())


def _packed(model: Any) -> bytes:
    """Return a model's bytes, with the weights in its buffers and without names of its values.

    ai-edge-quantizer appends weights to the file, where TensorFlow Lite Micro does not find them.
    """
    utils = importlib.import_module("ai_edge_litert.tools.flatbuffer_utils")
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    for tensor in graph.tensors:
        tensor.name = None
    for name, index, entry in (
        ("input", graph.inputs[0], signature.inputs[0]),
        ("logits", graph.outputs[0], signature.outputs[0]),
    ):
        graph.tensors[index].name = entry.name = name
    return bytes(utils.convert_object_to_bytearray(model))


def _interpreter(data: bytes, **options: Any) -> Any:
    with quiet_native():
        module = importlib.import_module("ai_edge_litert.interpreter")
        interpreter = module.Interpreter(model_content=data, **options)
        interpreter.allocate_tensors()
        return interpreter


def _ranges(
    data: bytes, images: Sequence[Tensor], choose: ChooseRange | None
) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Return the range of every activation as ai-edge-quantizer takes it.

    Its own calibration takes a moving average of ranges, which clips the largest logits.
    """
    ranges = dict[str, tuple[float, float]]()
    for name, values in _activations(data, images):
        low, high = ranges.get(name, (0.0, 0.0))  # 0 must be a value of the grid
        least = values.min(initial=0.0, where=np.isfinite(values))  # -inf pads before max pooling
        ranges[name] = min(low, float(least)), max(high, float(values.max()))
    if choose is not None:
        counts = dict[str, NDArray[Any]]()
        for name, values in _activations(data, images):
            found = np.histogram(values, BINS, ranges[name])[0]
            counts[name] = counts.get(name, 0) + found
        ranges = {name: choose(found, *ranges[name]) for name, found in counts.items()}
    return {
        name: {"min": np.array(low, np.float32), "max": np.array(high, np.float32)}
        for name, (low, high) in ranges.items()
    }


def _activations(
    data: bytes, images: Sequence[Tensor]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the name and the values of the input and of each layer's output, image by image."""
    graph = parse_tflite(data).subgraphs[0]
    indices = [*graph.inputs, *(index for op in graph.operators for index in op.outputs)]
    interpreter = _interpreter(data, experimental_preserve_all_tensors=True)
    for image in images:
        interpreter.set_tensor(graph.inputs[0], image.numpy())
        interpreter.invoke()
        for index in indices:
            values = interpreter.get_tensor(index)
            if values.dtype == np.float32:
                yield graph.tensors[index].name.decode(), values


def quantized(values: NDArray[Any], tensor: dict[str, Any]) -> NDArray[Any]:
    """Return floats as an interpreter's tensor takes them: rounded to its grid, if it has one."""
    scale, zero = tensor["quantization"]
    if not scale:
        return values
    limits = np.iinfo(tensor["dtype"])
    rounded: NDArray[Any] = np.round(values / np.float32(scale)) + zero
    return rounded.clip(limits.min, limits.max).astype(limits.dtype)


def _dequantized(values: NDArray[Any], tensor: dict[str, Any]) -> NDArray[np.float32]:
    scale, zero = tensor["quantization"]
    return (values.astype(np.float32) - np.float32(zero)) * np.float32(scale) if scale else values
