"""The recipe of docs/outputs.md for DeepLabV3, at a size for a CPU."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from benchmarks.torchvision_import import torchvision_importable
from safetensors.torch import save_file

from dreamstill.cli.main import main
from dreamstill.config import read_plain

PAGE = Path(__file__).parents[1] / "docs/outputs.md"
SMALL = (
    *("--shape", "3,32,32", "--steps", "2", "--batch_size", "2", "--synthesis.batch_size", "2"),
    *("--num_validation", "2", "--prefill", "4", "--fresh_every", "2", "--device", "cpu"),
)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="no torchvision")
def test_deeplab_with_resnet_50_to_mobilenet_v2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGE.read_text()
    file = re.search(r'```python title="nets.py"\n(.*?)```', page, re.DOTALL)
    commands = re.findall(
        r"^dreamstill (distill deeplab.*?)(?=^dreamstill|^```)", page, re.M | re.S
    )
    assert file is not None
    assert len(commands) == 2
    (tmp_path / "nets.py").write_text(file[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with torchvision_importable():
        nets = importlib.import_module("nets")
    teacher = nets.teacher()
    assert sum(p.numel() for p in teacher.parameters()) == pytest.approx(39.6e6, rel=0.01)
    assert sum(p.numel() for p in nets.student().parameters()) == pytest.approx(12.7e6, rel=0.01)
    save_file(teacher.state_dict(), "deeplab.safetensors")
    for number, command in enumerate(commands):
        words = command.replace("\\\n", " ").split()
        real = words.index("--real")
        del words[real : real + 2]
        words[words.index("--steps") : words.index("--steps") + 2] = []
        torch.manual_seed(0)
        assert main([*words, *SMALL, "--out", f"runs/{number}"]) == 0
        assert read_plain(tmp_path / f"runs/{number}/result.json")["steps"] == 2
