"""Compress a network in stages, such as distill, prune and int8, on one set of images.

A run directory holds config.json, environment.json, fingerprints.json (of configuration, teacher
and given images), images.npz, weights.json, the last network (network.safetensors and .onnx, or the
files that the last stage wrote, such as network.int8.onnx), and for every stage its network
(stages/N-TASK.pt), its record (stages/N-TASK.json) and its files. Finished stages are not repeated
on resuming. A record has digests of the stage's configuration, files and images; a file that does
not match is not opened.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dreamstill.compression.quantization.histograms import entering_quantized, weights_in
from dreamstill.config import read_plain, to_plain
from dreamstill.continual.learning import compare_classes
from dreamstill.data.batch import answers_for_whole
from dreamstill.data.class_coverage import warn_of_classes
from dreamstill.data.images import load_images, load_real, load_unlabelled
from dreamstill.errors import ExportError, RunError
from dreamstill.evaluation import (
    agreement,
    answers,
    confusion_matrix,
    device_of,
    divergence,
    evaluating,
    scores,
    warn_of_guesses,
)
from dreamstill.exporters.formats import export, load_exported
from dreamstill.files.checkpoints import digest, save_weights
from dreamstill.files.reading import StrPath, check_file, understood
from dreamstill.files.writing import save_arrays, write_atomically, write_json
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.config import CompressJob, StageConfig
from dreamstill.pipelines.deployment import compare_files
from dreamstill.pipelines.distill import open_student
from dreamstill.pipelines.process import seeded_process
from dreamstill.pipelines.run_directory import open_run_directory, read_summary
from dreamstill.pipelines.saved_networks import check_saveable, read_network, save_network
from dreamstill.pipelines.stages import STAGES, StageContext, check_layers, check_stages
from dreamstill.pipelines.synthesize import fingerprints_of, own_images
from dreamstill.profiling import measure_size
from dreamstill.progress import OnProgress
from dreamstill.synthesis.validation_set import ValidationSet, validation_set
from dreamstill.teacher import Teacher

__all__ = ["Made", "compressed", "layer_weights", "run_compression", "run_stages"]

NUM_SHOWN = 1000
"""Number of images, from the end, for activation ranges."""
NUM_VALIDATION = 1024
"""Number of validation images for agreement."""


def run_compression(
    folder: StrPath,
    job: CompressJob,
    *,
    resume: bool = False,
    real: StrPath | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Run a compression pipeline, or resume it after its last finished stage.

    Args:
        folder: run directory, new or empty; with `resume`, one whose finished stages are the first
            stages of `job`.
        job: configuration.
        resume: read finished stages back.
        real: images and labels, as .npz or a directory, to measure all networks on at the end.
        on_progress: called after every synthesized batch and training step.

    Returns:
        Content of summary.json: for the teacher and every stage bytes, parameters, MACs, latency
        in one `runtime`, agreement on the teacher's validation set, accuracy with `real`,
        and files; and `warnings` about classes without images.

    Raises:
        TeacherError: a network cannot be opened, built, saved or changed by a task.
        DataError: given images are wrong or too few.
        RunError: the directory is not empty, belongs to another job, teacher or images, or has a
            damaged file.
        ConfigError: a task does not fit its network, or its library is not installed.
        ExportError: an int8 or packed file cannot be written, or its output differs from its
            network's.
        NonFiniteError: a loss or the solution of a layer is not finite.

    """
    return compressed(folder, job, resume=resume, real=real, on_progress=on_progress)[1]


