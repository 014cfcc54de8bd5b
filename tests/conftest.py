"""What every test starts from."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.torchvision_import import torchvision_importable

from dreamstill.distillation.config import LOSS_NAMES
from dreamstill.distillation.distillation_losses import LOSSES
from dreamstill.pipelines.config import STAGE_CONFIGS
from dreamstill.pipelines.stages import STAGES
from dreamstill.synthesis.programs import PROGRAMS
from dreamstill.synthesis.registry import METHODS


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same draws in any order and in any process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _float32() -> Iterator[None]:
    """The same precision on any processor, where a test does not set it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamstill.nn.precision.has_bfloat16", lambda device: False)
        yield


@pytest.fixture
def tables_restored(tmp_path: Path) -> Iterator[None]:
    """Take what a test registers off the tables again, and forget the modules in its folder."""
    tables: list[dict[Any, Any]] = [METHODS, STAGES, STAGE_CONFIGS, LOSSES, LOSS_NAMES, PROGRAMS]
    kept, path = [dict(table) for table in tables], [*sys.path]
    yield
    sys.path[:] = path
    for name, module in [*sys.modules.items()]:
        if tmp_path in Path(getattr(module, "__file__", None) or "").parents:
            del sys.modules[name]
    for table, before in zip(tables, kept, strict=True):
        table.clear()
        table.update(before)


@pytest.fixture(autouse=True, scope="session")
def _torchvision() -> Iterator[None]:
    """Let torchvision's Python import beside a torch that its kernels were not built for."""
    with torchvision_importable():
        yield
