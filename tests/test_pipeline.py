"""Compressions from a teacher's file to a device's, and that they resume."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import dreamstill as ds
import toys
from dreamstill.cli import main as cli
from dreamstill.cli.terminal import print_compression
from dreamstill.compression.deep_compression.file_format import load_packed
from dreamstill.compression.quantization.histograms import entering_quantized, weights_in
from dreamstill.config import to_plain
from dreamstill.errors import ConfigError, DreamstillError, ExportError, RunError, TeacherError
from dreamstill.evaluation import predict
from dreamstill.exporters.formats import load_exported
from dreamstill.graph.batch_norm_folding import fold_batch_norm
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.factory import build
from dreamstill.loaders.teacher_file import open_from
from dreamstill.nn.quantized import QuantizedLayer
from dreamstill.nn.seeded import seeded
from dreamstill.pipelines.compress import compressed, run_compression
from dreamstill.pipelines.config import CompressJob, read_job
from dreamstill.pipelines.stages import STAGES
from dreamstill.progress import Progress
from dreamstill.report.compression import largest, layer_figures, write_compression_report
from dreamstill.synthesis.config import CLOTHES, StructuredNoiseConfig, ZskdConfig
from toys import SPEC

TUNE = {"steps": 4, "batch_size": 16, "num_validation": 8, "validate_every": 4}
STAGE_TABLES: list[dict[str, Any]] = [
    {"task": "prune", "keep": 0.7, "rounds": 1, "finetune": TUNE},
    {"task": "int8", "formats": ["onnx", "pt2"]},
    {"task": "pack", "keep": 0.5, "rounds": 1, "finetune": TUNE},
]


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, object]:
    """A compression's plain values for a toy teacher with a card."""
    weights = toys.write_teacher(tmp_path)
    return {"teacher": {"weights": str(weights)}, "num_images": 64, "stage": STAGE_TABLES}


