"""Open an ONNX file: its layers as those of torch, differentiable and open to every task."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import external_data_helper, helper, inliner
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dreamstill.config import OutputKind
from dreamstill.errors import ConfigError, TeacherError, first_line
from dreamstill.exporters.formats import onnxruntime
from dreamstill.files.reading import reading, understood
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.loaded import Loaded
from dreamstill.loaders.onnx.graph import Graph
from dreamstill.loaders.onnx.input import FileInput, inputs_of
from dreamstill.loaders.onnx.operators import OPERATORS, check_operators
from dreamstill.nn.graph_network import GraphNetwork
from dreamstill.quiet import quiet

__all__ = ["check_equal", "load", "network_of", "reads"]

BATCHES = (2, 3)
"""Batch sizes on which a graph is followed."""
TOLERANCE = 1e-4
HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
"""Types of weights that a runtime computes with, and float32 is used for here."""


def reads(weights: str) -> bool:
    """Return whether a file is named as ONNX."""
    return Path(weights).suffix.lower() == ".onnx"


def load(file: TeacherFile, card: dict[str, Any]) -> Loaded:
    """Open an ONNX file.

    Raises:
        ConfigError: a factory is given, which the file does not need.
        TeacherError: the file is damaged, or is not a network of images that can be opened.

    """
    if file.factory is not None:
        raise ConfigError(f"{file.weights} holds its network: leave factory {file.factory!r} out")
    path = Path(file.weights)
    with reading(path, TeacherError, "is not a whole ONNX file", what="network"):
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise ValueError("it has no nodes")
    _load_external(model, path)
    loaded = network_of(model, path.name, card)
    return replace(loaded, notes=(*loaded.notes, *_of_folding(loaded.module, path.name)))


def _of_folding(network: nn.Module, name: str) -> tuple[str, ...]:
    """Return a note if a network with convolutions has no BatchNorm."""
    kinds = [type(part) for part in network.modules()]
    if any(issubclass(kind, _BatchNorm) for kind in kinds):
        return ()
    note = (
        f"{name} has no BatchNorm; if the network had, the export has folded it, and methods "
        "that read its statistics need the weights with a factory, or a .pt2 file."
    )
    return (note,) if any(issubclass(kind, _ConvNd) for kind in kinds) else ()


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    """Read weights that lie in files beside."""
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # the library raises several kinds
        raise TeacherError(
            f"{path} has its weights in another file, which does not load beside it "
            f"({first_line(error)}): copy the .data file too, or save the model in one file"
        ) from error


def network_of(
    model: onnx.ModelProto,
    name: str,
    card: dict[str, Any],
    run: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Loaded:
    """Return the network of an ONNX model, compared with a runtime.

    Args:
        model: with its weights.
        name: of the file, for messages.
        card: what the user says; its shape is used where the file leaves sizes open.
        run: what computes the right output for an input of the file's shape; default: onnxruntime.

    """
    with understood(name, TeacherError, "is not read"):
        model = inliner.inline_local_functions(model) if model.functions else model
        check_operators(model)
        given, output = FileInput.of(model, name, card), _output(model, name)
        shapes = map(given.shape_of, BATCHES)
        examples = [{given.name: torch.empty(shape, device="meta")} for shape in shapes]
        graph = Graph(model, examples, given.batch)
        given.begin(graph)
        graph.lower(OPERATORS)
        network = graph.network(output)
    halves = any(t.data_type in HALVES for t in model.graph.initializer)
    tolerance = 100 * TOLERANCE if halves else TOLERANCE
    check_equal(network, given, run or _runtime(model, name), name, tolerance)
    notes = [*given.notes]
    if cut := _without_softmax(network) if card.get("outputs") != OutputKind.VALUES else None:
        network = cut
        notes.append(f"{name} ends with softmax: it is left out, so that the network gives logits.")
    return Loaded(network, given.card(model), notes=tuple(notes))


def _output(model: onnx.ModelProto, name: str) -> str:
    outputs = [output.name for output in model.graph.output]
    if len(outputs) != 1:
        raise TeacherError(
            f"{name} has {len(outputs)} outputs ({', '.join(outputs)}), and a teacher has one: "
            "export the network with its logits alone"
        )
    return str(outputs[0])


def _runtime(model: onnx.ModelProto, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs a model in onnxruntime, or where that cannot, as ONNX defines."""
    given = inputs_of(model)[0]
    dtype = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
    options = onnxruntime().SessionOptions()
    options.log_severity_level = 4
    try:
        with quiet():  # it prints what it raises
            session: Any = onnxruntime().InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
    except Exception:  # the library raises several kinds, also for floats of 64 bits
        with understood(name, TeacherError, "does not open in onnxruntime"):
            session = ReferenceEvaluator(model)

    def run(inputs: np.ndarray) -> np.ndarray:
        result: np.ndarray = session.run(None, {given.name: inputs.astype(dtype)})[0]
        return result

    return run


def check_equal(
    network: nn.Module,
    given: FileInput,
    run: Callable[[np.ndarray], np.ndarray],
    name: str,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise TeacherError unless a network and a runtime give the same for random inputs."""
    num = given.batch or 3
    rng = torch.Generator().manual_seed(0)
    inputs = torch.rand(given.shape_of(2 * num), generator=rng)
    with torch.no_grad(), understood(name, TeacherError, "does not run"):
        got = network(inputs)
        parts = given.in_file(inputs).split(num)
        wanted = torch.cat([torch.from_numpy(run(part.numpy())).float() for part in parts])
    allowed = tolerance * max(1.0, wanted.abs().max().item())
    difference = _difference(got, wanted)
    if not difference <= allowed:
        instead = "give its weights with a factory instead"
        if given.batch is not None:
            instead = f"it is written for {given.batch} images at once: export it for any number"
        raise TeacherError(
            f"{name} as read here differs from the file by {difference:.3g}, and at most "
            f"{allowed:.3g} is allowed: {instead}"
        )


def _difference(got: Any, wanted: Tensor) -> float:
    if not isinstance(got, Tensor) or got.shape != wanted.shape:
        return float("inf")
    return (got - wanted).abs().max().item()


def _without_softmax(network: GraphNetwork) -> GraphNetwork | None:
    """Return a network without the softmax at its end, None if there is none."""
    operation, inputs, outputs, _ = network.steps[-1]
    if operation not in ("softmax", "log_softmax") or outputs != (network.graph_output,):
        return None
    return network.until(inputs[0])
