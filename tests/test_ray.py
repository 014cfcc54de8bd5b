"""The example of docs/processes.md: two workers of Ray Train distill one student."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray.train.torch", reason="ray is not installed: pip install 'ray[train]'")


def work(config: dict[str, Any]) -> None:
    from ray.train import get_context

    import dreamstill as ds
    import toys

    teacher = ds.Teacher(toys.small_cnn(), toys.SPEC)
    settings = ds.DistillConfig(steps=20, num_validation=16, prefill=32, fresh_every=4)
    with ds.distributed():
        student = ds.distill(teacher, toys.student, config=settings).model
    weights = torch.cat([p.detach().flatten() for p in student.parameters()])
    rank = get_context().get_world_rank()
    Path(config["out"], f"{rank}.json").write_text(json.dumps(weights.tolist()))


@pytest.mark.filterwarnings("ignore")  # ray's own
def test_two_workers_end_with_one_student(tmp_path: Path) -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=environment)
    try:
        TorchTrainer(
            work,
            train_loop_config={"out": str(tmp_path)},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=str(tmp_path / "ray")),
        ).fit()
    finally:
        ray.shutdown()
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == other
    assert len(one) > 10
