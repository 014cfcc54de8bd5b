"""Chain tasks on one set of images: distill, prune, merge, factorize, quantize, int8, pack.

A chain's folder holds settings.json, environment.json, origin.json (fingerprints of teacher and
given images), images.npz, weights.json, and for every link its network (links/N-TASK.pt), its
record (links/N-TASK.json) and its files; a resume does not do finished links again. Networks are
read back as weights, with the classes of torch.nn, of this package and of the packages of the
user's factories alone.
"""

import copy
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.errors import (
    DreamstillError,
    ExportError,
    RunError,
    SettingsError,
    TeacherError,
    first_line,
)
from dreamstill.evaluate import accuracy, agreement, measure_cost, measure_latency, predict
from dreamstill.export import export, load_exported
from dreamstill.folder import claim, discard, write_atomically, write_json
from dreamstill.images import load_images, load_unlabelled
from dreamstill.probe import shown_at_once
from dreamstill.run import RANDOM_START, open_from, open_student, seeded_process
from dreamstill.settings import at_least, from_plain, no_effect, read_plain, to_plain
from dreamstill.sources import Images, OnProgress, own_images, read_synthesis, same_origin
from dreamstill.tasks.distill import DistillSettings
from dreamstill.tasks.factorize import FactorizeSettings, factorize
from dreamstill.tasks.finetune import check_finetuning, finetune
from dreamstill.tasks.inherit import inherit
from dreamstill.tasks.int8 import Backend, Method, check_int8_formats, export_int8
from dreamstill.tasks.layers import entering_quantized, weights_in
from dreamstill.tasks.merge import MergeSettings, merge
from dreamstill.tasks.pack import PackSettings, load_packed, pack, save_packed
from dreamstill.tasks.prune import PruneSettings, prune
from dreamstill.tasks.quantize import (
    QuantizedLayer,
    QuantizeSettings,
    check_without_inputs,
    quantize,
    quantize_without_inputs,
    quantized_bytes,
)
from dreamstill.teacher import Teacher, build, open_teacher

