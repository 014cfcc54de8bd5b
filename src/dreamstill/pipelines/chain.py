"""Chain tasks on one set of images: distill, prune, merge, factorize, quantize, int8, pack.

A chain's directory holds config.json, environment.json, fingerprints.json (digests of the
configuration, the teacher and the given images), images.npz, weights.json, and for every stage its
network (stages/N-TASK.pt), its record (stages/N-TASK.json) and its files; a resume does not repeat
finished stages. The record has digests of the stage's configuration and files and of the images: a
file that does not match is not opened. `saved_networks` reads networks back without running code.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dreamstill.compression.prune import Importance
from dreamstill.compression.quantization.histograms import entering_quantized, weights_in
from dreamstill.config import config_class, from_plain, no_effect, read_plain, to_plain
from dreamstill.data.class_coverage import warn_of_classes
from dreamstill.data.images import load_images, load_unlabelled
from dreamstill.distillation.config import DistillConfig
from dreamstill.distillation.finetune import check_finetuning
from dreamstill.errors import ConfigError, ExportError, RunError
from dreamstill.evaluation import accuracy, agreement, answers, device_of, evaluating, predict
from dreamstill.exporters.formats import export, load_exported
from dreamstill.files.checkpoints import digest
from dreamstill.files.reading import StrPath, check_file, understood
from dreamstill.files.writing import write_json
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.deployment import compare_delivered
from dreamstill.pipelines.distill import open_student
from dreamstill.pipelines.process import seeded_process
from dreamstill.pipelines.run_directory import claimed
from dreamstill.pipelines.saved_networks import check_keepable, read_network, save_network
from dreamstill.pipelines.stages import STAGES, StageContext, check_stages, looks_at_images
from dreamstill.pipelines.synthesize import (
    Images,
    OnProgress,
    origin_of,
    own_images,
    read_synthesis,
)
from dreamstill.profiling import measure_size
from dreamstill.teacher import Teacher

__all__ = ["Chain", "Stage", "read_chain", "run_chain"]

NUM_SHOWN = 1000
"""The last images, on which agreement is measured and ranges are shown."""


@config_class
class Stage:
    """One task of a chain."""

    task: str
    config: Any

    def __post_init__(self) -> None:
        if self.task not in STAGES:
            raise ConfigError(f"unknown task {self.task!r}; known: {', '.join(STAGES)}")
        for part in fields(self.config):
            if isinstance(training := getattr(self.config, part.name), DistillConfig):
                check_finetuning(training)


@config_class
class Chain(Images):
    """All that decides a chain's result."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        Images.__post_init__(self)  # slots and super() do not go together
        if not self.stages:
            raise ConfigError("a chain needs at least one stage")
        if not self.looks_at_images and self.num_images is None:
            where = "on tasks that look at no image, unless num_images says how many to make"
            no_effect(self, where, "method", "synthesis")
        if any(stage.task == "distill" for stage in self.stages[1:]):
            raise ConfigError("distill starts a student afresh: it can only be the first stage")
        tasks = [stage.task for stage in self.stages]
        after = tasks[tasks.index("quantize") + 1 :] if "quantize" in tasks else []
        if odd := [task for task in after if task not in ("int8", "pack")]:
            raise ConfigError(f"only int8 and pack can follow quantize; got {odd[0]}")
        merged = self.stages[tasks.index("merge") + 1 :] if "merge" in tasks else ()
        for stage in merged:
            if stage.task == "prune" and stage.config.importance is Importance.BATCH_NORM:
                raise ConfigError("importance batch-norm cannot follow merge, which folds it")

    @property
    def looks_at_images(self) -> bool:
        """A task does, or agreement is to be measured on so many."""
        asked = self.num_images is not None
        return asked or any(looks_at_images(stage.task, stage.config) for stage in self.stages)


