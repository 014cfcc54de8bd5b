"""Compare the networks of a compression pipeline by file size, and by latency in one runtime."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from dreamstill.errors import ExportError
from dreamstill.evaluation import device_of, evaluating
from dreamstill.exporters.formats import RUNTIMES, export, load_exported, stored_bytes
from dreamstill.input_spec import InputSpec
from dreamstill.profiling import measure_latency

__all__ = ["compare_files", "size_ratio"]

SIMULATED = "quantize"
"""Task without a file, and whose latency would be that of the simulation."""


def compare_files(
    folder: Path, made: Sequence[tuple[str, nn.Module, dict[str, Any]]], spec: InputSpec
) -> str:
    """Add to each record the bytes of its network's file and the latency in one runtime.

    Float networks are exported to FOLDER/NAME, in the format of the int8 file if there is one,
    else as ONNX. If an export fails, networks are timed in PyTorch, and int8 files have no latency.
    Simulated quantization never has one.

    Args:
        folder: directory of the files.
        made: names, networks and records, the original network first. Reads weight_bytes, task and
            files of a record; adds file_bytes, bytes (of the file, else of the weights), smaller
            and latency_ms, each if known.
        spec: input spec of all networks.

    Returns:
        Name of the runtime.

    """
    int8 = [_paths(folder, record) for _, _, record in made if record.get("task") == "int8"]
    kind = int8[0][0].suffix if int8 else ".onnx"
    runtime = RUNTIMES[kind.removeprefix(".")]
    files = dict[str, Path]()  # that the runtime can run
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
            own = record["files"][0]["bytes"] if "files" in record else stored_bytes(files[name])
            record["file_bytes"] = own
        record["bytes"] = record.get("file_bytes", record.get("weight_bytes"))
        record["smaller"] = size_ratio(made[0][2], record)
        in_torch = runtime == "PyTorch" and record.get("task") not in ("int8", SIMULATED)
        if name in files or in_torch:
            with evaluating(network):
                run = network if in_torch else load_exported(files[name])
                device = device_of(network) if in_torch else "cpu"
                latency = measure_latency(run, spec, device=device, runtime=runtime)
                record["latency_ms"] = asdict(latency)
    return runtime


def _paths(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """Return the paths in `folder` of the files of a record, which may have moved."""
    return [folder / Path(file["path"]).name for file in record["files"]]


def size_ratio(whole: Mapping[str, Any], record: Mapping[str, Any]) -> float | None:
    """Return the ratio of file sizes, else of weight sizes, else None.

    >>> size_ratio({"file_bytes": 110, "weight_bytes": 100}, {"weight_bytes": 25})
    4.0
    """
    for of in ("file_bytes", "weight_bytes"):
        if of in whole and of in record:
            ratio: float = whole[of] / record[of]
            return ratio
    return None
