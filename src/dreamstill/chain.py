"""Chain tasks on one set of images: distill, prune, merge, factorize, quantize, int8, pack.

A chain's folder holds settings.json, environment.json, images.npz, and for every link its network
(links/N-TASK.pt), its record (links/N-TASK.json) and its files; a resume does not do finished links
again. Networks are read back as weights, with the classes of torch.nn, of this package and of the
user's own factories alone.
"""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dreamstill.errors import DreamstillError, RunError, SettingsError
from dreamstill.evaluate import (
    accuracy,
    agreement,
    load_images,
    load_unlabelled,
    measure_cost,
    measure_latency,
    predict,
)
from dreamstill.export import export, load_exported
from dreamstill.run import (
    TeacherFile,
    environment,
    open_from,
    open_student,
    write_atomically,
    write_json,
)
from dreamstill.settings import from_plain, to_plain
from dreamstill.synthesis import METHODS, open_synthesizer
from dreamstill.tasks.continual import ContinualSettings, Recipe, check_new_classes, learn
from dreamstill.tasks.distill import DistillSettings, Progress
from dreamstill.tasks.factorize import FactorizeSettings, factorize_to
from dreamstill.tasks.finetune import finetune
from dreamstill.tasks.int8 import Backend, Method, export_int8
from dreamstill.tasks.merge import MergeSettings, merge
from dreamstill.tasks.pack import PackSettings, load_packed, pack, save_packed
from dreamstill.tasks.prune import PruneSettings, prune
from dreamstill.tasks.quantize import (
    QuantizedLayer,
    QuantizeSettings,
    quantize,
    quantize_without_inputs,
    quantized_bytes,
)
from dreamstill.teacher import Teacher, open_teacher

__all__ = ["TASKS", "Chain", "Learning", "Link", "learn_classes", "read_chain", "run_chain"]

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillLink:
    """Settings of a distillation on the images."""

    student: str
    """module:function that builds the student."""
    training: DistillSettings = field(default_factory=DistillSettings)
    """The training; its images are the chain's."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Link:
    """Settings of static int8 files."""

    formats: tuple[str, ...] = ("onnx",)
    """onnx, for onnxruntime; pt2, by torchao."""
    method: Method = Method.MIN_MAX
    """How onnxruntime calibrates: MinMax, Percentile or Entropy."""
    backend: Backend = Backend.X86
    """For which kernels torchao quantizes: x86 or xnnpack."""


@dataclass
class Work:
    """What every link is given."""

    teacher: Teacher
    images: Tensor
    rng: torch.Generator
    on_progress: OnProgress
    stem: Path
    """Where the link's files go, less their suffix."""

    def tune(self, model: nn.Module, settings: DistillSettings | None) -> nn.Module:
        """Fine-tune towards the teacher, if asked."""
        if settings is None:
            return model
        tuned = finetune(
            self.teacher,
            model.requires_grad_(True),
            self.images,
            settings,
            rng=self.rng,
            on_progress=self.on_progress,
        )
        return tuned.requires_grad_(False)


Outcome = tuple[nn.Module, dict[str, Any]]


def _distill(model: nn.Module, settings: DistillLink, work: Work) -> Outcome:
    student = open_student(settings.student, work.teacher, work.rng)
    return work.tune(student, settings.training), {}


def _prune(model: nn.Module, settings: PruneSettings, work: Work) -> Outcome:
    pruned, rounds = prune(
        work.teacher, work.images, settings, rng=work.rng, model=model, on_progress=work.on_progress
    )
    return pruned, {"rounds": [asdict(record) for record in rounds]}


def _merge(model: nn.Module, settings: MergeLink, work: Work) -> Outcome:
    merged, layers = merge(model, settings)
    return work.tune(merged, settings.finetune), {"layers": [asdict(record) for record in layers]}