def read_chain(plain: dict[str, Any]) -> Chain:
    """A chain from plain values: [teacher], images or method, and [[stage]] tables with a task.

    Raises:
        ConfigError: there is no teacher or no stage, or a task or setting is unknown, of another
            type, outside its range or without effect, or pruning's library is absent.
        ExportError: an int8 format is unknown, or its libraries are absent.

    """
    plain = dict(plain)
    stages = []
    entries = plain.pop("stage", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError("every stage is a table of its own: write [[stage]]")
    for entry in entries:
        config = dict(entry)
        task = config.pop("task", "")
        if not isinstance(task, str) or task not in STAGES:
            raise ConfigError(f"unknown task {task!r}; known: {', '.join(STAGES)}")
        stages.append(Stage(task=task, config=from_plain(STAGES[task][0], config, task)))
    read_synthesis(plain)
    if "teacher" not in plain:
        raise ConfigError("no teacher: give weights in a table [teacher]")
    chain: Chain = from_plain(Chain, plain | {"stages": stages}, "chain")
    return chain


def run_chain(
    folder: StrPath,
    chain: Chain,
    *,
    resume: bool = False,
    real: StrPath | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Run a chain in a folder, or take it up after its last finished stage.

    Args:
        folder: new, or with `resume` one that holds the same chain, as far as it was finished.
        chain: what to do.
        resume: finished stages are read back, not done again.
        real: .npz with x, y: every network is measured on it, once, after the last stage.
        on_progress: called after every synthesized batch and training step.

    Returns:
        What summary.json holds: the teacher and every stage with its bytes, parameters,
        multiply-accumulates, latency in the one `runtime`, agreement on a thousand of the images
        where there are any, accuracy if measured, and the files written; `warnings`, of the
        images' classes.

    Raises:
        TeacherError: a network cannot be opened, built, kept between stages, or changed by a task.
        DataError: images that are given are wrong, or too few.
        RunError: the folder holds something else, or with `resume` another chain, one of another
            teacher or other images, or a damaged file.
        ConfigError: what a task is asked for does not go with its network, or a library that the
            task needs is absent.
        ExportError: an int8 or packed file cannot be written, or does not answer as its network.
        NonFiniteError: a loss, or a layer's solution, is not finite.

    """
    folder, real = Path(folder), Path(real) if real else None
    teacher = open_from(chain.teacher, device=chain.device, precision=chain.precision)
    rng = torch.Generator(chain.device).manual_seed(chain.seed)
    students = [stage.config.student for stage in chain.stages if stage.task == "distill"]
    kin = [teacher.module, *(open_student(student, teacher, rng) for student in students)]
    check_keepable(kin)
    check_stages(chain.stages, kin[-1], teacher)
    test = load_images(real, teacher.spec, teacher.num_classes) if real else None
    images = load_unlabelled(Path(chain.images), teacher.spec) if chain.images else None
    with claimed(
        folder,
        chain,
        origin_of(teacher, images=images),
        resume=resume,
        worth=("images.npz", "images.pt", "stages/*.json"),
        makes=("images.npy", "stages"),
        free=("stages",),
    ):
        check_finished(folder, chain)
        write_json(folder / "config.json", to_plain(chain))
        if images is None:
            images = _own_images(folder, chain, teacher, on_progress)
        wanted, warnings = images[:0], list[str]()
        if len(images):
            wanted = predict(teacher.module, teacher.spec, images)
            warnings = warn_of_classes(wanted, given=chain.images is not None)
        made = _make_links(folder / "stages", chain, teacher, images, wanted, kin, on_progress)
        summary = _summarize(folder, made, teacher, images[-NUM_SHOWN:], real, test)
        write_json(folder / "summary.json", summary | {"warnings": warnings})
        return summary | {"warnings": warnings}


def _own_images(folder: Path, chain: Chain, teacher: Teacher, on_progress: OnProgress) -> Tensor:
    """A chain's own images, uint8 (N, C, H, W); none where it looks at none."""
    if not chain.looks_at_images:
        return torch.empty(0, *teacher.spec.shape, dtype=torch.uint8)
    return own_images(folder / "images.npz", chain, teacher, on_progress)


def _stem(folder: Path, index: int, stage: Stage) -> Path:
    """Where a stage's files go, less their suffix."""
    return folder / f"{index + 1}-{stage.task}"


def check_finished(folder: Path, chain: Chain) -> None:
    """RunError unless the finished stages of a run's folder are the first ones of a chain."""
    names = {_stem(folder / "stages", i, stage).name: stage for i, stage in enumerate(chain.stages)}
    for path in (folder / "stages").glob("*.json"):
        stage = names.get(path.stem)
        if stage is None or read_plain(path).get("settings") != digest(to_plain(stage)):
            raise RunError(
                f"{folder} was started with another stages; it cannot be resumed: its "
                f"{path.stem} is finished, and was made with other settings"
            )


class Made(NamedTuple):
    """A network on the way, the teacher first, and its record."""

    name: str
    network: nn.Module
    record: dict[str, Any]


def _make_links(
    folder: Path,
    chain: Chain,
    teacher: Teacher,
    images: Tensor,
    wanted: Tensor,
    kin: Sequence[nn.Module],
    on_progress: OnProgress,
) -> list[Made]:
    """Do every stage on what the one before it made, or read it back where it is finished."""
    folder.mkdir(exist_ok=True)
    shown, wanted = images[-NUM_SHOWN:], wanted[-NUM_SHOWN:]
    record = _measured(teacher.module, {}, folder, teacher.spec, shown, wanted)
    made = [Made("teacher", teacher.module, record)]
    shown_of = digest(images.numpy().reshape(-1).data)
    for index, stage in enumerate(chain.stages):
        stem = _stem(folder, index, stage)
        if stem.with_suffix(".json").is_file():
            network, record = _read_link(stem, shown_of, kin)
            network = network.to(teacher.device)
        else:
            rng = torch.Generator(chain.device).manual_seed(chain.seed + index)
            work = StageContext(teacher, images, rng, on_progress, stem)
            with seeded_process(chain.seed + index, chain.device):
                network, record = STAGES[stage.task][1](made[-1].network, stage.config, work)
            record = {"task": stage.task} | record
            if work.warnings:
                record["warnings"] = work.warnings
            record = _measured(network, record, folder, teacher.spec, shown, wanted)
            save_network(network, stem.with_suffix(".pt"))
            origin = {"settings": digest(to_plain(stage)), "images": shown_of}
            write_json(stem.with_suffix(".json"), record | origin | {"sha256": _hashes(stem)})
        made.append(Made(stem.name, network, record))
    return made


def _hashes(stem: Path) -> dict[str, str]:
    """SHA-256 of all files of a stage, by name."""
    files = sorted(path for path in stem.parent.glob(f"{stem.name}.*") if path.suffix != ".json")
    for path in files:
        check_file(path, RunError)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _read_link(
    stem: Path, images: str, kin: Sequence[nn.Module]
) -> tuple[nn.Module, dict[str, Any]]:
    """A finished stage's network and record.

    Raises:
        RunError: a file of it is gone, or another than was written, or it was made on other images.

    """
    record = read_plain(stem.with_suffix(".json"))
    written = record.pop("sha256", None)
    if record.pop("images", None) != images:
        raise RunError(f"{stem} was made on other images than those in the run's folder now")
    record.pop("settings", None)
    if not isinstance(written, dict) or f"{stem.name}.pt" not in written:
        raise RunError(f"{stem}.json is damaged: it does not say which files were written")
    found = _hashes(stem)
    for name in written:
        if found.get(name) != written[name]:
            what = "is another file than was written" if name in found else "is gone"
            raise RunError(f"{stem.with_name(name)} {what}: it is not opened; start another run")
    with understood(stem.with_suffix(".json"), RunError, "is damaged"):
        if odd := {Path(file["path"]).name for file in record.get("files", [])} - written.keys():
            raise RunError(f"{stem}.json names {odd.pop()}, which is none of the stage's files")
    return read_network(stem.with_suffix(".pt"), kin).to(device_of(kin[0])), record


def _summarize(
    folder: Path,
    made: Sequence[Made],
    teacher: Teacher,
    shown: Tensor,
    real: Path | None,
    test: tuple[Tensor, Tensor] | None,
) -> dict[str, Any]:
    """Measure what was made, and write weights.json, network.onnx and the stages' own files."""
    runtime = compare_delivered(folder / "stages", made, teacher.spec)
    summary: dict[str, Any] = {"runtime": runtime}
    if test is not None and real is not None:
        summary["images"] = real.name
        for one in made:
            run = _runtime(one.network, one.record, folder / "stages")
            logits = _answers(one.network, run, teacher.spec, test[0])
            one.record["accuracy"] = accuracy(logits, test[1])
    whole, *stages = [one.record for one in made]
    summary = {"teacher": whole, "stages": stages} | summary
    layers = {
        one.name: weights_in(one.network, entering_quantized(one.network, teacher.spec, shown))
        for one in made
    }
    write_json(folder / "weights.json", layers)
    try:
        summary["network"] = export(made[-1].network, teacher.spec, folder / "network.onnx").path
    except ExportError as error:  # what the stages made is worth its summary
        summary["not_exported"] = str(error)
    return summary


def _measured(
    network: nn.Module,
    record: dict[str, Any],
    folder: Path,
    spec: InputSpec,
    images: Tensor,
    wanted: Tensor,
) -> dict[str, Any]:
    """A stage's record with its size, and its agreement with the logits wanted for the images."""
    run = _runtime(network, record, folder)
    size = asdict(measure_size(network, spec))
    if "files" not in record:
        size["weight_bytes"] = size["bytes"]
    del size["bytes"]
    if not len(images):  # the tasks look at none, and none are made to measure agreement on
        return size | record
    return size | {"agreement": agreement(_answers(network, run, spec, images), wanted)} | record


def _answers(
    network: nn.Module, run: Callable[[Tensor], Tensor], spec: InputSpec, images: Tensor
) -> Tensor:
    """Logits of what answers for a stage; files answer on the CPU."""
    device = device_of(network) if run is network else "cpu"
    with evaluating(network):
        return answers(run, spec, images, device=device)


def _runtime(
    network: nn.Module, record: dict[str, Any], folder: Path
) -> Callable[[Tensor], Tensor]:
    """What answers for a stage: its network, or of int8 the first file in its own runtime."""
    if record.get("task") != "int8":
        return network
    return load_exported(folder / Path(record["files"][0]["path"]).name)  # it may have moved