def test_what_a_later_stage_lacks_is_said_before_any_image_is_made(
    plain: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_scale = {"task": "prune", "importance": "batch-norm"}
    with pytest.raises(ConfigError, match="batch-norm cannot follow merge"):
        read_job(CompressJob, plain | {"stage": [{"task": "merge", "keep": 0.9}, by_scale]})
    weights = tmp_path / "lenet5.safetensors"
    save_file(build("dreamstill.nn.lenet:lenet5").state_dict(), weights)
    spec = {"shape": [1, 28, 28], "mean": [0.5], "std": [0.5]}
    lenet = {"weights": str(weights), "factory": "dreamstill.nn.lenet:lenet5"} | spec
    stages = [{"task": "factorize"}, by_scale]
    with pytest.raises(ConfigError, match=r"LeNet5 has none: take magnitude or taylor"):
        run_compression(
            tmp_path / "run", read_job(CompressJob, plain | {"teacher": lenet, "stage": stages})
        )
    assert not (tmp_path / "run").exists()


def test_from_a_teacher_to_an_int8_and_a_packed_file(
    plain: dict[str, object], tmp_path: Path
) -> None:
    real = tmp_path / "real.npz"
    rng = np.random.default_rng(0)
    np.savez(real, x=rng.integers(0, 256, (40, 1, 8, 8), np.uint8), y=np.arange(40) % 4)
    folder = tmp_path / "run"
    summary = run_compression(folder, read_job(CompressJob, plain), real=real)
    assert [stage["task"] for stage in summary["stages"]] == ["prune", "int8", "pack"]
    assert all(0 <= stage["accuracy"] <= 1 for stage in summary["stages"])
    again = run_compression(folder, read_job(CompressJob, plain), resume=True)
    assert again == json.loads(json.dumps(summary))  # what was measured on real images stays
    assert summary["stages"][0]["macs"] <= 0.7 * summary["teacher"]["macs"]
    onnx, pt2 = (Path(file["path"]) for file in summary["stages"][1]["files"])
    x = torch.randn(3, 1, 8, 8)
    assert load_exported(onnx)(x).shape == load_exported(pt2)(x).shape == (3, 4)
    (packed,) = summary["stages"][2]["files"]
    names = {path.name for path in folder.glob("network.*")}
    assert names == {"network.packed", "network.safetensors"}  # no floats beside what was asked for
    assert (folder / "network.packed").read_bytes() == Path(packed["path"]).read_bytes()
    assert packed["bytes"] == summary["stages"][2]["bytes"]
    state, card = load_packed(Path(packed["path"]))
    assert card["shape"] == [1, 8, 8]
    assert "head.weight" in state


def test_from_a_teacher_to_a_student_pruned_quantized_and_packed(
    plain: dict[str, object], tmp_path: Path
) -> None:
    distill = {"task": "distill", "student": "toys:student", **TUNE}
    quantize = {"task": "quantize", "weight_bits": 4, "finetune": TUNE}
    tables = plain | {"stage": [distill, STAGE_TABLES[0], quantize, STAGE_TABLES[2]]}
    summary = run_compression(tmp_path / "run", read_job(CompressJob, tables))
    student, pruned, quantized, packed = summary["stages"]
    assert summary["teacher"]["macs"] > student["macs"] > pruned["macs"] == quantized["macs"]
    assert pruned["bytes"] < student["bytes"] < summary["teacher"]["bytes"]
    state, _ = load_packed(Path(packed["files"][0]["path"]))
    network = torch.load(tmp_path / "run" / "stages" / "4-pack.pt", weights_only=False)
    torch.testing.assert_close(state, dict(network.state_dict()), rtol=0, atol=0)


def test_the_page_shows_what_each_stage_did_to_the_layers(
    plain: dict[str, object], tmp_path: Path
) -> None:
    plain["stage"] = [
        STAGE_TABLES[0],
        {"task": "factorize"},
        {"task": "quantize", "weight_bits": 3},
    ]
    run_compression(tmp_path / "run", read_job(CompressJob, plain))
    page = write_compression_report(tmp_path / "run").read_text()
    titles = ("channels and neurons kept", "bits of weights", "values of the weights")
    for title in (*titles, "ranges of the inputs", "values of the inputs"):
        assert title in page
    assert "largest of" not in page  # there are few
    assert "latency is the simulation's" in page


@pytest.mark.parametrize("linear", [True, False])
def test_a_page_of_merging_shows_the_curve_of_linear_layers(
    plain: dict[str, object], tmp_path: Path, *, linear: bool
) -> None:
    save_file(build("dreamstill.nn.lenet:lenet5").state_dict(), tmp_path / "lenet5.safetensors")
    plain["teacher"] = {
        "weights": str(tmp_path / "lenet5.safetensors"),
        "factory": "dreamstill.nn.lenet:lenet5",
        **{"shape": [1, 28, 28], "mean": [0.5], "std": [0.5]},
    }
    merge = {"task": "merge", "layers": ["classifier.0" if linear else "features.0"]}
    run_compression(tmp_path / "run", read_job(CompressJob, plain | {"stage": [merge]}))
    page = write_compression_report(tmp_path / "run").read_text()
    assert "1. merge: neurons kept" in page
    assert ("1. merge: saliency of each removal" in page) is linear


def test_none_is_a_word_in_a_file_too(plain: dict[str, object]) -> None:
    plain["stage"] = [{"task": "quantize", "first_last_bits": "none"}]
    assert read_job(CompressJob, plain).stages[0].config.first_last_bits is None


def test_a_quantized_network_goes_on_to_its_files(plain: dict[str, object], tmp_path: Path) -> None:
    tasks = [{"task": "quantize"}, {"task": "int8"}, STAGE_TABLES[-1]]
    stages = run_compression(tmp_path / "run", read_job(CompressJob, plain | {"stage": tasks}))[
        "stages"
    ]
    assert [stage["task"] for stage in stages] == ["quantize", "int8", "pack"]
    assert min(stage["agreement"] for stage in stages[:2]) > 0.9
    graph = onnx.load(stages[1]["files"][0]["path"]).graph  # the runtime quantizes, not the graph
    assert not {"Round", "Clip"} & {node.op_type for node in graph.node}
    folded = fold_batch_norm(toys.small_cnn())
    folded.load_state_dict(load_packed(Path(stages[2]["files"][0]["path"]))[0])


def test_what_a_task_leaves_whole_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "w.safetensors"
    save_file(toys.Recurrent().state_dict(), weights)
    card = {"factory": "toys:Recurrent", "shape": [1, 1, 64], "range": [0, 1]}
    (tmp_path / "w.json").write_text(json.dumps(card))
    out = ["--num-images", "64", "--teacher.weights", str(weights), "--out", str(tmp_path / "run")]
    assert cli.main(["quantize", *out]) == 0
    wanted = "quantize skipped: cells.weight_ih_l0, cells.weight_hh_l0"
    assert wanted in capsys.readouterr().out
    assert wanted in (tmp_path / "run" / "report.html").read_text()


def test_weights_are_counted_as_they_compute() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    (record,) = weights_in(torch.nn.Sequential(layer)).values()
    counts = record.pop("histogram")
    assert record == {"outputs": 2, "zeros": 0.5, "limit": 1.0}
    assert (len(counts), counts[0], counts[20], counts[40]) == (41, 1, 2, 1)
    quantized = QuantizedLayer(layer, 2, 8, 0.0, 1.0, per_channel=False)
    assert list(weights_in(torch.nn.Sequential(quantized))) == ["0"]


def test_what_enters_a_quantized_layer_is_counted_as_it_comes_and_on_its_grid() -> None:
    layer = QuantizedLayer(torch.nn.Linear(4, 2), 8, 2, -1.0, 2.0, per_channel=False)
    model = torch.nn.Sequential(torch.nn.Flatten(), layer)
    spec = InputSpec(shape=(1, 2, 2), mean=(0.5,), std=(0.1,))  # black is -5, white is 5
    images = torch.tensor([[[[0, 127], [128, 255]]]], dtype=torch.uint8)
    entering = entering_quantized(model, spec, images)
    record = weights_in(model, entering)["1"]["inputs"]
    assert record["seen"] == pytest.approx([-5, 5])
    assert record["kept"] == pytest.approx([-1, 2])
    assert record["limits"] == pytest.approx([-5, 5])
    places = [[i for i, n in enumerate(record[when]) if n] for when in ("before", "after")]
    assert places == [[0, 20, 40], [16, 20, 28]]  # of 41 bins: -5, 0, 5 and -1, 0, 2
    assert entering_quantized(torch.nn.Linear(4, 2), spec, images) == {}


def test_a_page_says_which_layers_it_leaves_out() -> None:
    def weights(number: int) -> dict[str, Any]:
        return {"limit": 1.0, "zeros": 0.0, "outputs": 1, "histogram": [number] * 41}

    before = {f"layer{number}": weights(number) for number in range(12)}
    (_, figure) = layer_figures({"task": "pack"}, before, before)
    assert figure.caption.endswith("before (grey) and after, in the 8 largest of 12 layers.")
    assert largest(before, lambda layer: sum(layer["histogram"])) == [
        f"layer{number}" for number in range(4, 12)
    ]


def test_a_compression_resumes_after_its_last_finished_stage(
    plain: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = read_job(CompressJob, plain)
    wanted = run_compression(tmp_path / "whole", job)
    done: list[str] = []

    def counting(task: str):  # type: ignore[no-untyped-def]
        stage = STAGES[task]

        def counted(*arguments):  # type: ignore[no-untyped-def]
            done.append(task)
            if task == "pack" and done.count("pack") == 1:
                raise KeyboardInterrupt
            return stage.run(*arguments)

        return stage._replace(run=counted)

    counted = {task: counting(task) for task in STAGES}
    monkeypatch.setattr("dreamstill.pipelines.compress.STAGES", counted)
    with pytest.raises(KeyboardInterrupt):
        run_compression(tmp_path / "cut", job)
    result = run_compression(tmp_path / "cut", job, resume=True)
    assert done == ["prune", "int8", "pack", "pack"]
    packed = [Path(s["stages"][2]["files"][0]["path"]).read_bytes() for s in (wanted, result)]
    assert packed[0] == packed[1]


def test_learned_rounding_that_is_interrupted_ends_as_if_it_were_not(
    plain: dict[str, object], tmp_path: Path
) -> None:
    rounded = {"task": "quantize", "weight_bits": 3, "rounding": "qdrop", "rounding_steps": 9}
    job = read_job(CompressJob, plain | {"stage": [rounded, {"task": "int8"}]})

    def stopped(progress: Progress) -> None:
        if progress.stage == "round" and progress.done == 12:
            raise KeyboardInterrupt

    run_compression(tmp_path / "whole", job)
    with pytest.raises(KeyboardInterrupt):
        run_compression(tmp_path / "cut", job, on_progress=stopped)
    run_compression(tmp_path / "cut", job, resume=True)
    for name in ("network.safetensors", "stages/2-int8.int8.onnx"):
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "cut"))
        assert one == other