__all__ = ["TASKS", "Chain", "Link", "read_chain", "run_chain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillLink:
    """Settings of a distillation on the images."""

    student: str
    """module:function that builds the student."""
    inherit: bool = False
    """Start the student, a narrower copy of the teacher, from the teacher's channels."""
    reconstruct: int = 2048
    """Images on which the layers of a student that inherits are solved, by least squares, for what
    they make in the teacher, before the first step; at least 0: it starts as it was cut."""
    training: DistillSettings = field(default_factory=DistillSettings)
    """The training; its images are the chain's."""

    def __post_init__(self) -> None:
        at_least(self, 0, "reconstruct")
        if not self.inherit:
            no_effect(self, "without inherit", "reconstruct")
        if self.training.steps == 0 and not self.inherit:
            raise SettingsError(RANDOM_START)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeLink(MergeSettings):
    """Settings of merging, and of fine-tuning after it."""

    finetune: DistillSettings | None = None
    """Fine-tuning on the images; none: the weights alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorizeLink(FactorizeSettings):
    """Settings of factorization, and of fine-tuning after it."""

    finetune: DistillSettings | None = None
    """Fine-tuning on the images; none: the weights alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeLink(QuantizeSettings):
    """Settings of simulated quantization."""

    without_inputs: bool = False
    """DFQ: no image is looked at."""

    def __post_init__(self) -> None:
        QuantizeSettings.__post_init__(self)  # slots and super() do not go together
        if self.without_inputs:
            check_without_inputs(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Link:
    """Settings of static int8 files."""

    formats: tuple[str, ...] = ("onnx",)
    """onnx, for onnxruntime; pt2, by torchao; pte, for ExecuTorch."""
    method: Method | None = None
    """How ranges are read off the images: MinMax, Percentile (99.999 %) or Entropy, the least
    divergence from what is rounded; none: the library's own, MinMax in onnxruntime and the least
    squared error in torchao."""
    backend: Backend = Backend.X86
    """For which kernels a pt2 is quantized: x86 or xnnpack."""

    def __post_init__(self) -> None:
        if not self.formats:
            raise SettingsError("formats must name at least one; got none")
        check_int8_formats(self.formats)
        if len(set(self.formats)) < len(self.formats):
            raise SettingsError(f"formats names one twice: {', '.join(self.formats)}")
        if "pt2" not in self.formats:
            no_effect(self, "on formats without pt2", "backend")


@dataclass
class Work:
    """What every link is given."""

    teacher: Teacher
    images: Tensor
    rng: torch.Generator
    on_progress: OnProgress
    stem: Path
    """Where the link's files go, less their suffix."""

    def tune(
        self,
        model: nn.Module,
        settings: DistillSettings | None,
        inherited: Mapping[str, Tensor] | None = None,
        reconstruct: int = 0,
    ) -> nn.Module:
        """Fine-tune towards the teacher, if asked."""
        if settings is None:
            return model
        tuned = finetune(
            self.teacher,
            model.requires_grad_(True),
            self.images,
            settings,
            rng=self.rng,
            inherited=inherited,
            reconstruct=reconstruct,
            on_progress=self.on_progress,
        )
        return tuned.requires_grad_(False)


Outcome = tuple[nn.Module, dict[str, Any]]


def _distill(model: nn.Module, settings: DistillLink, work: Work) -> Outcome:
    student = open_student(settings.student, work.teacher, work.rng)
    kept = inherit(work.teacher.module, student) if settings.inherit else None
    return work.tune(student, settings.training, kept, settings.reconstruct), {}


def _prune(model: nn.Module, settings: PruneSettings, work: Work) -> Outcome:
    pruned, rounds = prune(
        work.teacher, work.images, settings, rng=work.rng, model=model, on_progress=work.on_progress
    )
    return pruned, {"rounds": [asdict(record) for record in rounds]}


def _merge(model: nn.Module, settings: MergeLink, work: Work) -> Outcome:
    merged, layers = merge(model, settings)
    return work.tune(merged, settings.finetune), {"layers": [asdict(record) for record in layers]}


def _factorize(model: nn.Module, settings: FactorizeLink, work: Work) -> Outcome:
    factorized, layers = factorize(model, work.teacher.spec, settings, work.images, rng=work.rng)
    record = {"layers": [asdict(record) for record in layers]}
    return work.tune(factorized, settings.finetune), record


def _quantize(model: nn.Module, settings: QuantizeLink, work: Work) -> Outcome:
    if settings.without_inputs:
        whole = open_teacher(model, work.teacher.spec)
        quantized = quantize_without_inputs(whole, settings)
    else:
        quantized = quantize(
            work.teacher,
            work.images,
            settings,
            rng=work.rng,
            model=model,
            on_progress=work.on_progress,
        )
    layers = {
        name: {"weight_bits": layer.weight_bits, "activation_bits": layer.activation_bits}
        for name, layer in quantized.named_modules()
        if isinstance(layer, QuantizedLayer)
    }
    return quantized, {"layers": layers, "bytes": quantized_bytes(quantized)}


def _int8(model: nn.Module, settings: Int8Link, work: Work) -> Outcome:
    records = [
        export_int8(
            model,
            work.teacher.spec,
            work.images,
            work.stem.with_suffix(f".int8.{kind}"),
            method=settings.method,
            backend=settings.backend,
        )
        for kind in settings.formats
    ]
    path, teacher, shown = Path(records[0].path), work.teacher, work.images[-1000:]
    wanted = predict(teacher.module, teacher.spec, shown)
    return model, {
        "files": [asdict(r) for r in records],
        "bytes": records[0].bytes,
        "agreement": agreement(_answers_of_file(path, teacher, shown), wanted),
        "latency_ms": asdict(measure_latency(load_exported(path), teacher.spec)),
    }


def _answers_of_file(path: Path, teacher: Teacher, images: Tensor) -> Tensor:
    """Logits for uint8 images of an exported file in its own runtime."""
    run = load_exported(path)
    return torch.cat(
        [run(teacher.spec.encode(part)) for part in images.split(shown_at_once(teacher.spec.shape))]
    )


def _pack(model: nn.Module, settings: PackSettings, work: Work) -> Outcome:
    packed = pack(
        work.teacher,
        work.images,
        settings,
        rng=work.rng,
        student=model,
        on_progress=work.on_progress,
    )
    path = work.stem.with_suffix(".packed")
    size = save_packed(packed, path, card=to_plain(work.teacher.spec))
    plain = copy.deepcopy(model)
    plain.load_state_dict(load_packed(path)[0])
    return plain, {"files": [{"path": str(path), "bytes": size}], "bytes": size}


TASKS: dict[str, tuple[type, Callable[[nn.Module, Any, Work], Outcome]]] = {
    "distill": (DistillLink, _distill),
    "prune": (PruneSettings, _prune),
    "merge": (MergeLink, _merge),
    "factorize": (FactorizeLink, _factorize),
    "quantize": (QuantizeLink, _quantize),
    "int8": (Int8Link, _int8),
    "pack": (PackSettings, _pack),
}


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain(Images):
    """All that decides a chain's result."""

    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        Images.__post_init__(self)  # slots and super() do not go together
        if not self.links:
            raise SettingsError("a chain needs at least one link")
        if any(link.task == "distill" for link in self.links[1:]):
            raise SettingsError("distill starts a student afresh: it can only be the first link")
        tasks = [link.task for link in self.links]
        after = tasks[tasks.index("quantize") + 1 :] if "quantize" in tasks else []
        if odd := [task for task in after if task not in ("int8", "pack")]:
            raise SettingsError(f"only int8 and pack can follow quantize; got {odd[0]}")


def read_chain(plain: dict[str, Any]) -> Chain:
    """A chain from plain values: [teacher], images or method, and [[link]] tables with a task.

    Raises:
        SettingsError: there is no teacher or no link, or a task or setting is unknown, of another
            type, outside its range or without effect.
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
    folder: Path,
    chain: Chain,
    *,
    resume: bool = False,
    real: Path | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Run a chain in a folder, or take it up after its last finished link.

    Args:
        folder: new, or with `resume` one that holds the same chain.
        chain: what to do.
        resume: finished links are read back, not done again.
        real: .npz with x, y: every network is measured on it, once, after the last link.
        on_progress: called after every synthesized batch and training step.

    Returns:
        What summary.json holds: the teacher and every link with its cost, agreement on a thousand
        of the images, accuracy if measured, and the files written.

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
    teacher = open_from(chain.teacher)
    _check_links(chain, teacher)
    test = load_images(real, teacher.spec, teacher.num_classes) if real else None
    images = load_unlabelled(Path(chain.images), teacher.spec) if chain.images else None
    existed = folder.exists()
    claim(folder, chain, resume=resume)
    same_origin(folder, teacher, images)
    try:
        return _run(folder, chain, teacher, images, test, real, on_progress)
    except DreamstillError:
        worth = [folder / "images.npz", folder / "images.pt", *(folder / "links").glob("*.json")]
        if not resume and not any(path.is_file() for path in worth):
            discard(folder, existed=existed)  # of a mistake in the first link nothing is left
        raise


def _check_links(chain: Chain, teacher: Teacher) -> None:
    """TeacherError where a network that the links begin with cannot be built, or kept in a file."""
    rng = torch.Generator().manual_seed(chain.seed)
    networks = [teacher.module]
    for link in chain.links:
        if link.task == "distill":
            networks.append(open_student(link.settings.student, teacher, rng))
    for network in networks:
        file = io.BytesIO()
        try:
            torch.save(network, file)
        except Exception as error:  # pickle raises what the network's own attributes make it
            raise TeacherError(
                f"{type(network).__name__} cannot be kept between links ({error}): give its "
                "functions names in their module"
            ) from error
        file.seek(0)
        if odd := _strangers(file, networks):
            raise TeacherError(
                f"{type(network).__name__} cannot be kept between links: it holds {odd[0]}, which "
                "is neither of torch.nn nor of the package of its factory"
            )


def _strangers(file: Any, networks: list[nn.Module]) -> list[str]:
    """What a saved network holds that is not of torch.nn, of ours or of the networks' packages."""
    modules = {type(module).__module__ for network in networks for module in network.modules()}
    packages = {name.partition(".")[0] for name in modules} - {"torch", "builtins"}
    known = {"torch.nn", "dreamstill"} | modules | packages
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    return [name for name in names if not any(name.startswith(f"{root}.") for root in known)]


def _run(
    folder: Path,
    chain: Chain,
    teacher: Teacher,
    images: Tensor | None,
    test: tuple[Tensor, Tensor] | None,
    real: Path | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    if images is None:
        images = own_images(folder / "images.npz", chain, teacher, on_progress)
    shown = images[-1000:]
    (folder / "links").mkdir(exist_ok=True)
    networks: list[tuple[str, nn.Module, dict[str, Any]]] = []
    model = teacher.module
    for index, link in enumerate(chain.links):
        stem = folder / "links" / f"{index + 1}-{link.task}"
        finished = stem.with_suffix(".json")
        if finished.is_file():
            model, record = _read(stem, chain, teacher), read_plain(finished)
        else:
            rng = torch.Generator().manual_seed(chain.seed + index)
            work = Work(teacher, images, rng, on_progress, stem)
            with seeded_process(chain.seed + index):
                model, record = TASKS[link.task][1](model, link.settings, work)
            record = _measured(model, teacher, shown, link) | record
            _save(model, stem)
            write_json(finished, record)
        networks.append((link.task, model, record))
    summary: dict[str, Any] = {
        "teacher": _measured(teacher.module, teacher, shown),
        "links": [record for _, _, record in networks],
    }
    if test is not None and real is not None:
        summary["images"] = real.name
        everyone = [(teacher.module, summary["teacher"]), *((m, r) for _, m, r in networks)]
        for network, record in everyone:
            logits = _answers(network, record, teacher, test[0], folder / "links")
            record["accuracy"] = accuracy(logits, test[1])
    seen = {"teacher": teacher.module} | {
        f"{index + 1}-{task}": network for index, (task, network, _) in enumerate(networks)
    }
    layers = {
        name: weights_in(net, entering_quantized(net, teacher.spec, shown))
        for name, net in seen.items()
    }
    write_json(folder / "weights.json", layers)
    try:
        summary["network"] = export(model, teacher.spec, folder / "network.onnx").path
    except ExportError as error:  # what the links made is worth its summary
        summary["not_exported"] = str(error)
    write_json(folder / "summary.json", summary)
    return summary


def _answers(
    network: nn.Module, record: dict[str, Any], teacher: Teacher, images: Tensor, links: Path
) -> Tensor:
    """Logits for uint8 images: of an int8 file in its own runtime, else of the network."""
    if record.get("task") != "int8":
        return predict(network, teacher.spec, images)
    path = links / Path(record["files"][0]["path"]).name  # the folder may have moved
    return _answers_of_file(path, teacher, images)


def _measured(
    model: nn.Module, teacher: Teacher, images: Tensor, link: Link | None = None
) -> dict[str, Any]:
    """A network's cost, and its agreement with the teacher on the images."""
    cost = asdict(measure_cost(model, teacher.spec))
    same = agreement(
        predict(model, teacher.spec, images), predict(teacher.module, teacher.spec, images)
    )
    name = {} if link is None else {"task": link.task}
    return name | cost | {"agreement": same}


def _save(model: nn.Module, stem: Path) -> None:
    write_atomically(stem.with_suffix(".pt"), lambda path: torch.save(model, path))


def _read(stem: Path, chain: Chain, teacher: Teacher) -> nn.Module:
    """A finished link's network, with classes of known origin alone."""
    path = stem.with_suffix(".pt")
    networks = [teacher.module]
    networks += [build(link.settings.student) for link in chain.links if link.task == "distill"]
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if odd := _strangers(path, networks):
            raise RunError(f"{path} holds {odd[0]}, which is neither ours nor of a named factory")
        found = [resolve_name(name) for name in names]
        for name, value in zip(names, found, strict=True):
            if name.startswith("dreamstill.") and not isinstance(value, type):
                raise RunError(f"{path} calls {name}, which no network of ours does")
        with torch.serialization.safe_globals(found):
            model: nn.Module = torch.load(path, weights_only=True)
            return model
    except RunError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise RunError(f"cannot read {path}: {first_line(error)}") from error
