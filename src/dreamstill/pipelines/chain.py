"""Chain tasks on one set of images: distill, prune, merge, factorize, quantize, int8, pack.

A chain's folder holds settings.json, environment.json, origin.json (digests of settings, teacher
and given images), images.npz, weights.json, and for every link its network (links/N-TASK.pt), its
record (links/N-TASK.json) and its files; a resume does not do finished links again. The record has
digests of the link's settings and files and of the images: a file that is another is not opened.
How networks are read back without running code is told in `kept`.
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
from dreamstill.config import from_plain, no_effect, read_plain, settings_class, to_plain
from dreamstill.data.class_coverage import warn_of_classes
from dreamstill.data.images import load_images, load_unlabelled
from dreamstill.distillation.config import DistillSettings
from dreamstill.distillation.finetune import check_finetuning
from dreamstill.errors import ExportError, RunError, SettingsError
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
from dreamstill.pipelines.stages import TASKS, Work, check_links, looks_at_images
from dreamstill.pipelines.synthesize import (
    Images,
    OnProgress,
    origin_of,
    own_images,
    read_synthesis,
)
from dreamstill.profiling import measure_size
from dreamstill.teacher import Teacher

__all__ = ["Chain", "Link", "read_chain", "run_chain"]

NUM_SHOWN = 1000
"""The last images, on which agreement is measured and ranges are shown."""


@settings_class
class Link:
    """One task of a chain."""

    task: str
    settings: Any

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise SettingsError(f"unknown task {self.task!r}; known: {', '.join(TASKS)}")
        for part in fields(self.settings):
            if isinstance(training := getattr(self.settings, part.name), DistillSettings):
                check_finetuning(training)


@settings_class
class Chain(Images):
    """All that decides a chain's result."""

    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        Images.__post_init__(self)  # slots and super() do not go together
        if not self.links:
            raise SettingsError("a chain needs at least one link")
        if not self.looks_at_images and self.num_images is None:
            where = "on tasks that look at no image, unless num_images says how many to make"
            no_effect(self, where, "method", "synthesis")
        if any(link.task == "distill" for link in self.links[1:]):
            raise SettingsError("distill starts a student afresh: it can only be the first link")
        tasks = [link.task for link in self.links]
        after = tasks[tasks.index("quantize") + 1 :] if "quantize" in tasks else []
        if odd := [task for task in after if task not in ("int8", "pack")]:
            raise SettingsError(f"only int8 and pack can follow quantize; got {odd[0]}")
        merged = self.links[tasks.index("merge") + 1 :] if "merge" in tasks else ()
        for link in merged:
            if link.task == "prune" and link.settings.importance is Importance.BATCH_NORM:
                raise SettingsError("importance batch-norm cannot follow merge, which folds it")

    @property
    def looks_at_images(self) -> bool:
        """A task does, or agreement is to be measured on so many."""
        asked = self.num_images is not None
        return asked or any(looks_at_images(link.task, link.settings) for link in self.links)


