"""Several processes of one run, started by torchrun: what one process does, in parts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import toys
from dreamstill import process_group
from dreamstill.errors import ConfigError

TESTS = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

STEPS = """
import copy, json, logging, sys
import torch
import dreamstill as ds
import toys
from dreamstill.distillation.config import FinetuneConfig
from dreamstill.distillation.model_selection import ModelSelector
from dreamstill.distillation.trainer import Trainer
from dreamstill.api import _synthesizer
from dreamstill.process_group import gathered, is_main, share_of, synchronized
from dreamstill.synthesis.methods.noise import Noise
from dreamstill.synthesis.validation_set import validation_set

rng = torch.Generator().manual_seed(0)
torch.manual_seed(0)
teacher = ds.Teacher(toys.small_cnn(), toys.SPEC)
network = toys.SmallCnn(width=5)
batches = [(torch.randn(15, 1, 8, 8, generator=rng).clamp(-2, 2), None) for _ in range(6)]

def losses_and_weights(losses):
    config = FinetuneConfig(
        steps=6, batch_size=15, losses=losses, optimizer="sgd", lr=0.01, num_validation=16,
        validate_every=6,
    )
    student = copy.deepcopy(network)
    validation = validation_set(teacher, 16)
    selector = ModelSelector(validation, teacher.input_spec, teacher.output_kind)
    trainer = Trainer(teacher, student, batches, selector, config, rng=rng.manual_seed(1))
    lost = [step.record["loss"] for step in trainer.run()]
    return lost, torch.cat([value.double().flatten() for value in student.state_dict().values()])

for losses in (("kl", "l1"), ("kl", "boundary")):
    alone = losses_and_weights(losses)
    with ds.distributed():
        together = losses_and_weights(losses)
        main = is_main()
    if main:
        print(json.dumps([alone[0], together[0], alone[1].tolist(), together[1].tolist()]))

with ds.distributed():
    # nearly constant inputs, far from the running mean
    inputs, norm = 30 + 1e-3 * torch.randn(16, 3, 4, 4, generator=rng), torch.nn.BatchNorm2d(3)
    twin = copy.deepcopy(norm)
    with synchronized():
        normalized = norm(share_of(inputs))
    same = torch.allclose(normalized, share_of(twin(inputs)), atol=1e-2)
    same_state = torch.allclose(norm.running_var, twin.running_var, atol=1e-6)
    # a method that every process holds in the same state
    method = Noise(teacher, ds.NoiseConfig(batch_size=4), rng=torch.Generator().manual_seed(3))
    made = gathered(_synthesizer(method, teacher, rng).next_batch().images)
    duplicates = made[0][0].equal(made[1][0])
    main = is_main()
