"""Metadata: statistics of a teacher's activations, made by its owner, in place of the data.

Source: Lopes, Fenu & Starner, "Data-Free Knowledge Distillation for Deep Neural Networks", 2017.
The owner runs `record_metadata` on the training images and hands out the file beside the teacher;
the synthesizer `metadata` reads it. Where this differs: the authors' code scales its noise by the
covariance rather than by its root, and never uses the spectra that it computes; this does, over
linear layers alone: a convolution's maps are too many activations for a graph.

The file is safetensors with the format's name and version in its header. It holds, for every class
k and each view v (a set of activations): `v/mean` (K, D), `v/root` (K, D, R), a root of the class's
covariance (or `v/std` (K, D) where D is large), and for spectral views `v/basis` (D, B), the graph
Fourier basis that activations are projected on. Views of which nothing below 0 was recorded, as
behind a ReLU, are named in the header; files without their names are drawn from as Gaussians alone.
Means of a class are in the file: someone who has it can see what the class's average image does to
the network. Treat it as you would such averages.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamstill.errors import DataError, RunError, TeacherError
from dreamstill.folder import write_atomically
from dreamstill.probe import Probe, probed_at_once
from dreamstill.reading import StrPath, reading
from dreamstill.settings import from_plain
from dreamstill.teacher import Teacher

__all__ = ["Kind", "Metadata", "activations", "load_metadata", "record_metadata"]

FORMAT = "dreamstill-metadata-1"


class Kind(StrEnum):
    """Which activations are recorded, and how."""

    TOP = "top"
    """The input of the last linear layer: means and covariance of each class."""
    ALL = "all"
    """The inputs of every convolution and linear layer but the first, and the logits."""
    SPECTRAL = "spectral"
    """Inputs of linear layers and the logits together, on the graph of their correlations."""
    SPECTRAL_PAIRS = "spectral-pairs"
    """The same for every pair of them."""


@dataclass(frozen=True)
class View:
    """Statistics of one set of activations."""

    layers: tuple[str, ...]
    """Names in `activations`, joined end to end."""
    mean: Tensor
    """(K, D) by class, in the basis where there is one."""
    root: Tensor | None
    """(K, D, D) root of each class's covariance; None: `std` stands for it."""
    std: Tensor
    """(K, D)."""
    basis: Tensor | None
    """(sum of sizes, D) orthonormal columns, or None."""
    rectified: bool
    """Nothing below 0 was recorded, as behind a ReLU."""

    @property
    def name(self) -> str:
        """In a file."""
        return "+".join(self.layers)

    def project(self, recorded: dict[str, Tensor]) -> Tensor:
        """Activations (N, ...) by name -> (N, D)."""
        joined = torch.cat([recorded[name].flatten(1) for name in self.layers], 1)
        return joined if self.basis is None else joined @ self.basis

    def sample(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        """Draw activations (N, D) for classes (N,): Gaussian, and rectified where these were."""
        size = (len(classes), self.mean.shape[1])
        noise = torch.randn(size, generator=rng, device=rng.device)
        if self.root is None:
            drawn = self.mean[classes] + noise * self.std[classes]
        else:
            drawn = self.mean[classes] + torch.einsum("nij,nj->ni", self.root[classes], noise)
        return drawn.relu() if self.rectified else drawn


@dataclass(frozen=True)
class Metadata:
    """What a file holds."""

    kind: Kind
    fingerprint: str
    """The teacher's."""
    views: tuple[View, ...]


def activations(teacher: Teacher, images: Tensor) -> dict[str, Tensor]:
    """Inputs of every convolution and linear layer, and `logits`, by name; the image is none."""
    layers = {
        name: layer
        for name, layer in teacher.module.named_modules()
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
    }
    with Probe(layers) as probe:
        logits = teacher(images)
    recorded = dict(probe.inputs)
    if recorded and next(iter(recorded.values())).numel() == images.numel():
        recorded.pop(next(iter(recorded)))
    return recorded | {"logits": logits}


def _layer_sets(kind: Kind, teacher: Teacher, names: list[str]) -> list[tuple[str, ...]]:
    if kind is Kind.TOP:
        last = teacher.offers.last_linear
        if last is None or last not in names:
            raise TeacherError("metadata of kind top needs a last linear layer behind another")
        return [(last,)]
    if kind is Kind.ALL:
        return [(name,) for name in names]
    linear = [
        name
        for name in names
        if name == "logits" or isinstance(teacher.module.get_submodule(name), nn.Linear)
    ]
    if kind is Kind.SPECTRAL:
        return [tuple(linear)]
    if len(linear) < 3:
        raise TeacherError(
            f"metadata of kind spectral-pairs needs three of linear layers' inputs and logits; "
            f"the teacher has {', '.join(linear)}: take spectral"
        )
    return list(itertools.combinations(linear, 2))


def graph_basis(values: Tensor, num: int) -> Tensor:
    """Leading eigenvectors of the graph of correlations of (N, D) activations: (D, num).

    Nodes are activations, edges the magnitudes of their correlations. A dead activation is a node
    on its own. The eigenvectors of the largest eigenvalues of the adjacency keep what varies
    together.
    """
    centered = values - values.mean(0)
    scale = centered.norm(dim=0)
    unit = centered / scale.clamp_min(1e-6)
    adjacency = (unit.T @ unit).abs()
    _, vectors = torch.linalg.eigh(adjacency.double())
    leading: Tensor = vectors[:, -num:].to(values.dtype)
    return leading


@torch.no_grad()
def record_metadata(
    teacher: Teacher,
    images: Tensor,
    path: StrPath,
    *,
    kind: Kind | str = Kind.ALL,
    num_vectors: int = 64,
    largest_root: int = 512,
) -> Metadata:
    """Record a teacher's activations over its training images and write the file.

    Args:
        teacher: its own answers are the classes.
        images: uint8 (N, C, H, W); at least two of every class the teacher names.
        path: .safetensors to write; its folder is made.
        kind: see Kind.
        num_vectors: of the graph basis, for the spectral kinds.
        largest_root: views of more activations keep standard deviations alone.

    Raises:
        DataError: a class with fewer than two images.
        TeacherError: the teacher's layers are not enough for the kind.
        RunError: the file cannot be written.

    """
    path, of_kind = Path(path), _kind_of(kind)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {path.parent}: {error.strerror}") from error
    shown = activations(teacher, _shown(teacher, images[:1]))
    spectral = of_kind in (Kind.SPECTRAL, Kind.SPECTRAL_PAIRS)
    sets = _layer_sets(of_kind, teacher, list(shown))
    # of large views moments are all that is written, and activations would fill the memory
    moments = {
        layers: ClassMoments(teacher.num_classes, size)
        for layers in sets
        if (size := sum(shown[name].numel() for name in layers)) > largest_root and not spectral
    }
    kept = {name: list[Tensor]() for layers in sets if layers not in moments for name in layers}
    named = list[Tensor]()
    for part in images.split(probed_at_once(teacher.spec.shape)):
        recorded = {
            n: v.flatten(1).cpu() for n, v in activations(teacher, _shown(teacher, part)).items()
        }
        named.append(recorded["logits"].argmax(1))
        for name, values in kept.items():
            values.append(recorded[name])
        for layers, recorder in moments.items():
            recorder.add(torch.cat([recorded[name] for name in layers], 1), named[-1])
    classes = torch.cat(named)
    counts = torch.bincount(classes, minlength=teacher.num_classes)
    if int(counts.min()) < 2:
        raise DataError(
            f"metadata needs at least 2 images of every class; "
            f"class {int(counts.argmin())} has {int(counts.min())}"
        )
    together = {name: torch.cat(values) for name, values in kept.items()}
    num = num_vectors if spectral else 0
    views = [
        moments[layers].view(layers)
        if layers in moments
        else view_of(layers, together, classes, num_vectors=num, largest_root=largest_root)
        for layers in sets
    ]
    metadata = Metadata(kind=of_kind, fingerprint=teacher.fingerprint, views=tuple(views))
    header = {
        "format": FORMAT,
        "kind": of_kind.value,
        "teacher": metadata.fingerprint,
        "rectified": " ".join(view.name for view in views if view.rectified),
    }
    tensors = dict(_tensors(metadata))
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))
    return metadata