def _factorize(model: nn.Module, settings: FactorizeLink, work: Work) -> Outcome:
    factorized, layers = factorize_to(model, work.teacher.spec, settings)
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
    latency = measure_latency(load_exported(Path(records[0].path)), work.teacher.spec)
    return model, {
        "files": [asdict(r) for r in records],
        "bytes": records[0].bytes,
        "agreement": records[0].agreement,
        "latency_ms": asdict(latency),
    }


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """A teacher and the images to work with."""

    teacher: TeacherFile
    images: str | None = None
    """.npz with x, uint8 (N, C, H, W); default: synthesize them."""
    method: str = "structured_noise"
    """What synthesizes them."""
    synthesis: Any = None
    """The method's settings; default: its own."""
    num_images: int = 4000
    """How many to synthesize; at least 8."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 8:
            raise SettingsError(f"num_images must be at least 8; got {self.num_images}")
        if self.method not in METHODS or METHODS[self.method].synthesizer.adversarial:
            able = [n for n, m in METHODS.items() if not m.synthesizer.adversarial]
            raise SettingsError(f"method must be one of {', '.join(able)}; got {self.method!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain(Images):
    """All that decides a chain's result."""

    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        Images.__post_init__(self)  # slots and super() do not go together
        if not self.links:
            raise SettingsError("a chain needs at least one link")


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning(Images):
    """All that decides what a network that learns new classes becomes."""

    new: str
    """.npz with x, uint8 (N, C, H, W), and y, from the number of old classes on."""
    continual: ContinualSettings = field(default_factory=ContinualSettings)