def test_links_that_are_not_finished_may_be_others_on_resuming(
    plain: dict[str, object], tmp_path: Path
) -> None:
    impossible = {"task": "factorize", "target": "parameters", "keep": 1e-3}
    folder = tmp_path / "run"
    with pytest.raises(ConfigError):
        run_compression(
            folder, read_job(CompressJob, plain | {"stage": [STAGE_TABLES[0], impossible]})
        )
    pruned = (folder / "stages" / "1-prune.pt").read_bytes()
    corrected = [STAGE_TABLES[0], STAGE_TABLES[2]]
    run_compression(folder, read_job(CompressJob, plain | {"stage": corrected}), resume=True)
    longer = read_job(CompressJob, plain | {"stage": [*corrected, STAGE_TABLES[1]]})
    summary = run_compression(folder, longer, resume=True)
    assert [stage["task"] for stage in summary["stages"]] == ["prune", "pack", "int8"]
    assert (folder / "stages" / "1-prune.pt").read_bytes() == pruned
    assert json.loads((folder / "config.json").read_text()) == to_plain(longer)
    with pytest.raises(RunError, match="started with other stages"):
        run_compression(
            folder, read_job(CompressJob, plain | {"stage": STAGE_TABLES[:1]}), resume=True
        )
    other = [STAGE_TABLES[0] | {"keep": 0.6}, *corrected[1:]]
    with pytest.raises(RunError, match="started with other stages"):
        run_compression(folder, read_job(CompressJob, plain | {"stage": other}), resume=True)


