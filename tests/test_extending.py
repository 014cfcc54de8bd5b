"""A method and a task from outside the package, one file each, as docs/extending.md has them."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dreamstill as ds
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.config import CompressJob, read_job
from dreamstill.pipelines.stages import STAGES
from toys import SPEC, SmallCnn

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def load(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Write the page's file of this name, and import it."""
    (text,) = re.findall(rf'```python title="{name}.py"\n(.*?)```', PAGE.read_text(), re.DOTALL)
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def teacher() -> ds.Teacher:
    with seeded(torch.Generator().manual_seed(0)):
        return ds.Teacher(SmallCnn(), SPEC)


@pytest.mark.usefixtures("tables_restored")
def test_a_method_from_outside_makes_images_and_teaches(
    teacher: ds.Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("blots", tmp_path, monkeypatch)
    assert "blots" in ds.list_methods(teacher)
    images = ds.synthesize(teacher, module.BlotsConfig(size=3), num_images=40)
    assert images.shape == (40, 1, 8, 8)
    assert images.unique().tolist() == [0, 255]
    assert torch.equal(images, ds.synthesize(teacher, module.BlotsConfig(size=3), num_images=40))
    short = ds.DistillConfig(steps=10, num_validation=16, validate_every=5)
    result = ds.distill(teacher, lambda: SmallCnn(width=3), "blots", short)
    assert sum("loss" in record for record in result.history) == 10
    with pytest.raises(ds.ConfigError, match="there is a method 'blots' already"):
        ds.register_method("blots", module.BlotsConfig, module.Blots)


@pytest.mark.usefixtures("tables_restored")
def test_a_task_from_outside_is_a_stage_in_python_and_in_a_file(
    teacher: ds.Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("sparsify", tmp_path, monkeypatch)
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    images = ds.synthesize(teacher, num_images=16)
    stages = [module.SparsifyConfig(keep=0.25), ds.QuantizeConfig()]
    details = ds.compress(teacher, images, stages).details["stages"]
    assert [stage["task"] for stage in details] == ["sparsify", "quantize"]
    sizes = {name: value.numel() for name, value in before.items()}
    assert all(0.2 < left / sizes[name] < 0.35 for name, left in details[0]["left"].items())
    assert all(torch.equal(v, before[n]) for n, v in teacher.module.state_dict().items())
    file = {"teacher": {"weights": "net.safetensors"}, "stage": [{"task": "sparsify", "keep": 0.3}]}
    assert read_job(CompressJob, file).stages[0].config == module.SparsifyConfig(keep=0.3)
    with pytest.raises(ds.ConfigError, match="keep must be at most 1"):
        module.SparsifyConfig(keep=2.0)
    with pytest.raises(ds.ConfigError, match="there is a task 'sparsify' already"):
        ds.register_stage("sparsify", module.SparsifyConfig, STAGES["prune"])
