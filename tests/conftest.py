"""What every test starts from."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same draws in any order and in any process."""
    torch.manual_seed(0)