def read_chain(plain: dict[str, Any]) -> Chain:
    """A chain from plain values: [teacher], images or method, and [[link]] tables with a task."""
    plain = dict(plain)
    links = []
    for entry in plain.pop("link", []):
        settings = dict(entry)
        task = settings.pop("task", "")
        if task not in TASKS:
            raise SettingsError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
        links.append(Link(task=task, settings=from_plain(TASKS[task][0], settings, task)))
    method = plain.get("method", "structured_noise")
    if "synthesis" in plain and method in METHODS:
        plain["synthesis"] = from_plain(METHODS[method].settings, plain["synthesis"], "synthesis")
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
        What summary.json holds: the teacher and every link with its cost, agreement on images that
        were synthesized last, accuracy if measured, and the files written.

    """
    teacher = open_from(chain.teacher)
    test = load_images(real, teacher.spec, teacher.num_classes) if real else None
    images = load_unlabelled(Path(chain.images), teacher.spec) if chain.images else None
    existed = folder.exists()
    claim(folder, chain, resume=resume)
    try:
        return _run(folder, chain, teacher, images, test, real, on_progress)
    except DreamstillError:
        if not existed and not list((folder / "links").glob("*.json")):
            shutil.rmtree(folder)  # a mistake in the first link leaves nothing half-written
        raise


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
        images = _synthesized(folder / "images.npz", chain, teacher, on_progress)
    shown = images[-1000:]
    (folder / "links").mkdir(exist_ok=True)
    networks: list[tuple[str, nn.Module, dict[str, Any]]] = []
    model = teacher.module
    for index, link in enumerate(chain.links):
        stem = folder / "links" / f"{index + 1}-{link.task}"
        finished = stem.with_suffix(".json")
        if finished.is_file():
            model, record = _read(stem, chain, teacher), json.loads(finished.read_text())
        else:
            rng = torch.Generator().manual_seed(chain.seed + index)
            work = Work(teacher, images, rng, on_progress, stem)
            model, record = TASKS[link.task][1](model, link.settings, work)
            record = _measured(model, teacher, shown, link) | record
            _save(model, stem)
            write_json(finished, record)
        networks.append((link.task, model, record))
    export(model, teacher.spec, folder / "network.onnx")
    summary: dict[str, Any] = {
        "teacher": _measured(teacher.module, teacher, shown),
        "links": [record for _, _, record in networks],
        "network": str(folder / "network.onnx"),
    }
    if test is not None and real is not None:
        summary["images"] = real.name
        everyone = [(teacher.module, summary["teacher"]), *((m, r) for _, m, r in networks)]
        for network, record in everyone:
            record["accuracy"] = accuracy(_answers(network, record, teacher, test[0]), test[1])
    write_json(folder / "summary.json", summary)
    return summary


def learn_classes(
    folder: Path,
    job: Learning,
    *,
    real: Path | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, Any]:
    """Teach a network new classes; writes network.onnx and network.pt2, and what they are worth.

    Args:
        folder: new.
        job: what to do.
        real: .npz with x, y of old and new classes: accuracy on each, at the end.
        on_progress: called after every step.

    """
    teacher = open_from(job.teacher)
    new, labels = load_images(Path(job.new), teacher.spec, 2**31)
    check_new_classes(teacher, new, labels)
    dreams = load_unlabelled(Path(job.images), teacher.spec) if job.images else new[:0]
    claim(folder, job, resume=False)
    if not job.images and job.continual.recipe in (Recipe.INVERSION, Recipe.ABD):
        dreams = _synthesized(folder / "images.npz", job, teacher, on_progress)
    rng = torch.Generator().manual_seed(job.seed)
    network = learn(teacher, dreams, new, labels, job.continual, rng=rng, on_progress=on_progress)
    summary: dict[str, Any] = {
        "old_classes": teacher.num_classes,
        "classes": network.num_classes,
        "files": [
            asdict(export(network.module, teacher.spec, folder / f"network.{kind}"))
            for kind in ("onnx", "pt2")
        ],
    }
    if real is not None:
        x, y = load_images(real, teacher.spec, network.num_classes)
        logits = predict(network.module, teacher.spec, x)
        for name, of in (("old", y < teacher.num_classes), ("new", y >= teacher.num_classes)):
            if of.any():
                summary[f"accuracy_{name}"] = accuracy(logits[of], y[of])
    write_json(folder / "summary.json", summary)
    return summary


def _answers(
    network: nn.Module, record: dict[str, Any], teacher: Teacher, images: Tensor
) -> Tensor:
    """Logits for uint8 images: of an int8 file in its own runtime, else of the network."""
    if record.get("task") != "int8":
        return predict(network, teacher.spec, images)
    run = load_exported(Path(record["files"][0]["path"]))
    return torch.cat([run(teacher.spec.encode(part)) for part in images.split(500)])


def claim(folder: Path, job: Any, *, resume: bool) -> None:
    """Make the folder, or check that it holds the same chain."""
    settings, plain = folder / "settings.json", to_plain(job)
    if resume:
        if not settings.is_file():
            raise RunError(f"{folder} holds no chain to resume: settings.json is missing")
        if json.loads(settings.read_text()) != plain:
            raise RunError(f"{folder} was started with another chain; it cannot be resumed")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not empty: choose another folder, or resume the chain in it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}") from error
    write_json(settings, plain)
    write_json(folder / "environment.json", environment("cpu"))


def _synthesized(path: Path, job: Images, teacher: Teacher, on_progress: OnProgress) -> Tensor:
    """A job's own images; kept, so that a resume has the same."""
    if path.is_file():
        return load_unlabelled(path, teacher.spec)
    settings = METHODS[job.method].settings() if job.synthesis is None else job.synthesis
    rng = torch.Generator().manual_seed(job.seed)
    method = open_synthesizer(job.method, teacher, settings, rng=rng)
    for done in range(method.warm_up):
        method.next_batch()
        on_progress(Progress("warm up", done + 1, method.warm_up, {}))
    parts: list[Tensor] = []
    while (have := sum(map(len, parts))) < job.num_images:
        parts.append(teacher.spec.decode(method.next_batch().images))
        done = min(have + len(parts[-1]), job.num_images)
        on_progress(Progress("synthesize", done, job.num_images, {}))
    images = torch.cat(parts)[: job.num_images]

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, x=images.numpy())

    write_atomically(path, save)
    return images


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
    factories = [link.settings.student for link in chain.links if link.task == "distill"]
    known = {"torch.nn", "dreamstill"} | {name.partition(":")[0] for name in factories}
    known.add(type(teacher.module).__module__)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if odd := [n for n in names if not any(n.startswith(f"{root}.") for root in known)]:
            raise RunError(f"{path} holds {odd[0]}, which is neither ours nor of a named factory")
        with torch.serialization.safe_globals([resolve_name(name) for name in names]):
            model: nn.Module = torch.load(path, weights_only=True)
            return model
    except RunError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise RunError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