def _kind_of(name: Kind | str) -> Kind:
    kind: Kind = from_plain(Kind, name, "kind")
    return kind


def _shown(teacher: Teacher, images: Tensor) -> Tensor:
    return teacher.spec.encode(images.to(teacher.device))


class ClassMoments:
    """Mean and sample standard deviation by class of values that come in parts.

    >>> moments = ClassMoments(2, 1)
    >>> moments.add(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
    >>> moments.add(torch.tensor([[5.0]]), torch.tensor([1]))
    >>> view = moments.view(("layer",))
    >>> view.mean.tolist(), view.std.square().round().tolist()
    ([[2.0], [5.0]], [[2.0], [0.0]])
    """

    def __init__(self, num_classes: int, size: int) -> None:
        self.counts = torch.zeros(num_classes, 1, dtype=torch.double)
        self.sums = torch.zeros(2, num_classes, size, dtype=torch.double)  # of values and squares
        self.rectified = True

    def add(self, values: Tensor, classes: Tensor) -> None:
        """(N, size) values of classes (N,)."""
        for sums, part in zip(self.sums, (values.double(), values.double() ** 2), strict=True):
            sums.index_add_(0, classes, part)
        self.counts += torch.bincount(classes, minlength=len(self.counts))[:, None]
        self.rectified &= bool((values >= 0).all())

    def view(self, layers: tuple[str, ...]) -> View:
        """Of `layers`, in which every class was seen twice."""
        mean = self.sums[0] / self.counts
        variance = (self.sums[1] - self.counts * mean**2) / (self.counts - 1)
        std = variance.clamp_min(0).sqrt()
        return View(
            layers=layers,
            mean=mean.float(),
            root=None,
            std=std.float(),
            basis=None,
            rectified=self.rectified,
        )


