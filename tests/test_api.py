"""The public API: `import dreamstill as ds`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dreamstill as ds
import toys

SURFACE = """
    AbdConfig Augmentation BlackBox BlackBoxConfig BudgetError ConfigError DaflConfig DataError
    DeepInversionConfig DfadConfig DistillConfig DistillStage DreamstillError ExportError
    FactorizeConfig FastDfkdConfig FinetuneConfig ImageProgramsConfig InputSpec Int8Config
    KnowledgeWithinConfig LearnClassesConfig LearnClassesStage MergeConfig MetadataConfig
    NayerConfig NoiseConfig NonFiniteError PackConfig PruneConfig QuantizeConfig RandomShapes
    RdskdConfig Result RunError StructuredNoiseConfig Teacher TeacherError ZskdConfig ZsktConfig
    __version__ compress distill distributed evaluate export export_int8 factorize learn_classes
    list_methods list_presets load_teacher merge pack profile prune quantize register_method
    register_program register_stage synthesize
"""
SHORT = ds.FinetuneConfig(steps=4, batch_size=16, num_validation=16)


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
    )


@pytest.fixture(scope="module")
def teacher() -> ds.Teacher:
    return ds.Teacher(network(8), ds.InputSpec((3, 16, 16), mean=[0.5] * 3, std=[0.25] * 3))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images(teacher: ds.Teacher) -> torch.Tensor:
    return ds.synthesize(teacher, num_images=64)


def test_the_surface_is_what_is_listed_here() -> None:
    assert set(dir(ds)) == set(SURFACE.split())
    for name in dir(ds):
        assert getattr(ds, name) is not None
        assert name == "__version__" or getattr(ds, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'prone'"):
        ds.prone  # noqa: B018


def test_importing_it_imports_no_torch() -> None:
    code = "import dreamstill, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    env = {"PYTHONPATH": str(Path(ds.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert ran.stdout.split() == ["False", "False"]


def test_the_six_lines(tmp_path: Path) -> None:
    net, small_net, m, s = network(8), network(4), (0.5,) * 3, (0.25,) * 3
    before = {name: value.clone() for name, value in small_net.state_dict().items()}
    teacher = ds.Teacher(net, ds.InputSpec((3, 32, 32), mean=m, std=s))
    images = ds.synthesize(teacher, num_images=200)
    student = ds.distill(teacher, small_net, images, ds.DistillConfig(steps=20)).model
    pruned = ds.prune(teacher, images, ds.PruneConfig(keep=0.5, finetune=SHORT)).model
    record = ds.export(pruned, tmp_path / "small.onnx", teacher.input_spec)
    assert record.max_abs_difference < 1e-4
    assert (
        ds.profile(pruned, teacher.input_spec).macs
        <= 0.5 * ds.profile(net, teacher.input_spec).macs
    )
    assert not student.training
    assert all(torch.equal(before[n], v) for n, v in small_net.state_dict().items())  # a copy


@pytest.mark.parametrize("images", ["noise", ds.ZsktConfig(batch_size=16, widths=(4, 4)), None])
def test_a_student_learns_while_a_method_makes_its_images(teacher: ds.Teacher, images: Any) -> None:
    config = ds.DistillConfig(steps=6, num_validation=32, validate_every=3)
    kinds = {} if images is None else {"images": images}
    result = ds.distill(teacher, lambda: network(4), config=config, **kinds)
    again = ds.distill(teacher, lambda: network(4), config=config, **kinds)
    assert len(result.history) == 6
    assert result.history == again.history
    assert "parameters" in repr(result)
    assert result._repr_html_().startswith("<table>")


def test_images_may_be_a_path_an_array_or_a_tensor(
    teacher: ds.Teacher, images: torch.Tensor, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", x=images.numpy())
    config = ds.DistillConfig(steps=3, batch_size=16)
    for shown in ([images, images.numpy()], [tmp_path / "x.npz", str(tmp_path / "x.npz")]):
        one, other = (ds.distill(teacher, network(4), given, config).history for given in shown)
        assert one == other  # files come in a random order of their own, always the same


def test_every_task_leaves_the_teacher_alone(teacher: ds.Teacher, images: torch.Tensor) -> None:
    digest = teacher.weights_digest
    results = {
        "merge": ds.merge(teacher, images, ds.MergeConfig(keep=0.5)),
        "factorize": ds.factorize(teacher, images, ds.FactorizeConfig(keep=0.6)),
        "quantize": ds.quantize(teacher, images, ds.QuantizeConfig(weight_bits=4)),
        "without images": ds.quantize(teacher),
        "pack": ds.pack(teacher, images, ds.PackConfig(keep=0.5, rounds=1, finetune=None)),
    }
    for name, result in results.items():
        logits = result.model(teacher.input_spec.encode(images[:3]))
        assert logits.shape == (3, 10), name
        assert result.details
    assert teacher.weights_digest == digest
    pruned = ds.prune(teacher, images, ds.PruneConfig(rounds=1, finetune=None)).model
    assert ds.quantize(teacher, images, model=pruned).profile.parameters < 1000


def test_stages_in_memory_and_in_a_folder(tmp_path: Path) -> None:
    save_file(toys.small_cnn().state_dict(), tmp_path / "net.safetensors")
    spec = ds.InputSpec((1, 8, 8), mean=(0.5,), std=(0.25,))
    teacher = ds.load_teacher(
        tmp_path / "net.safetensors", factory="toys:small_cnn", input_spec=spec
    )
    stages = [ds.PruneConfig(keep=0.7, rounds=1, finetune=None), ds.QuantizeConfig()]
    images = ds.synthesize(teacher, num_images=64)
    result = ds.compress(teacher, images, stages)
    assert [stage["task"] for stage in result.details["stages"]] == ["prune", "quantize"]
    np.savez(tmp_path / "x.npz", x=images.numpy())
    with pytest.raises(ds.ConfigError, match="int8 writes files"):
        ds.compress(teacher, images, [ds.Int8Config()])
    kept = ds.compress(teacher, tmp_path / "x.npz", stages, folder=tmp_path / "run")
    again = ds.compress(teacher, tmp_path / "x.npz", stages, folder=tmp_path / "run", resume=True)
    for one, other in zip(
        kept.model.state_dict().values(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    with pytest.raises(ds.ConfigError, match="use one of load_teacher"):
        ds.compress(toys.cnn_teacher(), tmp_path / "x.npz", stages, folder=tmp_path / "b")
    with pytest.raises(ds.ConfigError, match="only int8 and pack can follow quantize"):
        ds.compress(teacher, images, stages[::-1])
    with pytest.raises(ds.ConfigError, match="a stage must be one of DistillStage"):
        ds.compress(teacher, images, [SHORT])


def test_new_classes(teacher: ds.Teacher, images: torch.Tensor) -> None:
    labels = torch.arange(64) % 2 + 10
    config = ds.LearnClassesConfig(steps=3)
    result = ds.learn_classes(teacher, images, images, labels, config)
    assert result.model(teacher.input_spec.encode(images[:2])).shape == (2, 12)
    measured = ds.evaluate(result.model, images, labels, teacher.input_spec)
    assert 0 <= measured["accuracy"] <= 1
    assert measured["confusion"].sum() == 64


def test_mistakes_are_typed_and_in_a_line(teacher: ds.Teacher, images: torch.Tensor) -> None:
    with pytest.raises(ds.ConfigError, match=r"unknown method 'dalf' \(did you mean dafl\?\)"):
        ds.synthesize(teacher, "dalf")
    with pytest.raises(ds.ConfigError, match="num_images must be at least 1; got 0"):
        ds.synthesize(teacher, num_images=0)
    with pytest.raises(ds.DataError, match=r"images must be uint8 \(N, 3, 16, 16\); got"):
        ds.prune(teacher, images.float())
    with pytest.raises(ds.ConfigError, match="merge reads images with this configuration"):
        ds.merge(teacher)
    with pytest.raises(ds.ConfigError, match=r"unknown setting stpes \(did you mean steps\?\)"):
        ds.DistillConfig(stpes=3)  # type: ignore[call-arg]
    with pytest.raises(ds.ConfigError, match=r"path must end in \.packed"):
        ds.pack(teacher, images, path="x.bin")
    assert ds.list_methods(teacher) != ds.list_methods(toys.quadrant_teacher())
    assert ds.list_presets("dafl") == {"dafl": ["mnist", "cifar10", "cifar100", "ours"]}
    for wrong in (images.float() / 255, images[:, :, :8]):
        with pytest.raises(ds.DataError, match=r"images must be uint8 \(N, 3, 16, 16\); got"):
            ds.evaluate(teacher.module, wrong, torch.zeros(64), teacher.input_spec)
    with pytest.raises(ds.DataError, match="quantize reads images: got 0"):
        ds.quantize(teacher, images[:0])
    with pytest.raises(ds.ConfigError, match="there are no labels"):
        ds.learn_classes(teacher, images, images)
    with pytest.raises(ds.ConfigError, match="labels have no effect beside a path"):
        ds.learn_classes(teacher, images, "new.npz", torch.zeros(64))
    plain = ds.LearnClassesConfig(recipe="lwf")  # type: ignore[arg-type]
    with pytest.raises(ds.ConfigError, match="images have no effect on the recipe lwf"):
        ds.learn_classes(teacher, images, images, torch.full((64,), 10), plain)
    for device in ("abacus", "cuda:99"):
        with pytest.raises(ds.ConfigError, match=f"device '{device}' is not available"):
            ds.Teacher(network(8), teacher.input_spec, device=device)
    with pytest.raises(ds.ConfigError, match="precision must be one of"):
        ds.load_teacher("net.safetensors", precision="half")
    for name, values in (("mean", (0.5, (0.25,))), ("std", ((0.5,), 0.25))):
        with pytest.raises(ds.TeacherError, match=f"{name} must be a list of numbers; got 0"):
            ds.InputSpec((1, 8, 8), *values)


def test_a_packed_file_has_the_name_that_was_asked_for(
    teacher: ds.Teacher, images: torch.Tensor, tmp_path: Path
) -> None:
    ds.pack(teacher, images, ds.PackConfig(finetune=None), path=tmp_path / "net.v2.packed")
    assert [path.name for path in tmp_path.iterdir()] == ["net.v2.packed"]


def test_stages_in_memory_follow_the_student_and_draw_no_image_that_nobody_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("dreamstill.api.synthesize", refused)
    teacher = toys.quadrant_teacher()  # without BatchNorm
    student = ds.DistillStage(
        student="toys:student", steps=2, batch_size=16, num_validation=16, inherit=False
    )
    pruned = ds.PruneConfig(importance="batch-norm", finetune=None, rounds=1)  # type: ignore[arg-type]
    images = toys.SPEC.noise(64)
    made = ds.compress(teacher, images, [student, pruned])
    assert [stage["task"] for stage in made.details["stages"]] == ["distill", "prune"]
    made = ds.compress(
        toys.cnn_teacher(), stages=[ds.FactorizeConfig(finetune=None, responses=0, reconstruct=0)]
    )
    assert made.details["stages"][0]["task"] == "factorize"


def test_what_a_task_returns_is_ready_to_be_used(teacher: ds.Teacher, images: torch.Tensor) -> None:
    training = network(8).train()
    made = ds.factorize(teacher, images, ds.FactorizeConfig(finetune=None), model=training).model
    assert not any(part.training for part in made.modules())
    assert training.training
