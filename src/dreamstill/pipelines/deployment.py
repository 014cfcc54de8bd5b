"""What a chain's networks take on a device: file beside file, and all times in one runtime."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from dreamstill.errors import ExportError
from dreamstill.evaluation import evaluating
from dreamstill.exporters.formats import RUNTIMES, export, load_exported
from dreamstill.input_spec import InputSpec
from dreamstill.profiling import measure_latency

__all__ = ["compare_delivered", "how_much_smaller"]

SIMULATED = "quantize"
"""The task whose networks have no file of their size, and the simulation's time."""


def compare_delivered(
    folder: Path, made: Sequence[tuple[str, nn.Module, dict[str, Any]]], spec: InputSpec
) -> str:
    """Add to each record the bytes of its network's file, and its latency in one runtime.

    Networks in floats are written to FOLDER/NAME.onnx and timed there, beside the int8 file; where
    that is of another format, in its format. Where one cannot be written, all are timed in PyTorch,
    and int8 files, which do not run in it, have no time. Nor has simulated quantization: its time
    would be the simulation's.

    Args:
        folder: of the files; those that a record names are there.
        made: names, networks and records, the whole network first. Of a record weight_bytes, task
            and files are read; file_bytes, bytes (of the file, else of the weights), smaller and
            latency_ms are added where they are known.
        spec: the input of all.

    Returns:
        The name of the runtime.

    """
    int8 = [_paths(folder, record) for _, _, record in made if record.get("task") == "int8"]
    kind = int8[0][0].suffix if int8 else ".onnx"
    runtime = RUNTIMES[kind.removeprefix(".")]
    files = dict[str, Path]()  # that run
    try:
        for name, network, record in made:
            if record.get("task") == "int8":
                files.update((name, p) for p in _paths(folder, record) if p.suffix == kind)
            elif record.get("task") != SIMULATED:
                files[name] = Path(export(network, folder / f"{name}{kind}", spec).path)
    except ExportError:
        runtime, files = "PyTorch", {}
    for name, network, record in made:
        if "files" in record or name in files:
            own = record["files"][0]["bytes"] if "files" in record else files[name].stat().st_size
            record["file_bytes"] = own
        record["bytes"] = record.get("file_bytes", record.get("weight_bytes"))
        record["smaller"] = how_much_smaller(made[0][2], record)
        in_torch = runtime == "PyTorch" and record.get("task") not in ("int8", SIMULATED)
        if name in files or in_torch:
            with evaluating(network):
                run = network if in_torch else load_exported(files[name])
                record["latency_ms"] = asdict(measure_latency(run, spec, runtime=runtime))
    return runtime


def _paths(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """The files that a record names, which may have moved."""
    return [folder / Path(file["path"]).name for file in record["files"]]


def how_much_smaller(whole: Mapping[str, Any], record: Mapping[str, Any]) -> float | None:
    """How many times smaller, file against file, else weights against weights; None: not known.

    >>> how_much_smaller({"file_bytes": 110, "weight_bytes": 100}, {"weight_bytes": 25})
    4.0
    """
    for of in ("file_bytes", "weight_bytes"):
        if of in whole and of in record:
            ratio: float = whole[of] / record[of]
            return ratio
    return None