def view_of(
    layers: tuple[str, ...],
    values: Mapping[str, Tensor],
    classes: Tensor,
    *,
    num_vectors: int,
    largest_root: int,
) -> View:
    """What is recorded of layers.

    Args:
        layers: names in `values`.
        values: (N, size) activations.
        classes: (N,), every class twice.
        num_vectors: of the graph basis; 0: none.
        largest_root: more activations than these have no root.

    """
    joined, basis, root = torch.cat([values[name] for name in layers], 1), None, None
    if num_vectors:
        basis = graph_basis(joined, min(num_vectors, joined.shape[1]))
        joined = joined @ basis
    groups = [joined[classes == k] for k in range(int(classes.max()) + 1)]
    if joined.shape[1] <= largest_root:
        root = torch.stack([covariance_root(group) for group in groups])
    mean = torch.stack([group.mean(0) for group in groups])
    std = torch.stack([group.std(0) for group in groups])
    rectified = bool((joined >= 0).all())
    return View(layers=layers, mean=mean, root=root, std=std, basis=basis, rectified=rectified)


def covariance_root(values: Tensor) -> Tensor:
    """Symmetric root of the covariance of (N, D) values: root @ root.T is the covariance."""
    covariance = torch.cov(values.T.double()).reshape(values.shape[1], values.shape[1])
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * eigenvalues.clamp_min(0).sqrt() @ vectors.T
    return root.to(values.dtype)


def _tensors(metadata: Metadata) -> Iterator[tuple[str, Tensor]]:
    for view in metadata.views:
        for part in ("mean", "root", "std", "basis"):
            value = getattr(view, part)
            if value is not None:
                yield f"{view.name}/{part}", value.contiguous()


def load_metadata(path: StrPath, teacher: Teacher) -> Metadata:
    """Read a file of metadata; TeacherError if it is not one, or of another teacher."""
    with reading(path, TeacherError, "is not a file of metadata"):
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).to(teacher.device) for name in file.keys()}  # noqa: SIM118
        if header.get("format") != FORMAT:
            raise TeacherError(f"{path} is not a file of metadata of format {FORMAT}")
        if (recorded_on := header["teacher"]) != teacher.fingerprint:
            raise TeacherError(
                f"{path} was recorded on the teacher {recorded_on}, not on {teacher.fingerprint}"
            )
        rectified = header.get("rectified", "").split()
        views = [
            View(
                layers=tuple(name.split("+")),
                mean=tensors[f"{name}/mean"],
                root=tensors.get(f"{name}/root"),
                std=tensors[f"{name}/std"],
                basis=tensors.get(f"{name}/basis"),
                rectified=name in rectified,
            )
            for name in dict.fromkeys(key.rpartition("/")[0] for key in tensors)
        ]
        _check_views(views, teacher)
        return Metadata(kind=Kind(header["kind"]), fingerprint=recorded_on, views=tuple(views))


@torch.no_grad()
def _check_views(views: list[View], teacher: Teacher) -> None:
    """ValueError, or whatever torch says, where the tensors are not of the teacher's layers."""
    if not views:
        raise ValueError("it holds no statistics")
    queries = teacher.queries
    shown = activations(teacher, teacher.spec.normalize(_blank(teacher)))
    teacher.queries = queries  # nothing is learned from a blank image
    for view in views:
        size = view.project(shown).shape[1]
        wanted = {"mean": (size,), "std": (size,), "root": (size, size)}
        for part, of in wanted.items():
            if part == "root" and view.root is None:
                continue
            value = getattr(view, part)
            if value.shape != (teacher.num_classes, *of) or not value.is_floating_point():
                raise ValueError(f"{view.name}/{part} is {value.dtype} {tuple(value.shape)}")
            if not value.isfinite().all():
                raise ValueError(f"{view.name}/{part} has values that are not finite")


def _blank(teacher: Teacher) -> Tensor:
    return torch.zeros(1, *teacher.spec.shape, device=teacher.device)