if main:
    print(json.dumps([same, same_state, duplicates]))
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are killed leave their directories in the test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def in_two(*arguments: str, module: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of Dreamstill, or a script, in two processes."""
    command = [*TORCHRUN, *(["-m", "dreamstill"] if module else []), *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def said(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("dreamstill:")]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A teacher's file with a card beside it."""
    return toys.write_teacher(tmp_path)


def distill(weights: Path, out: Path, steps: int = 40) -> list[str]:
    return [
        *("distill", str(weights), "--student", "toys:student", "--out", str(out)),
        *("--distill.num_validation", "16", "--synthesis.batch_size", "16"),
        *("--distill.batch_size", "16", "--distill.buffer_size", "128", "--distill.prefill", "64"),
        *("--distill.fresh_every", "2", "--distill.steps", str(steps)),
        *("--checkpoint-every", "0.2"),
    ]


def test_the_steps_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """Gradients and BatchNorm statistics are of the whole batch, of 8 and 7 images."""
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    ran = in_two(str(script), module=False)
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(found) == 3, ran.stderr
    assert found.pop() == [True, True, False]
    for alone, together, before, after in found:
        assert together == pytest.approx(alone, rel=1e-3)
        assert np.abs(np.subtract(before, after)).max() < 1e-3
        assert together[0] != together[-1]


def test_two_processes_write_one_run(tmp_path: Path, weights: Path) -> None:
    run = tmp_path / "run"
    ran = in_two(*distill(weights, run), "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["steps"] == 40
    result = json.loads((run / "result.json").read_text())
    assert (result["steps"], result["image_visits"]) == (40, 640)
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_process_ends_the_run_and_it_resumes(
    tmp_path: Path, weights: Path, processes: int
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [*TORCHRUN, "-m", "dreamstill", *distill(weights, run, steps=400)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (run / "checkpoint.pt").is_file() and process.poll() is None:
        time.sleep(0.05)
    os.kill(process_of(process.pid, rank=1), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode
    assert len(said(stderr)) == 1, stderr
    assert "--resume" in said(stderr)[0]
    assert not (run / "student.safetensors").is_file()
    again = ["distill", "--resume", str(run)]
    if processes == 2:
        ran = in_two(*again)
    else:
        ran = subprocess.run(
            [sys.executable, "-m", "dreamstill", *again],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    assert json.loads((run / "result.json").read_text())["image_visits"] == 400 * 16
    assert torch.isfinite(load_file(run / "student.safetensors")["head.weight"]).all()


def process_of(parent: int, *, rank: int) -> int:
    """Return the process of a rank that torchrun has started."""
    for status in Path("/proc").glob("[0-9]*/status"):
        text = status.read_text() if status.is_file() else ""
        if f"PPid:\t{parent}\n" in text:
            number = status.parent.name
            known = (status.parent / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in known:
                return int(number)
    raise AssertionError(f"no process of rank {rank}")


def test_two_processes_make_images_without_duplicates_and_resume(
    tmp_path: Path, weights: Path
) -> None:
    out = tmp_path / "images"
    command = [
        *("synthesize", str(weights), "--num-images", "400", "--out", str(out)),
        *("--method", "noise", "--synthesis.batch_size", "16", "--checkpoint-every", "0.001"),
    ]
    process = subprocess.Popen(
        [*TORCHRUN, "-m", "dreamstill", *command],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "images.pt").is_file() and process.poll() is None:
        time.sleep(0.01)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert not (out / "images.npz").is_file()
    ran = in_two(*command, "--resume")
    assert ran.returncode == 0, ran.stderr
    images = np.load(out / "images.npz")["x"]
    assert len(np.unique(images.reshape(400, -1), axis=0)) == 400


def test_what_runs_in_one_process_says_so(tmp_path: Path, weights: Path) -> None:
    ran = in_two("prune", str(weights), "--out", str(tmp_path / "pruned"))
    assert ran.returncode
    assert len(said(ran.stderr)) == 1, ran.stderr
    assert "start it without torchrun" in said(ran.stderr)[0]
    assert not (tmp_path / "pruned").exists()


def test_new_batches_that_are_too_small_are_refused(tmp_path: Path, weights: Path) -> None:
    small = ["--synthesis.batch_size", "2", "--distill.fresh_every", "1", "--method", "noise"]
    run = ["--student", "toys:student", "--out", str(tmp_path / "run")]
    ran = in_two("distill", str(weights), *run, *small, "--distill.num_validation", "16")
    assert ran.returncode
    assert "new batches of 2 are too small for 2 processes" in said(ran.stderr)[0]


def test_a_process_alone_has_no_others() -> None:
    rng = torch.Generator()
    assert process_group.own_rng(rng) is rng
    assert process_group.from_main([1]) == [1]
    values = torch.arange(3.0)
    assert process_group.share_of(values).equal(values)
    with pytest.raises(ConfigError, match="torchrun"), process_group.distributed():
        pass


def test_a_process_that_is_new_has_random_numbers_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = torch.Generator().manual_seed(3)
    saved = [{"rng": torch.Generator().manual_seed(n).get_state(), "name": n} for n in (5, 6)]

    def restored(rank: int, size: int) -> tuple[int, int]:
        monkeypatch.setattr(process_group, "world_size", lambda: size)
        monkeypatch.setattr(process_group, "rank", lambda: rank)
        state = process_group.state_of_this(saved, rng)
        return state["name"], int(torch.randint(2**40, (), generator=rng))

    old = [restored(rank, 2) for rank in range(2)]
    assert [name for name, _ in old] == [5, 6]
    more = [restored(rank, 4) for rank in range(4)]
    assert more[:2] == old
    assert [name for name, _ in more[2:]] == [5, 5]
    assert len({number for _, number in more}) == 4
    assert restored(0, 1) == old[0]
    saved = saved[:1]
    assert len({*(restored(rank, 2)[1] for rank in range(2)), restored(0, 1)[1]}) == 3