def test_a_folder_is_of_one_compression(plain: dict[str, object], tmp_path: Path) -> None:
    plain["stage"] = STAGE_TABLES[:1]
    folder = tmp_path / "run"
    run_compression(folder, read_job(CompressJob, plain))
    again = r"started with another num_images; .* used again: --images .*images\.npz"
    with pytest.raises(RunError, match=again):
        run_compression(folder, read_job(CompressJob, plain | {"num_images": 65}), resume=True)
    with pytest.raises(RunError, match="is not empty"):
        run_compression(folder, read_job(CompressJob, plain))


def test_a_nested_setting_leaves_the_others_at_the_tasks_defaults(
    plain: dict[str, object],
) -> None:
    plain["stage"] = [{"task": "prune", "finetune": {"steps": 7}}]
    (stage,) = read_job(CompressJob, plain).stages
    default = stage.config.__class__().finetune
    assert stage.config.finetune == replace(default, steps=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": []}, r"at least one \[\[stage\]\]"),
        ({"stage": [{"task": "shrink"}]}, "unknown task 'shrink'; known: distill"),
        ({"stage": [{"task": "prune", "keep": 2.0}]}, "keep must be below 1; got 2.0"),
        ({"stage": [{"task": "prune", "speed": 2.0}]}, "unknown setting prune.speed"),
        ({"stage": [{"task": "distill"}]}, "distill.student is missing"),
        (
            {"stage": [{"task": "int8"}, {"task": "distill", "student": "toys:student"}]},
            "can only be the first stage",
        ),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"num_images": 3}, "at least 8; got 3"),
        ({"method": "dfad"}, "no student for dfad to play against"),
        ({"method": "magic"}, "unknown method 'magic'; known: image_programs, noise"),
        ({"preset": "mars"}, "image_programs has no preset 'mars'; known: none"),
        ({"synthesis": {"mine": True}}, "no student for image_programs to play against"),
        ({"color": 1}, "unknown setting color"),
        ({"method": ["noise"], "synthesis": {}}, "method must be a string"),
        ({"images": "x.npz"}, "num_images 64 has no effect beside images"),
        (
            {"stage": [{"task": "quantize"}, {"task": "factorize"}]},
            "only int8 and pack can follow quantize; got factorize",
        ),
        (
            {
                "stage": [
                    {
                        **{"task": "distill", "student": "toys:student"},
                        **{"inherit": False, "reconstruct": 9},
                    }
                ]
            },
            "reconstruct 9 has no effect without inherit",
        ),
        (
            {"stage": [{"task": "quantize", "keep": 0.5, "weight_bits": 4}]},
            "4 has no effect beside",
        ),
        ({"stage": [{"task": "int8", "backend": "xnnpack"}]}, "no effect on formats without pt2"),
        ({"stage": [{"task": "merge", "layers": ["a", "a"]}]}, "layers names one twice: a, a"),
    ],
)
def test_wrong_compressions_are_named(
    plain: dict[str, object], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_job(CompressJob, plain | changes)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("merge", ["--merge.keep", "0.5"]),
        ("factorize", ["--factorize.energy", "0.5", "--factorize.finetune.steps", "3"]),
        ("quantize", ["--quantize.weight_bits", "4"]),
        ("quantize", ["--quantize.rounding", "qdrop", "--quantize.rounding_steps", "3"]),
        ("quantize", ["--quantize.without_inputs", "true"]),
    ],
)
def test_each_task_is_a_command_with_a_page(
    task: str,
    options: list[str],
    plain: dict[str, object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toys, "small_cnn", deep_cnn)
    weights = tmp_path / "teacher.safetensors"
    save_file(deep_cnn().state_dict(), weights)
    out = str(tmp_path / "run")
    common = ["--teacher.weights", str(weights), "--num-images", "64", "--out", out, "--json"]
    assert cli.main([task, *common, *options]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["stages"][0]["layers"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/svg") == {"quantize": 5, "merge": 3}.get(task, 2)
    assert cli.main(["report", out, "--json"]) == 0
    capsys.readouterr()
    assert (tmp_path / "run" / "report.html").read_text() == page
    assert cli.main([task, *common, *options]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert cli.main([task, *common, *options, "--resume"]) == 0


def test_a_task_takes_a_method_with_its_settings(plain: dict[str, object], tmp_path: Path) -> None:
    command = ["quantize", "--teacher.weights", str(tmp_path / "teacher.safetensors")]
    command += ["--num-images", "64", "--method", "zskd", "--synthesis.steps", "2"]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"] == "zskd"
    assert config["synthesis"] == to_plain(ZskdConfig(steps=2))
    plain |= {"method": "structured_noise", "preset": "clothes", "synthesis": {"oversample": 2}}
    job = read_job(CompressJob, plain)
    assert job.synthesis == StructuredNoiseConfig(shapes=CLOTHES, oversample=2)


def deep_cnn() -> torch.nn.Module:
    with seeded(torch.Generator().manual_seed(0)):
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 16, 3),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(256, 40),
            torch.nn.ReLU(),
            torch.nn.Linear(40, 4),
        )


def test_new_classes_by_command(
    plain: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "new.npz", x=x, y=4 + np.arange(40) % 2)
    np.savez(tmp_path / "real.npz", x=x, y=np.arange(40) % 6)
    out = tmp_path / "run"
    arguments = ["learn_classes", "--teacher.weights", str(tmp_path / "teacher.safetensors")]
    arguments += ["--new", str(tmp_path / "new.npz"), "--num-images", "64", "--json"]
    arguments += ["--learn_classes.steps", "3", "--out", str(out)]
    assert cli.main([*arguments, "--real", str(tmp_path / "real.npz")]) == 0
    (summary,) = json.loads(capsys.readouterr().out)["stages"]
    images = (out / "images.npz").stat().st_mtime_ns
    assert cli.main([*arguments, "--resume", "--real", str(tmp_path / "real.npz")]) == 0
    (again,) = json.loads(capsys.readouterr().out)["stages"]
    assert again | {"latency_ms": 0} == summary | {"latency_ms": 0}
    assert (out / "images.npz").stat().st_mtime_ns == images
    assert (summary["old_classes"], summary["classes"]) == (4, 6)
    old, new = summary["accuracy_old"], summary["accuracy_new"]
    assert summary["average_accuracy"] == pytest.approx((old + new) / 2)
    assert summary["forgetting"] == pytest.approx(max(0, summary["accuracy_old_before"] - old))
    of_old = [of for of in summary["by_class"] if of["class"] < 4]
    assert len(summary["by_class"]) == 6
    assert sum(of["after"] for of in of_old) / 4 == pytest.approx(old, abs=0.02)  # 7, 7, 7, 7
    page = (out / "report.html").read_text()
    assert page.count("data:image/svg") == 4  # with size against quality
    assert "The network learned 2 new classes and is right on" in page
    assert f"{100 * summary['forgetting']:.2f} %" in page
    assert cli.main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page
    capsys.readouterr()
    assert load_exported(out / "network.onnx")(torch.randn(3, 1, 8, 8)).shape == (3, 6)
    np.savez(tmp_path / "new.npz", x=x, y=3 + np.arange(40) % 2)
    assert cli.main([*arguments[:-1], str(tmp_path / "other")]) == 2
    assert "labels of new classes must be 4 or more; got 3" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_mistake_in_learning_new_classes_leaves_no_folder(
    plain: dict[str, object], tmp_path: Path
) -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))  # without BatchNorm
    save_file(flat.state_dict(), tmp_path / "teacher.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toys, "small_cnn", lambda: flat)
        np.savez(tmp_path / "new.npz", x=np.zeros((8, 1, 8, 8), np.uint8), y=np.full(8, 4))
        arguments = ["learn_classes", "--teacher.weights", str(tmp_path / "teacher.safetensors")]
        arguments += ["--new", str(tmp_path / "new.npz"), "--out", str(tmp_path / "run")]
        assert cli.main([*arguments, "--method", "abd"]) == 2
    assert not (tmp_path / "run").exists()


def test_what_was_learned_is_not_learned_again(
    plain: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "new.npz", x=rng.integers(0, 256, (8, 1, 8, 8), np.uint8), y=np.full(8, 4))
    arguments = ["learn_classes", "--teacher.weights", str(tmp_path / "teacher.safetensors")]
    arguments += ["--new", str(tmp_path / "new.npz"), "--out", str(tmp_path / "run")]
    arguments += ["--learn_classes.steps", "3", "--num-images", "64"]

    def refuse(*_: object, **__: object) -> None:
        raise ExportError("no such format")

    with monkeypatch.context() as patch:
        patch.setattr("dreamstill.pipelines.compress.export", refuse)
        assert cli.main(arguments) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["not_exported"] == "no such format"
    assert "Not exported: no such format" in (tmp_path / "run" / "report.html").read_text()
    learned = (tmp_path / "run" / "network.safetensors").read_bytes()
    monkeypatch.setattr("dreamstill.pipelines.stages.learn", refuse)
    assert cli.main([*arguments, "--resume"]) == 0
    assert (tmp_path / "run" / "network.safetensors").read_bytes() == learned
    given = torch.randn(3, 1, 8, 8)
    first = load_exported(tmp_path / "run" / "network.onnx")(given)
    model = toys.small_cnn()
    model.head = torch.nn.Linear(model.head.in_features, 5)
    model.load_state_dict(load_file(tmp_path / "run" / "network.safetensors"))
    torch.testing.assert_close(first, model.eval()(given), atol=1e-5, rtol=0)
    np.savez(tmp_path / "new.npz", x=np.zeros((8, 1, 8, 8), np.uint8), y=np.arange(8) % 2 + 4)
    assert cli.main([*arguments, "--resume"]) == 2
    assert "was made with other settings or files" in capsys.readouterr().err


def test_new_classes_from_pictures_become_what_an_archive_of_them_does(
    plain: dict[str, object], tmp_path: Path
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)
    y = 4 + np.arange(40) // 20
    np.savez(tmp_path / "new.npz", x=x, y=y)
    for i in range(40):
        folder = tmp_path / "new" / ("cat" if y[i] == 4 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[i, 0]).save(folder / f"{i:02}.png")
    arguments = ["learn_classes", "--teacher.weights", str(tmp_path / "teacher.safetensors")]
    arguments += ["--learn_classes.steps", "3", "--num-images", "64"]
    weights = []
    for new in ("new", "new.npz"):
        out = tmp_path / f"from {new}"
        assert cli.main([*arguments, "--new", str(tmp_path / new), "--out", str(out)]) == 0
        weights.append((out / "network.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_what_follows_new_classes_keeps_them(plain: dict[str, object], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 1, 8, 8), np.uint8), 4 + np.arange(40) % 2
    np.savez(tmp_path / "new.npz", x=x, y=y)
    student = {"task": "distill", "student": "toys:student", "steps": 2, "num_validation": 16}
    learn = {"task": "learn_classes", "new": str(tmp_path / "new.npz"), "steps": 3}
    tune = {"steps": 2, "batch_size": 8, "num_validation": 8}
    merge = {"task": "merge", "keep": 0.7, "finetune": tune}
    job = read_job(CompressJob, plain | {"stage": [student, learn]})
    run_compression(tmp_path / "run", job)
    job = read_job(CompressJob, plain | {"stage": [student, learn, merge, {"task": "int8"}]})
    model, summary = compressed(tmp_path / "run", job, resume=True)
    assert [stage.get("classes") for stage in summary["stages"]] == [None, 6, None, None]
    assert predict(model, SPEC, torch.from_numpy(x)).shape == (40, 6)
    state = load_file(tmp_path / "run" / "network.safetensors")
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    stages = [job.stages[1].config, job.stages[2].config]
    teacher, given = open_from(job.teacher), torch.from_numpy(x)
    result = ds.compress(teacher, given, stages)
    assert predict(result.model, SPEC, given).shape == (40, 6)
    assert result.details["stages"][0]["old_classes"] == 4
    with pytest.raises(ConfigError, match="can only be the first stage, or the one after distill"):
        read_job(CompressJob, plain | {"stage": [merge, learn]})


def test_new_classes_need_a_head_before_any_image_is_made(
    plain: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    headless = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    save_file(headless.state_dict(), tmp_path / "teacher.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toys, "small_cnn", lambda: headless)
        np.savez(tmp_path / "new.npz", x=np.zeros((8, 1, 8, 8), np.uint8), y=np.full(8, 4))
        arguments = ["learn_classes", "--teacher.weights", str(tmp_path / "teacher.safetensors")]
        arguments += ["--new", str(tmp_path / "new.npz"), "--out", str(tmp_path / "run")]
        assert cli.main(arguments) == 2
    assert "needs a last linear layer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_network_that_no_file_can_keep_is_named_at_once(
    plain: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = toys.small_cnn()
    network.shrink = lambda x: x[:, :, ::2]  # type: ignore[assignment]
    monkeypatch.setattr(toys, "small_cnn", lambda: network)
    with pytest.raises(TeacherError, match="cannot be kept between stages"):
        run_compression(tmp_path / "run", read_job(CompressJob, plain))
    assert not (tmp_path / "run").exists()


def test_a_compression_is_measured_where_its_folder_was_moved(
    plain: dict[str, object], tmp_path: Path
) -> None:
    job = read_job(CompressJob, plain | {"stage": [{"task": "int8"}]})
    run_compression(tmp_path / "run", job)
    (tmp_path / "run").rename(tmp_path / "moved")
    real = tmp_path / "real.npz"
    np.savez(real, x=np.zeros((8, 1, 8, 8), np.uint8), y=np.arange(8) % 4)
    summary = run_compression(tmp_path / "moved", job, resume=True, real=real)
    assert (tmp_path / "moved" / "network.int8.onnx").is_file()
    assert 0 <= summary["stages"][0]["accuracy"] <= 1


@pytest.mark.parametrize("given", [True, False])
def test_a_mistake_in_the_first_link_leaves_nothing_but_images(
    plain: dict[str, object], tmp_path: Path, given: bool
) -> None:
    if given:
        images = tmp_path / "images.npz"
        np.savez(images, x=np.zeros((16, 1, 8, 8), np.uint8))
        plain = {k: v for k, v in plain.items() if k != "num_images"} | {"images": str(images)}
    stage = {"task": "prune", "target": "latency", "keep": 1e-5}  # which only measuring can tell
    with pytest.raises(DreamstillError):
        run_compression(tmp_path / "run", read_job(CompressJob, plain | {"stage": [stage]}))
    assert (tmp_path / "run" / "images.npz").exists() != given


def test_an_int8_file_is_compared_with_the_teacher(
    plain: dict[str, object], tmp_path: Path
) -> None:
    cut = {"task": "prune", "keep": 0.4, "rounds": 1, "finetune": TUNE | {"steps": 0}}
    job = read_job(CompressJob, plain | {"stage": [cut, {"task": "int8"}]})
    pruned, int8 = run_compression(tmp_path / "run", job)["stages"]
    assert pruned["agreement"] < 0.9
    assert int8["agreement"] == pytest.approx(pruned["agreement"], abs=0.1)


def test_a_compression_says_when_its_teacher_or_images_have_changed(
    plain: dict[str, object], tmp_path: Path
) -> None:
    job = read_job(CompressJob, plain | {"stage": [{"task": "merge"}]})
    run_compression(tmp_path / "run", job)
    weights = Path(job.teacher.weights)
    state = load_file(weights)
    save_file({name: value + 1 for name, value in state.items()}, weights)
    with pytest.raises(RunError, match="was started with another teacher"):
        run_compression(tmp_path / "run", job, resume=True)


def test_rows_are_compared_in_one_runtime_and_file_beside_file(
    plain: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = STAGE_TABLES[0] | {"finetune": TUNE | {"steps": 0}}
    quantize = {"task": "quantize", "weight_bits": 4}
    plain["stage"] = [cut, quantize, {"task": "int8"}, STAGE_TABLES[2]]
    summary = run_compression(tmp_path / "run", read_job(CompressJob, plain))
    whole, (pruned, quantized, int8, packed) = summary["teacher"], summary["stages"]
    assert summary["runtime"] == "onnxruntime"
    for record in (whole, pruned, int8, packed):
        assert record["latency_ms"]["runtime"] == "onnxruntime"
        assert record["bytes"] == record["file_bytes"]
        assert record["smaller"] == whole["file_bytes"] / record["file_bytes"]
    for name, record in (("teacher.onnx", whole), ("1-prune.onnx", pruned)):
        assert (tmp_path / "run" / "stages" / name).stat().st_size == record["bytes"]
    assert "latency_ms" not in quantized  # it would be the simulation's
    assert quantized["bytes"] == quantized["weight_bytes"]
    assert quantized["smaller"] == whole["weight_bytes"] / quantized["weight_bytes"]
    page = write_compression_report(tmp_path / "run").read_text()
    assert "latency in onnxruntime, ms" in page
    print_compression(summary, tmp_path / "run")
    shown = " ".join(capsys.readouterr().out.split())
    assert "onnxruntime" in shown
    assert "* of the weights: there is no file" in shown


def test_floats_are_timed_in_the_format_of_the_int8_file(
    plain: dict[str, object], tmp_path: Path
) -> None:
    job = read_job(CompressJob, plain | {"stage": [{"task": "int8", "formats": ["pt2", "onnx"]}]})
    summary = run_compression(tmp_path / "run", job)
    assert summary["runtime"] == "PyTorch's torch.export"
    for record in (summary["teacher"], summary["stages"][0]):
        assert record["latency_ms"]["runtime"] == summary["runtime"]
    assert (tmp_path / "run" / "stages" / "teacher.pt2").is_file()


def test_a_compression_says_which_classes_no_image_has(
    plain: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = str(tmp_path / "teacher.safetensors")
    state = load_file(weights)
    state["head.bias"][[0, 3]] -= 100
    save_file(state, weights)
    np.savez(tmp_path / "new.npz", x=np.zeros((8, 1, 8, 8), np.uint8), y=np.full(8, 4))
    np.savez(tmp_path / "mine.npz", x=np.zeros((16, 1, 8, 8), np.uint8))
    few = ["--num-images", "64"]
    for command, wanted in (
        (["merge", *few], "none of the 64 synthetic images classes 0, 3: nothing here teaches"),
        (["merge", "--images", str(tmp_path / "mine.npz")], "100.0% of the 16 images class"),
        (
            [
                "learn_classes",
                "--new",
                str(tmp_path / "new.npz"),
                "--learn_classes.steps",
                "1",
                *few,
            ],
            "none of the 64 synthetic images classes 0, 3: nothing here teaches",
        ),
    ):
        out = tmp_path / f"{command[0]} of {command[2][-8:]}"
        assert cli.main([*command, "--teacher.weights", weights, "--out", str(out)]) == 0
        lines = [li for li in capsys.readouterr().err.splitlines() if "warning" in li]
        assert len(lines) == 1
        assert lines[0].startswith(f"dreamstill: warning: the teacher gives {wanted}")
        (text,) = json.loads((out / "summary.json").read_text())["warnings"]
        assert lines[0].endswith(text)
        assert f"{text}." in (out / "report.html").read_text()


def test_a_link_that_was_trained_in_vain_says_so(
    plain: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain["stage"] = [{"task": "merge", "keep": 1.0, "finetune": TUNE | {"lr": 50.0}}]
    summary = run_compression(tmp_path / "run", read_job(CompressJob, plain))
    (text,) = summary["stages"][0]["warnings"]
    assert text.startswith("none of the 4 steps improved on the start, which was kept")
    assert summary["stages"][0]["agreement"] == 1
    assert f"1. merge: {text}" in write_compression_report(tmp_path / "run").read_text()
    print_compression(summary, tmp_path / "run")
    assert f"merge: {text}" in capsys.readouterr().out


class Moody(toys.SmallCnn):
    """What no exporter can write down."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return logits if logits.sum().item() < 1e9 else 2 * logits


def test_a_compression_that_cannot_be_exported_keeps_its_summary(
    plain: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toys, "small_cnn", Moody)
    stage = {"task": "pack", "keep": 0.5, "rounds": 1, "finetune": TUNE}
    summary = run_compression(tmp_path / "run", read_job(CompressJob, plain | {"stage": [stage]}))
    assert summary["network"] == [str(tmp_path / "run" / "network.packed")]
    assert summary["runtime"] == "PyTorch"
    for record in (summary["teacher"], *summary["stages"]):
        assert record["latency_ms"]["runtime"] == "PyTorch"
    assert summary["stages"][0]["smaller"] is None  # a file beside weights
    write_compression_report(tmp_path / "run")
    print_compression(summary, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
