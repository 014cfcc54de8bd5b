"""Record and load metadata: statistics of a teacher's activations on its training images.

Source: Lopes, Fenu & Starner, "Data-Free Knowledge Distillation for Deep Neural Networks", 2017,
and the authors' code. The owner of the teacher runs `record_metadata` on the training images and
publishes the file; the method `metadata` reads it. Statistics are of a layer's output before its
ReLU, after a BatchNorm or pooling in between. Samples and images are compared after the ReLU.

Differences from the authors:

- A layer without a ReLU, such as the logits, is compared without one.
- Logits are recorded at temperature 1, and classes are the teacher's predictions, not labels.
- Noise is multiplied by a root of the covariance, so that samples have this covariance.
- A spectral view draws joint deviations from the class mean on the leading eigenvectors of the
  correlation graph, and the rest independently; the authors' code computes spectra but does not use
  them. It covers linear layers, and convolutions with maps of one pixel.

The file is safetensors with the format in its header. It holds, for each view v of one or more
layers with D activations and for K classes: `v/mean` (K, D); `v/root` (K, R, R), a root of each
class's covariance, unless D is large; `v/basis` (D, R), the basis of the root in a spectral view
(otherwise R is D); `v/std` (K, D), of the deviations without a root; and `v/rectified` (D,), true
if a ReLU follows. It contains class means of activations: protect it like the classes' mean images.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dreamstill.config import from_plain
from dreamstill.errors import DataError, TeacherError
from dreamstill.files.reading import StrPath, reading
from dreamstill.files.writing import created_directory, write_atomically
from dreamstill.nn.hooks import BeforeRelu, probed_at_once
from dreamstill.teacher import Teacher

__all__ = ["Kind", "Metadata", "activations", "load_metadata", "record_metadata"]

FORMAT = "dreamstill-metadata-2"
OF_INPUTS = "dreamstill-metadata-1"
"""Format of old files, with statistics of layer inputs, after the ReLU."""


class Kind(StrEnum):
    """Activations to record."""

    TOP = "top"
    """Logits."""
    ALL = "all"
    """Outputs of every convolution and linear layer, before the ReLU, each by itself."""
    SPECTRAL = "spectral"
    """Outputs of linear layers together, on the graph of their correlations."""
    SPECTRAL_PAIRS = "spectral-pairs"
    """Outputs of every pair of linear layers, on the graph of their correlations."""


@dataclass(frozen=True)
class View:
    """Statistics of one set of activations, before the ReLU."""

    layers: tuple[str, ...]
    """Names in `activations`, concatenated."""
    mean: Tensor
    """Mean of each class, (K, D)."""
    root: Tensor | None
    """Root of each class's covariance on the basis, (K, R, R), or None."""
    basis: Tensor | None
    """Eigenvectors of the graph, scaled by the activations' deviations, (D, R); None if R is D."""
    std: Tensor | None
    """Standard deviation of the part without a root, (K, D); None if the root covers all."""
    rectified: Tensor
    """Whether a ReLU follows, bool (D,)."""

    @property
    def name(self) -> str:
        """Name of the view in a file."""
        return "+".join(self.layers)

    def read(self, recorded: Mapping[str, Tensor]) -> Tensor:
        """Return the activations (N, D) after the ReLU from those before it, given by name."""
        return self._behind_relu(torch.cat([recorded[name].flatten(1) for name in self.layers], 1))

    def sample(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        """Draw activations (N, D) for classes (N,): a Gaussian, then the ReLU."""
        drawn = self.mean[classes]
        if self.std is not None:
            drawn = drawn + self.std[classes] * _noise(drawn.shape, rng)
        if self.root is not None:
            noise = _noise((len(classes), self.root.shape[1]), rng)
            together = torch.einsum("nij,nj->ni", self.root[classes], noise)
            drawn = drawn + (together if self.basis is None else together @ self.basis.T)
        return self._behind_relu(drawn)

    def _behind_relu(self, values: Tensor) -> Tensor:
        return torch.where(self.rectified, values.relu(), values)


def _noise(size: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.randn(size, generator=rng, device=rng.device)


@dataclass(frozen=True)
class Metadata:
    """Content of a metadata file."""

    kind: Kind
    fingerprint: str
    """Digest of the teacher's weights."""
    views: tuple[View, ...]


def activations(teacher: Teacher, images: Tensor) -> tuple[dict[str, Tensor], set[str]]:
    """Return the outputs of convolution and linear layers before the ReLU, and `logits`.

    Args:
        teacher: network, run once.
        images: (N, C, H, W) in its input space.

    Returns:
        Outputs (N, ...) by name, in the order of the layers, and the names of the layers that a
        ReLU follows.

    """
    layers = {
        name: layer
        for name, layer in teacher.module.named_modules()
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
    }
    with BeforeRelu(layers) as before:
        logits = teacher(images)
    # a layer that runs on parts of images has no output per image
    outputs = {n: v for n, v in before.outputs.items() if len(v) == len(images)}
    return outputs | {"logits": logits}, before.rectified


def _layer_sets(
    kind: Kind, teacher: Teacher, recorded: Mapping[str, Tensor]
) -> list[tuple[str, ...]]:
    if kind is Kind.TOP:
        return [("logits",)]
    logits = recorded["logits"]
    # the output of the last linear layer is the logits
    names = [n for n, v in recorded.items() if v is logits or not torch.equal(v, logits)]
    if kind is Kind.ALL:
        return [(name,) for name in names]
    linear = [
        name
        for name in names
        if name == "logits"
        or isinstance(teacher.module.get_submodule(name), nn.Linear)
        or recorded[name].shape[2:].numel() == 1
    ]
    if kind is Kind.SPECTRAL:
        return [tuple(linear)]
    if len(linear) < 3:
        raise TeacherError(
            f"metadata of kind spectral-pairs needs three of linear layers' outputs and logits; "
            f"the teacher has {', '.join(linear)}: take spectral"
        )
    return list(itertools.combinations(linear, 2))


def graph_basis(values: Tensor, num: int) -> Tensor:
    """Return the leading eigenvectors (D, num) of the correlation graph of activations (N, D).

    The adjacency matrix holds the absolute correlations; the eigenvectors of its largest
    eigenvalues span the activations that vary together. A constant activation has no edges.
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
    """Record statistics of a teacher's activations on its training images, and write the file.

    Args:
        teacher: network, whose predictions are the classes.
        images: uint8 (N, C, H, W); at least two per predicted class.
        path: .safetensors file to write; missing parent directories are created.
        kind: see Kind.
        num_vectors: number of eigenvectors of a spectral kind.
        largest_root: maximum activations of a view with a covariance; larger ones have standard
            deviations only.

    Raises:
        DataError: a class has fewer than two images.
        TeacherError: the teacher has too few linear layers for the kind, or outputs no classes.
        RunError: the file cannot be written.

    """
    path, of_kind = Path(path), from_plain(Kind, kind, "kind")
    if not teacher.capabilities.classes:
        raise TeacherError(
            f"metadata is of classes; the teacher's outputs are {teacher.output_kind}"
        )
    with created_directory(path.parent):  # fails before the images are run
        shown, rectified = activations(teacher, _shown(teacher, images[:1]))
        sets = _layer_sets(of_kind, teacher, shown)
        behind_relu = {
            layers: torch.cat([torch.full((shown[n].numel(),), n in rectified) for n in layers])
            for layers in sets
        }
        spectral = of_kind in (Kind.SPECTRAL, Kind.SPECTRAL_PAIRS)
        # a large view needs only its moments, and its activations would fill the memory
        moments = {
            layers: ClassMoments(teacher.num_classes, len(units))
            for layers, units in behind_relu.items()
            if len(units) > largest_root and not spectral
        }
        kept = {name for layers in sets if layers not in moments for name in layers}
        values, classes = _watch(teacher, images, kept, moments)
        num = num_vectors if spectral else 0
        views = [
            moments[layers].view(layers, units)
            if layers in moments
            else view_of(layers, values, classes, units, num_vectors=num)
            for layers, units in behind_relu.items()
        ]
        metadata = Metadata(kind=of_kind, fingerprint=teacher.weights_digest, views=tuple(views))
        header = {"format": FORMAT, "kind": of_kind.value, "teacher": metadata.fingerprint}
        write_atomically(path, save(dict(_tensors(metadata)), metadata=header))
        return metadata


def _watch(
    teacher: Teacher,
    images: Tensor,
    kept: Collection[str],
    moments: Mapping[tuple[str, ...], "ClassMoments"],
) -> tuple[dict[str, Tensor], Tensor]:
    """Run all images; return activations (N, ...) of the names in `kept`, and classes (N,)."""
    values, named = {name: list[Tensor]() for name in kept}, list[Tensor]()
    for part in images.split(probed_at_once(teacher.input_spec.shape)):
        recorded, _ = activations(teacher, _shown(teacher, part))
        recorded = {name: value.flatten(1).cpu() for name, value in recorded.items()}
        named.append(recorded["logits"].argmax(1))
        for name in kept:
            values[name].append(recorded[name])
        for layers, recorder in moments.items():
            recorder.add(torch.cat([recorded[name] for name in layers], 1), named[-1])
    classes = torch.cat(named)
    counts = torch.bincount(classes, minlength=teacher.num_classes)
    if int(counts.min()) < 2:
        raise DataError(
            f"metadata needs at least 2 images of every class; "
            f"class {int(counts.argmin())} has {int(counts.min())}"
        )
    return {name: torch.cat(parts) for name, parts in values.items()}, classes


def _shown(teacher: Teacher, images: Tensor) -> Tensor:
    return teacher.input_spec.encode(images.to(teacher.device))


class ClassMoments:
    """Mean and sample standard deviation per class of values that are added in parts.

    >>> moments = ClassMoments(2, 1)
    >>> moments.add(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
    >>> moments.add(torch.tensor([[5.0]]), torch.tensor([1]))
    >>> view = moments.view(("layer",), torch.tensor([False]))
    >>> view.mean.tolist(), view.std.square().round().tolist()
    ([[2.0], [5.0]], [[2.0], [0.0]])
    """

    def __init__(self, num_classes: int, size: int) -> None:
        self.counts = torch.zeros(num_classes, 1, dtype=torch.double)
        self.sums = torch.zeros(2, num_classes, size, dtype=torch.double)  # of values and squares

    def add(self, values: Tensor, classes: Tensor) -> None:
        """Add values (N, size) of classes (N,)."""
        for sums, part in zip(self.sums, (values.double(), values.double() ** 2), strict=True):
            sums.index_add_(0, classes, part)
        self.counts += torch.bincount(classes, minlength=len(self.counts))[:, None]

    def view(self, layers: tuple[str, ...], rectified: Tensor) -> View:
        """Return the view of `layers`; every class needs two values. See View for `rectified`."""
        mean = self.sums[0] / self.counts
        variance = (self.sums[1] - self.counts * mean**2) / (self.counts - 1)
        std = variance.clamp_min(0).sqrt()
        return View(
            layers=layers,
            mean=mean.float(),
            root=None,
            basis=None,
            std=std.float(),
            rectified=rectified,
        )


def view_of(
    layers: tuple[str, ...],
    values: Mapping[str, Tensor],
    classes: Tensor,
    rectified: Tensor,
    *,
    num_vectors: int,
) -> View:
    """Return the view of layers.

    Args:
        layers: names in `values`.
        values: activations (N, ...) before the ReLU, by name.
        classes: (N,), at least two of each class.
        rectified: see View.
        num_vectors: number of eigenvectors of the basis; 0 for no basis.

    """
    joined = torch.cat([values[name] for name in layers], 1)
    on_basis, basis, std = joined, None, None
    of_class = [classes == k for k in range(int(classes.max()) + 1)]
    if num_vectors:
        scale = joined.std(0).clamp_min(1e-6)  # the graph is of correlations
        vectors = graph_basis(joined, min(num_vectors, joined.shape[1]))
        on_basis, basis = joined / scale @ vectors, scale[:, None] * vectors
        together = on_basis @ basis.T
        left = [joined[own].var(0) - together[own].var(0) for own in of_class]
        std = torch.stack(left).clamp_min(0).sqrt()
    return View(
        layers=layers,
        mean=torch.stack([joined[own].mean(0) for own in of_class]),
        root=torch.stack([covariance_root(on_basis[own]) for own in of_class]),
        basis=basis,
        std=std,
        rectified=rectified,
    )


def covariance_root(values: Tensor) -> Tensor:
    """Return the symmetric root (D, D) of the covariance of values (N, D)."""
    covariance = torch.cov(values.T.double()).reshape(values.shape[1], values.shape[1])
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * eigenvalues.clamp_min(0).sqrt() @ vectors.T
    return root.to(values.dtype)


def _tensors(metadata: Metadata) -> Iterator[tuple[str, Tensor]]:
    for view in metadata.views:
        for part in ("mean", "root", "basis", "std", "rectified"):
            value = getattr(view, part)
            if value is not None:
                yield f"{view.name}/{part}", value.contiguous()


def load_metadata(path: StrPath, teacher: Teacher) -> Metadata:
    """Load a metadata file; raise TeacherError if it is wrong or of another teacher."""
    with reading(path, TeacherError, "is not a file of metadata", what="metadata"):
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).to(teacher.device) for name in file.keys()}  # noqa: SIM118
        if header.get("format") == OF_INPUTS:
            raise TeacherError(
                f"{path} has what entered layers, behind the ReLU, as metadata was before format "
                f"{FORMAT}; what leaves them is needed: have the teacher's owner record it again"
            )
        if header.get("format") != FORMAT:
            raise TeacherError(f"{path} is not a file of metadata of format {FORMAT}")
        if (recorded_on := header["teacher"]) != teacher.weights_digest:
            raise TeacherError(
                f"{path} was recorded on the teacher {recorded_on}, not on {teacher.weights_digest}"
            )
        views = tuple(
            View(
                layers=tuple(name.split("+")),
                mean=tensors[f"{name}/mean"],
                root=tensors.get(f"{name}/root"),
                basis=tensors.get(f"{name}/basis"),
                std=tensors.get(f"{name}/std"),
                rectified=tensors[f"{name}/rectified"],
            )
            for name in dict.fromkeys(key.rpartition("/")[0] for key in tensors)
        )
        _check_views(views, teacher)
        return Metadata(kind=Kind(header["kind"]), fingerprint=recorded_on, views=views)


@torch.no_grad()
def _check_views(views: tuple[View, ...], teacher: Teacher) -> None:
    """Raise ValueError if a view does not fit the teacher, or KeyError if it lacks a layer."""
    if not views:
        raise ValueError("it holds no statistics")
    queries = teacher.queries
    recorded, _ = activations(
        teacher, torch.zeros(1, *teacher.input_spec.shape, device=teacher.device)
    )
    teacher.queries = queries  # the check is not a query
    for view in views:
        size = sum(recorded[name].numel() for name in view.layers)
        rank = size if view.basis is None else view.basis.shape[-1]
        classes = teacher.num_classes
        shapes = {
            "mean": (classes, size),
            "std": (classes, size),
            "root": (classes, rank, rank),
            "basis": (size, rank),
            "rectified": (size,),
        }
        for part, shape in shapes.items():
            value: Tensor | None = getattr(view, part)
            if value is None:
                continue
            kind = torch.bool if part == "rectified" else torch.float32
            if value.shape != shape or value.dtype != kind:
                raise ValueError(f"{view.name}/{part} is {tuple(value.shape)} of {value.dtype}")
            if not value.isfinite().all():
                raise ValueError(f"{view.name}/{part} has values that are not finite")