def compressed(
    folder: StrPath,
    job: CompressJob,
    *,
    resume: bool = False,
    real: StrPath | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Do as `run_compression`, and return the last network with the summary."""
    folder, real = Path(folder), Path(real) if real else None
    teacher = open_from(job.teacher, device=job.device, precision=job.precision)
    check_layers(teacher.module, "compress")
    networks = networks_of(job, teacher)
    check_saveable(networks)
    check_stages(job.stages, networks[-1], teacher)
    test = _labelled(real, job, teacher) if real else None
    images = load_unlabelled(Path(job.images), teacher.input_spec) if job.images else None
    with open_run_directory(
        folder,
        job,
        fingerprints_of(teacher, images=images),
        resume=resume,
        resume_from=("images.npz", "images.pt", "stages/*.json"),
        intermediate=("images.npy", "stages"),
        changeable=("plugin", "stages", "checkpoint_every"),
    ):
        check_finished(folder, job)
        write_json(folder / "config.json", to_plain(job))
        if images is None:
            images = _own_images(folder, job, teacher, on_progress)
        validation, warnings = None, list[str]()
        if len(images):
            validation = validation_set(teacher, NUM_VALIDATION, on_progress)
            whole = answers_for_whole(teacher, images)
            warnings = warn_of_classes(
                teacher.output_spec.counts(whole),
                len(images),
                kind=teacher.output_kind,
                given=job.images is not None,
            )
        made = run_stages(
            folder / "stages", job, teacher, images, validation, networks, on_progress
        )
        if real is None and (known := _measured_before(folder, made)):
            return made[-1].network, known
        summary = _summarize(folder, made, teacher, images[-NUM_SHOWN:], real, test)
        summary["warnings"] = warnings + summary["warnings"]
        write_json(folder / "summary.json", summary)
        return made[-1].network, summary


def networks_of(job: CompressJob, teacher: Teacher) -> list[nn.Module]:
    """Return the networks that a pipeline begins with: the teacher's, and that of each student."""
    rng = torch.Generator(teacher.device).manual_seed(job.seed)
    students = [stage.config.student for stage in job.stages if stage.task == "distill"]
    return [teacher.module, *(open_student(student, teacher, rng) for student in students)]


def no_images(spec: InputSpec) -> Tensor:
    """Return uint8 images (0, C, H, W), for tasks that read none."""
    return torch.empty(0, *spec.shape, dtype=torch.uint8)


def _labelled(real: Path, job: CompressJob, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """Return real images (N, C, H, W) and labels (N,) of the teacher's and the new classes."""
    num_classes, spec = teacher.num_classes, teacher.input_spec
    for stage in job.stages:
        if stage.task == "learn_classes":
            _, labels = load_images(stage.config.new, spec, first=num_classes)
            num_classes = int(labels.max()) + 1
    outputs = replace(teacher.output_spec, num_classes=num_classes, class_names=())
    return load_real(real, spec, outputs)


def _own_images(
    folder: Path, job: CompressJob, teacher: Teacher, on_progress: OnProgress
) -> Tensor:
    """Return the synthetic images of a pipeline, uint8 (N, C, H, W); empty if it reads none."""
    if not job.reads_images:
        return no_images(teacher.input_spec)
    return own_images(folder / "images.npz", job, teacher, on_progress)


def _stem(folder: Path, index: int, stage: StageConfig) -> Path:
    """Return the path of a stage's files without suffix."""
    return folder / f"{index + 1}-{stage.task}"


def _digest(stage: StageConfig) -> str:
    """Return the digest of a stage's configuration and of the files that it reads."""
    given = [path for name in stage.inputs for path in (Path(name), *Path(name).rglob("*"))]
    files = [path.read_bytes() for path in sorted(given) if path.is_file()]
    return digest([to_plain(stage), *map(digest, files)])


def check_finished(folder: Path, job: CompressJob) -> None:
    """Raise RunError unless the finished stages in a run directory are stages of the job."""
    if (other := other_stage(folder / "stages", job.stages)) is not None:
        raise RunError(
            f"{folder} was started with other stages; it cannot be resumed: its "
            f"{other} is finished, and was made with other settings or files"
        )


def other_stage(folder: Path, stages: Sequence[StageConfig]) -> str | None:
    """Return the name of a finished stage in a folder that is none of these, or None."""
    names = {_stem(folder, index, stage).name: stage for index, stage in enumerate(stages)}
    for path in folder.glob("*.json"):
        stage = names.get(path.stem)
        if stage is None or read_plain(path).get("config") != _digest(stage):
            return path.stem
    return None


class Made(NamedTuple):
    """Network of the teacher or of a stage, with its record."""

    name: str
    network: nn.Module
    record: dict[str, Any]


def run_stages(
    folder: Path,
    job: CompressJob,
    teacher: Teacher,
    images: Tensor,
    validation: ValidationSet | None,
    networks: Sequence[nn.Module],
    on_progress: OnProgress,
) -> list[Made]:
    """Run every stage on the network of the stage before, or read it back if it is finished.

    Args:
        folder: of the stages' files; made if it is not there.
        job: its stages, seed and device.
        teacher: of the first stage; a stage can change it.
        images: uint8 (N, C, H, W).
        validation: on which networks are compared with the teacher; None measures no agreement.
        networks: whose parts a file of a finished stage may name.
        on_progress: called after each step.

    Returns:
        The teacher and the network of each stage, with their records.

    """
    folder.mkdir(parents=True, exist_ok=True)
    record = _measured(teacher.module, {}, folder, teacher, validation)
    made = [Made("teacher", teacher.module, record)]
    images_digest = digest(images.numpy().reshape(-1).data)
    for index, stage in enumerate(job.stages):
        stem = _stem(folder, index, stage)
        if stem.with_suffix(".json").is_file():
            network, record = _read_stage(stem, images_digest, networks)
            network = network.to(teacher.device)
        else:
            rng = torch.Generator(job.device).manual_seed(job.seed + index)
            work = StageContext(teacher, images, rng, on_progress, stem)
            with seeded_process(job.seed + index, job.device):
                network, record = STAGES[stage.task].run(made[-1].network, stage.config, work)
            record = {"task": stage.task} | record
            if work.warnings:
                record["warnings"] = work.warnings
            record = _measured(network, record, folder, teacher, validation)
            save_network(network, stem.with_suffix(".pt"))
            made_from = {"config": _digest(stage), "images": images_digest}
            write_json(stem.with_suffix(".json"), record | made_from | {"sha256": _hashes(stem)})
        made.append(Made(stem.name, network, record))
        if after := STAGES[stage.task].after:
            teacher, images = after(network, stage.config, teacher, images)
            validation = validation_set(teacher, NUM_VALIDATION)
    return made


def _hashes(stem: Path) -> dict[str, str]:
    """Return the SHA-256 of all files of a stage except its record, by name."""
    files = sorted(path for path in stem.parent.glob(f"{stem.name}.*") if path.suffix != ".json")
    for path in files:
        check_file(path, RunError)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _read_stage(
    stem: Path, images: str, networks: Sequence[nn.Module]
) -> tuple[nn.Module, dict[str, Any]]:
    """Read the network and record of a finished stage.

    Raises RunError if a file is missing or changed, or the stage was run on other images.
    """
    record = read_plain(stem.with_suffix(".json"))
    written = record.pop("sha256", None)
    if record.pop("images", None) != images:
        raise RunError(f"{stem} was made on other images than those in the run's folder now")
    record.pop("config", None)
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
    return read_network(stem.with_suffix(".pt"), networks).to(device_of(networks[0])), record


def _measured_before(folder: Path, made: Sequence[Made]) -> dict[str, Any] | None:
    """Return the summary of a finished run whose networks were measured on real images, or None."""
    known = read_summary(folder)
    if not known.get("images"):
        return None
    with understood(folder / "summary.json", RunError, "holds a record that no run writes"):
        now, before = [one.record for one in made], [known["teacher"], *known["stages"]]
    same = len(now) == len(before) and all(
        one.items() <= was.items() for one, was in zip(now, before, strict=True)
    )
    return known if same else None


def _summarize(
    folder: Path,
    made: Sequence[Made],
    teacher: Teacher,
    shown: Tensor,
    real: Path | None,
    test: tuple[Tensor, Tensor] | None,
) -> dict[str, Any]:
    """Measure all networks, and write weights.json, the last network and the stages' files."""
    runtime = compare_files(folder / "stages", made, teacher.input_spec)
    summary: dict[str, Any] = {"runtime": runtime, "warnings": []} | teacher.output_spec.record
    if test is not None and real is not None:
        summary["images"] = real.name
        logits = [
            _answers(
                one.network,
                _runtime(one.network, one.record, folder / "stages"),
                teacher.input_spec,
                test[0],
            )
            for one in made
        ]
        kind = teacher.output_kind
        summary["warnings"] = warn_of_guesses(logits[0], test[1], kind)
        for one, before, after in zip(made, [logits[0], *logits], logits, strict=False):
            one.record.update(scores(after, test[1], kind))
            if "old_classes" in one.record:
                one.record.update(compare_classes(before, after, test[1]))
                counts = confusion_matrix(after, test[1], after.shape[1])
                save_arrays(folder / "confusion.npz", confusion=counts.numpy())
    whole, *stages = [one.record for one in made]
    summary = {"teacher": whole, "stages": stages} | summary
    write_json(folder / "weights.json", layer_weights(made, teacher.input_spec, shown))
    save_weights(folder / "network.safetensors", made[-1].network)
    try:
        summary["network"] = _last_files(folder, made[-1], teacher)
    except ExportError as error:  # the stages are finished: their summary is still of use
        summary["not_exported"] = str(error)
    return summary


def _last_files(folder: Path, last: Made, teacher: Teacher) -> list[str]:
    """Put the files of the last stage beside the report, or export its network; return paths."""
    written = [Path(file["path"]).name for file in last.record.get("files", [])]
    paths = [folder / f"network{name.removeprefix(last.name)}" for name in written]
    for suffix in ("onnx", "packed", "int8.*"):  # of a run that ended with another stage
        for path in folder.glob(f"network.{suffix}"):
            path.unlink()
    for name, path in zip(written, paths, strict=True):
        write_atomically(path, (folder / "stages" / name).read_bytes())
    if not paths:
        path, kind = folder / "network.onnx", teacher.output_kind
        return [export(last.network, path, teacher.input_spec, outputs=kind).path]
    return [str(path) for path in paths]


def layer_weights(made: Sequence[Made], spec: InputSpec, images: Tensor) -> dict[str, Any]:
    """Return what the report draws of each network's layers, by the name of the network."""
    return {
        one.name: weights_in(one.network, entering_quantized(one.network, spec, images))
        for one in made
    }


def _measured(
    network: nn.Module,
    record: dict[str, Any],
    folder: Path,
    teacher: Teacher,
    validation: ValidationSet | None,
) -> dict[str, Any]:
    """Return a record with the network's size, agreement and KL on the validation images."""
    run, spec, kind = _runtime(network, record, folder), teacher.input_spec, teacher.output_kind
    size = asdict(measure_size(network, spec))
    if "files" not in record:
        size["weight_bytes"] = size["bytes"]
    del size["bytes"]
    if validation is None:  # no task reads images, and none were asked for to measure agreement
        return size | record
    logits, wanted = _answers(network, run, spec, validation.images), validation.logits.cpu()
    score = {"agreement": agreement(logits, wanted, kind)}
    if logits.shape == wanted.shape:  # not after new classes
        score["kl"] = divergence(logits, wanted, kind)
    return size | score | record


def _answers(
    network: nn.Module, run: Callable[[Tensor], Tensor], spec: InputSpec, images: Tensor
) -> Tensor:
    """Return the logits of a network or of its exported file, which runs on the CPU."""
    device = device_of(network) if run is network else "cpu"
    with evaluating(network):
        return answers(run, spec, images, device=device)


def _runtime(
    network: nn.Module, record: dict[str, Any], folder: Path
) -> Callable[[Tensor], Tensor]:
    """Return the network of a stage, or the first int8 file loaded in its runtime."""
    if record.get("task") != "int8":
        return network
    return load_exported(folder / Path(record["files"][0]["path"]).name)  # it may have moved
