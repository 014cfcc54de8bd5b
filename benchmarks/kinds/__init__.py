"""The kinds of benchmark, each named by `kind` in a TOML file."""

from pathlib import Path

from benchmarks.kinds.compression import AnyTeacher, Compress, CompressInMemory, Pipeline
from benchmarks.kinds.continual import Continual
from benchmarks.kinds.distill import Distill
from benchmarks.kinds.merge_mlp import MergeMlp
from benchmarks.runner import Kind, read_config

__all__ = ["KINDS", "open_kind"]

KINDS: dict[str, type[Kind]] = {
    "any_teacher": AnyTeacher,
    "compress": Compress,
    "compress_in_memory": CompressInMemory,
    "continual": Continual,
    "distill": Distill,
    "merge_mlp": MergeMlp,
    "pipeline": Pipeline,
}


def open_kind(
    name: str,
    data: Path = Path(),
    teachers: Path = Path("benchmarks/teachers"),
    *,
    tiny: bool = False,
) -> Kind:
    """Open a benchmark by name; see `Kind`."""
    config = read_config(name)
    return KINDS[config["kind"]](config, data, teachers, tiny=tiny)
