"""What every test starts from."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

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


@pytest.fixture
def tables_restored() -> Iterator[None]:
    """Take what a test registers off the tables of methods, tasks, losses and programs again."""
    tables: list[dict[Any, Any]] = [METHODS, STAGES, STAGE_CONFIGS, LOSSES, LOSS_NAMES, PROGRAMS]
    kept = [dict(table) for table in tables]
    yield
    for table, before in zip(tables, kept, strict=True):
        table.clear()
        table.update(before)
