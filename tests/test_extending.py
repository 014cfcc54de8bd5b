"""A method and a task from outside the package, one file each, as docs/extending.md has them."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dreamstill as ds
import toys
from dreamstill.cli import main as cli
from dreamstill.cli.parser import parse
from dreamstill.distillation.distillation_losses import LOSSES, register_loss
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.config import CompressJob, read_job
from dreamstill.pipelines.plugins import load_plugins
from dreamstill.pipelines.stages import STAGES
from toys import SPEC, SmallCnn

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
HINGE = """
from dreamstill.distillation.distillation_losses import LogitLoss, register_loss

print("registered")

@register_loss
class Hinge(LogitLoss):
    name, weight = "hinge", 0.1

    @staticmethod
    def function(student, teacher, temperature):
        own = student.gather(1, teacher.argmax(1, keepdim=True))
        return (student.amax(1, keepdim=True) - own).mean()
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables_restored: None) -> Path:
    """The working directory, with a teacher, the files of the page and one of a loss."""
    files = dict(re.findall(r'```python title="(\w+)\.py"\n(.*?)```', PAGE.read_text(), re.DOTALL))
    files |= {"hinge": HINGE, "json": "", "nothing": "", "broken": "1 +"}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    toys.write_teacher(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def teacher() -> ds.Teacher:
    with seeded(torch.Generator().manual_seed(0)):
        return ds.Teacher(SmallCnn(), SPEC)


@pytest.mark.usefixtures("plugins")
def test_a_method_from_outside_makes_images_and_teaches(teacher: ds.Teacher) -> None:
    load_plugins(["blots.py"])
    module = importlib.import_module("blots")
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


@pytest.mark.usefixtures("plugins")
def test_a_task_from_outside_is_a_stage_in_python_and_in_a_file(teacher: ds.Teacher) -> None:
    load_plugins(["sparsify.py"])
    module = importlib.import_module("sparsify")
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
    with pytest.raises(ds.ConfigError, match=r"letters, digits and _; got 'v1\.2'"):
        ds.register_stage("v1.2", module.SparsifyConfig, STAGES["prune"])


def test_a_loss_does_not_take_the_place_of_another() -> None:
    with pytest.raises(ds.ConfigError, match="there is a loss 'kl' already"):
        register_loss(type("Own", (LOSSES["l1"],), {"name": "kl"}))
    assert LOSSES["kl"].__name__ == "Kl"


TEACHER = ("--teacher.weights", "teacher.safetensors")


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that has loaded no plug-in."""
    path = os.pathsep.join([str(Path(ds.__file__).parents[1]), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, "-P", "-m", "dreamstill", *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_with_plugins_is_resumed_and_exported(
    plugins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("distill", *TEACHER, "--student", "toys:student", "--out", "run", "--json"),
        *("--plugin", "blots.py", "--plugin", "hinge", "--method", "blots", "--losses", "kl,hinge"),
        *("--synthesis.size", "3", "--synthesis.batch_size", "16", "--steps", "4"),
        *("--num-validation", "16", "--distill.buffer-size", "64"),
    ]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "blots"
    config = json.loads((plugins / "run" / "config.json").read_text())
    assert config["plugin"] == ["blots.py", "hinge"]
    weights = (plugins / "run" / "student.safetensors").read_bytes()
    for name in ("student.safetensors", "result.json"):
        (plugins / "run" / name).unlink()
    ran = run_command("distill", "--resume", "run", "--json")
    assert ran.returncode == 0, ran.stderr
    assert (plugins / "run" / "student.safetensors").read_bytes() == weights
    (plugins / "blots.py").unlink()
    ran = run_command("export", "run")
    assert (ran.returncode, ran.stderr) == (2, "dreamstill: no plug-in at blots.py\n")


def test_a_task_from_outside_is_a_command_and_may_be_added_on_resuming(plugins: Path) -> None:
    command = ["sparsify", *TEACHER, "--num-images", "16", "--keep", "0.3"]
    job = parse([*command, "--plugin", "sparsify.py"]).job
    assert (job.stages[0].task, job.stages[0].config.keep) == ("sparsify", 0.3)
    table = 'num_images = 16\n[teacher]\nweights = "teacher.safetensors"\n'
    first, second = (
        '[[stage]]\ntask = "merge"\nfinetune = "none"\n',
        '[[stage]]\ntask = "sparsify"\n',
    )
    (plugins / "job.toml").write_text(table + first)
    assert cli.main(["compress", "job.toml", "--out", "run"]) == 0
    (plugins / "job.toml").write_text('plugin = ["sparsify"]\n' + table + first + second)
    assert cli.main(["compress", "job.toml", "--out", "run", "--resume"]) == 0
    summary = json.loads((plugins / "run" / "summary.json").read_text())
    assert [stage["task"] for stage in summary["stages"]] == ["merge", "sparsify"]


def test_a_plugin_of_an_installed_package_needs_no_flag(plugins: Path) -> None:
    installed = plugins / "blots-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: blots\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[dreamstill.plugins]\nblots = blots\n")
    sys.path.append(str(plugins))
    job = parse(["synthesize", *TEACHER, "--method", "blots", "--synthesis.size", "7"]).job
    assert (job.synthesis.size, job.plugin) == (7, None)
    (plugins / "blots.py").write_text("1 +")
    sys.modules.pop("blots")
    with pytest.raises(ds.ConfigError, match="cannot import the plug-in blots: invalid syntax"):
        parse(["synthesize", *TEACHER])


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("gone.py", "no plug-in at gone.py"),
        ("gone", "cannot import the plug-in gone: No module named 'gone'"),
        ("broken.py", "cannot import the plug-in broken.py: invalid syntax (broken.py, line 1)"),
        ("nothing.py", "the plug-in nothing.py registers nothing: call ds.register_method, "),
        ("json.py", "the plug-in json.py has the name of the module "),
        (".", "cannot import the plug-in .: "),
    ],
)
@pytest.mark.usefixtures("plugins")
def test_a_plugin_that_cannot_be_used_is_one_line(
    plugin: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", *TEACHER, "--plugin", plugin]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dreamstill: {message}")


def test_help_is_shown_before_torch_is_imported() -> None:
    for command in ("--help", "distill --help"):
        code = (
            f"import atexit, sys; sys.argv = 'dreamstill {command}'.split()\n"
            "atexit.register(lambda: print('torch' in sys.modules))\n"
            "from dreamstill.cli.main import main; main()"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ran.stdout.splitlines()[-1] == "False", ran.stderr