def read_chain(plain: dict[str, Any]) -> Chain:
    """A chain from plain values: [teacher], images or method, and [[link]] tables with a task.

    Raises:
        SettingsError: there is no teacher or no link, or a task or setting is unknown, of another
            type, outside its range or without effect, or pruning's library is absent.
        ExportError: an int8 format is unknown, or its libraries are absent.

    """
    plain = dict(plain)
    links = []
    entries = plain.pop("link", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SettingsError("every link is a table of its own: write [[link]]")
    for entry in entries:
        settings = dict(entry)
        task = settings.pop("task", "")
        if not isinstance(task, str) or task not in TASKS:
            raise SettingsError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
        links.append(Link(task=task, settings=from_plain(TASKS[task][0], settings, task)))
    read_synthesis(plain)
    if "teacher" not in plain:
        raise SettingsError("no teacher: give weights in a table [teacher]")
    chain: Chain = from_plain(Chain, plain | {"links": links}, "chain")
    return chain


def run_chain(
    folder: StrPath,
    chain: Chain,
    *,
    resume: bool = False,
    real: StrPath | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Run a chain in a folder, or take it up after its last finished link.

    Args:
        folder: new, or with `resume` one that holds the same chain, as far as it was finished.
        chain: what to do.
        resume: finished links are read back, not done again.
        real: .npz with x, y: every network is measured on it, once, after the last link.
        on_progress: called after every synthesized batch and training step.

    Returns:
        What summary.json holds: the teacher and every link with its bytes, parameters,
        multiply-accumulates, latency in the one `runtime`, agreement on a thousand of the images
        where there are any, accuracy if measured, and the files written; `warnings`, of the
        images' classes.

    Raises:
        TeacherError: a network cannot be opened, built, kept between links, or changed by a task.
        DataError: images that are given are wrong, or too few.
        RunError: the folder holds something else, or with `resume` another chain, one of another
            teacher or other images, or a damaged file.
        SettingsError: what a task is asked for does not go with its network, or a library that the
            task needs is absent.
        ExportError: an int8 or packed file cannot be written, or does not answer as its network.
        NonFiniteError: a loss, or a layer's solution, is not finite.

    """
    folder, real = Path(folder), Path(real) if real else None
    teacher = open_from(chain.teacher, device=chain.device, precision=chain.precision)
    rng = torch.Generator(chain.device).manual_seed(chain.seed)
    students = [link.settings.student for link in chain.links if link.task == "distill"]
    kin = [teacher.module, *(open_student(student, teacher, rng) for student in students)]
    check_keepable(kin)
    check_links(chain.links, kin[-1], teacher)
    test = load_images(real, teacher.spec, teacher.num_classes) if real else None
    images = load_unlabelled(Path(chain.images), teacher.spec) if chain.images else None
    with claimed(
        folder,
        chain,
        origin_of(teacher, images=images),
        resume=resume,
        worth=("images.npz", "images.pt", "links/*.json"),
        makes=("images.npy", "links"),
        free=("links",),
    ):
        check_finished(folder, chain)
        write_json(folder / "settings.json", to_plain(chain))
        if images is None:
            images = _own_images(folder, chain, teacher, on_progress)
        wanted, warnings = images[:0], list[str]()
        if len(images):
            wanted = predict(teacher.module, teacher.spec, images)
            warnings = warn_of_classes(wanted, given=chain.images is not None)
        made = _make_links(folder / "links", chain, teacher, images, wanted, kin, on_progress)
        summary = _summarize(folder, made, teacher, images[-NUM_SHOWN:], real, test)
        write_json(folder / "summary.json", summary | {"warnings": warnings})
        return summary | {"warnings": warnings}


def _own_images(folder: Path, chain: Chain, teacher: Teacher, on_progress: OnProgress) -> Tensor:
    """A chain's own images, uint8 (N, C, H, W); none where it looks at none."""
    if not chain.looks_at_images:
        return torch.empty(0, *teacher.spec.shape, dtype=torch.uint8)
    return own_images(folder / "images.npz", chain, teacher, on_progress)


def _stem(folder: Path, index: int, link: Link) -> Path:
    """Where a link's files go, less their suffix."""
    return folder / f"{index + 1}-{link.task}"


def check_finished(folder: Path, chain: Chain) -> None:
    """RunError unless the finished links of a run's folder are the first ones of a chain."""
    names = {_stem(folder / "links", i, link).name: link for i, link in enumerate(chain.links)}
    for path in (folder / "links").glob("*.json"):
        link = names.get(path.stem)
        if link is None or read_plain(path).get("settings") != digest(to_plain(link)):
            raise RunError(
                f"{folder} was started with another links; it cannot be resumed: its "
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
    """Do every link on what the one before it made, or read it back where it is finished."""
    folder.mkdir(exist_ok=True)
    shown, wanted = images[-NUM_SHOWN:], wanted[-NUM_SHOWN:]
    record = _measured(teacher.module, {}, folder, teacher.spec, shown, wanted)
    made = [Made("teacher", teacher.module, record)]
    shown_of = digest(images.numpy().reshape(-1).data)
    for index, link in enumerate(chain.links):
        stem = _stem(folder, index, link)
        if stem.with_suffix(".json").is_file():
            network, record = _read_link(stem, shown_of, kin)
            network = network.to(teacher.device)
        else:
            rng = torch.Generator(chain.device).manual_seed(chain.seed + index)
            work = Work(teacher, images, rng, on_progress, stem)
            with seeded_process(chain.seed + index, chain.device):
                network, record = TASKS[link.task][1](made[-1].network, link.settings, work)
            record = {"task": link.task} | record
            if work.warnings:
                record["warnings"] = work.warnings
            record = _measured(network, record, folder, teacher.spec, shown, wanted)
            save_network(network, stem.with_suffix(".pt"))
            origin = {"settings": digest(to_plain(link)), "images": shown_of}
            write_json(stem.with_suffix(".json"), record | origin | {"sha256": _hashes(stem)})
        made.append(Made(stem.name, network, record))
    return made


def _hashes(stem: Path) -> dict[str, str]:
    """SHA-256 of all files of a link, by name."""
    files = sorted(path for path in stem.parent.glob(f"{stem.name}.*") if path.suffix != ".json")
    for path in files:
        check_file(path, RunError)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _read_link(
    stem: Path, images: str, kin: Sequence[nn.Module]
) -> tuple[nn.Module, dict[str, Any]]:
    """A finished link's network and record.

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
            raise RunError(f"{stem}.json names {odd.pop()}, which is none of the link's files")
    return read_network(stem.with_suffix(".pt"), kin).to(device_of(kin[0])), record


def _summarize(
    folder: Path,
    made: Sequence[Made],
    teacher: Teacher,
    shown: Tensor,
    real: Path | None,
    test: tuple[Tensor, Tensor] | None,
) -> dict[str, Any]:
    """Measure what was made, and write weights.json, network.onnx and the links' own files."""
    runtime = compare_delivered(folder / "links", made, teacher.spec)
    summary: dict[str, Any] = {"runtime": runtime}
    if test is not None and real is not None:
        summary["images"] = real.name
        for one in made:
            run = _runtime(one.network, one.record, folder / "links")
            logits = _answers(one.network, run, teacher.spec, test[0])
            one.record["accuracy"] = accuracy(logits, test[1])
    whole, *links = [one.record for one in made]
    summary = {"teacher": whole, "links": links} | summary
    layers = {
        one.name: weights_in(one.network, entering_quantized(one.network, teacher.spec, shown))
        for one in made
    }
    write_json(folder / "weights.json", layers)
    try:
        summary["network"] = export(made[-1].network, teacher.spec, folder / "network.onnx").path
    except ExportError as error:  # what the links made is worth its summary
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
    """A link's record with its size, and its agreement with the logits wanted for the images."""
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
    """Logits of what answers for a link; files answer on the CPU."""
    device = device_of(network) if run is network else "cpu"
    with evaluating(network):
        return answers(run, spec, images, device=device)


def _runtime(
    network: nn.Module, record: dict[str, Any], folder: Path
) -> Callable[[Tensor], Tensor]:
    """What answers for a link: its network, or of int8 the first file in its own runtime."""
    if record.get("task") != "int8":
        return network
    return load_exported(folder / Path(record["files"][0]["path"]).name)  # it may have moved
