r"""Pack a network: prune, share weights, Huffman-code; one file, decoded exactly.

Source: Han, Mao and Dally, "Deep Compression", ICLR 2016. Where this differs: the re-training after
pruning and after sharing is distillation from the network itself on images that need not be real;
densities are chosen over all layers together by LAMP (Lee et al. 2021), not by hand.

The file, little endian: the magic `DSPACK1\n`; two lengths in bytes (uint32), of header and
numbers; the header, JSON within zlib; the numbers, float32: the codebooks in order, then the
tensors that are not shared (biases, BatchNorm); then one stream of bits, the codes and the gaps of
each shared tensor. The header holds what decoding needs: each tensor's name and shape, and for a
shared one its number of weights, its codebook's size and the canonical Huffman code lengths of
codes and gaps. All of it is counted in the size.
"""

import copy
import heapq
import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dreamstill.errors import ExportError, TeacherError
from dreamstill.settings import at_least, within
from dreamstill.tasks.distill import DistillSettings, Progress
from dreamstill.tasks.finetune import finetune
from dreamstill.tasks.graph import shared_weights
from dreamstill.teacher import Teacher

__all__ = ["PackSettings", "load_packed", "pack", "save_packed"]

MAGIC = b"DSPACK1\n"
MAX_GAP = 255
"""A longer run of zeros is written as a gap of this and a weight of zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSettings:
    """Settings of packing."""

    density: float = 0.1
    """Share of the weights to keep, over all layers; in (0, 1]."""
    rounds: int = 4
    """Prune and fine-tune so many times, each to a lower density; at least 1."""
    convolution_bits: int = 5
    """Codebooks of convolutions have 2 to this power entries; 1 to 8."""
    linear_bits: int = 4
    """Codebooks of linear layers have 2 to this power entries; 1 to 8."""
    finetune: DistillSettings = field(
        default_factory=lambda: DistillSettings(steps=1000, batch_size=64, lr=2e-3, held_out=256)
    )
    """The fine-tuning after each round and after sharing; 0 rounds of it: give `steps` 0."""

    def __post_init__(self) -> None:
        within(self, 1e-4, 1, "density")
        at_least(self, 1, "rounds")
        within(self, 1, 8, "convolution_bits", "linear_bits")


class Mask(nn.Module):
    """Weights that were pruned stay zero."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its zeros."""
        masked: Tensor = weight * self.mask
        return masked


class Shared(nn.Module):
    """A weight whose entries are those of a codebook; the codebook is what is trained."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, codebook: Tensor) -> Tensor:
        """(entries,) with 0 first -> the weight."""
        fixed = torch.cat([codebook.new_zeros(1), codebook[1:]])
        weight: Tensor = fixed[self.codes]
        return weight


def weights_of(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Layers whose weights are pruned and shared, by name; weights of two layers stay whole."""
    tied = shared_weights(model)
    return {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
        and (n not in tied or parametrize.is_parametrized(m))
    }


def lamp_masks(weights: dict[str, Tensor], density: float) -> dict[str, Tensor]:
    """Keep the largest LAMP scores over all layers: w^2 over the sum of squares not below it."""
    scores = {}
    for name, weight in weights.items():
        squares, order = weight.flatten().double().pow(2).sort()
        tails = squares.flip(0).cumsum(0).flip(0)
        score = torch.empty_like(squares)
        score[order] = squares / tails.clamp_min(1e-30)
        scores[name] = score.view(weight.shape)
    joined = torch.cat([score.flatten() for score in scores.values()])
    keep = max(len(scores), round(density * len(joined)))
    threshold = joined.topk(keep).values[-1]
    return {name: score >= threshold for name, score in scores.items()}


def codebook_of(values: Tensor, size: int, *, iterations: int = 50) -> tuple[Tensor, Tensor]:
    """k-means in one dimension from centroids spread evenly: section 3.2.

    Args:
        values: (n,).
        size: centroids; fewer where there are fewer distinct values.

    Returns:
        Sorted centroids (k,) and the index of each value's (n,).

    """
    size = min(size, len(values.unique()))
    centroids = torch.linspace(float(values.min()), float(values.max()), size, device=values.device)
    for _ in range(iterations):
        index = torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)
        counts = torch.bincount(index, minlength=size)
        sums = torch.zeros(size, device=values.device).index_add_(0, index, values)
        moved = torch.where(counts > 0, sums / counts.clamp_min(1), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids, torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)


def pack(
    teacher: Teacher,
    images: Tensor,
    settings: PackSettings,
    *,
    rng: torch.Generator,
    student: nn.Module | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> nn.Module:
    """A copy of a network with few, shared weights, ready for `save_packed`.

    Args:
        teacher: what the copy is fine-tuned towards.
        images: uint8 (N, C, H, W) to fine-tune on, synthetic or not.
        settings: see PackSettings.
        rng: of the fine-tuning.
        student: what is packed; default: the teacher itself. Left as it was.
        on_progress: called after each step.

    Raises:
        DataError: fewer than 8 images.
        SettingsError: `finetune` asks for images to be synthesized, or for a transfer loss that
            finds nothing to compare in the two networks.
        NonFiniteError: a loss of the fine-tuning is not finite.
        TeacherError: no layer of weights of its own.

    """
    model = copy.deepcopy(student if student is not None else teacher.module).requires_grad_(True)
    if not weights_of(model):
        raise TeacherError("there is no convolution or linear layer that can be packed")

    def tune(model: nn.Module) -> nn.Module:
        return finetune(teacher, model, images, settings.finetune, rng=rng, on_progress=on_progress)

    for step in range(1, settings.rounds + 1):
        done = step / settings.rounds
        density = settings.density + (1 - settings.density) * (1 - done) ** 3
        weights = {name: layer.weight.detach() for name, layer in weights_of(model).items()}
        masks = lamp_masks(weights, density)
        for name, layer in weights_of(model).items():
            if parametrize.is_parametrized(layer):
                parametrize.remove_parametrizations(layer, "weight")
            parametrize.register_parametrization(layer, "weight", Mask(masks[name]))
        model = tune(model)
    for layer in weights_of(model).values():
        parametrize.remove_parametrizations(layer, "weight")
        linear = isinstance(layer, nn.Linear)
        bits = settings.linear_bits if linear else settings.convolution_bits
        share(layer, bits)
    model = tune(model)
    return model.eval().requires_grad_(False)


def share(layer: nn.Conv2d | nn.Linear, bits: int) -> None:
    """Replace a layer's weight by a codebook of 2^bits entries, zero the first, in place."""
    weight = layer.weight
    codes = torch.zeros(weight.shape, dtype=torch.long, device=weight.device)
    kept = weight.detach() != 0
    codebook = torch.zeros(1, device=weight.device)
    if kept.any():
        centroids, index = codebook_of(weight.detach()[kept], 2**bits - 1)
        codes[kept] = index + 1
        codebook = torch.cat([codebook, centroids])
    layer.weight = nn.Parameter(codebook)
    parametrize.register_parametrization(layer, "weight", Shared(codes), unsafe=True)


def huffman_lengths(symbols: Iterable[int]) -> dict[int, int]:
    """Bits of each symbol's code in an optimal prefix code.

    >>> sorted(huffman_lengths([0, 0, 0, 0, 1, 1, 2]).items())
    [(0, 1), (1, 2), (2, 2)]
    """
    counts = Counter(symbols)
    if len(counts) == 1:
        return dict.fromkeys(counts, 1)
    heap = [
        (count, index, {symbol: 0}) for index, (symbol, count) in enumerate(sorted(counts.items()))
    ]
    heapq.heapify(heap)
    unique = len(heap)
    while len(heap) > 1:
        a, b = heapq.heappop(heap), heapq.heappop(heap)
        deeper = {symbol: length + 1 for symbol, length in (a[2] | b[2]).items()}
        heapq.heappush(heap, (a[0] + b[0], unique, deeper))
        unique += 1
    return heap[0][2] if heap else {}


def canonical_codes(lengths: dict[int, int]) -> dict[int, str]:
    """Prefix codes by length and symbol alone, so that a decoder needs the lengths alone.

    >>> canonical_codes({0: 1, 1: 2, 2: 2})
    {0: '0', 1: '10', 2: '11'}
    """
    codes, code, previous = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in lengths.items()):
        code <<= length - previous
        codes[symbol] = format(code, f"0{length}b")
        code, previous = code + 1, length
    return codes


def gaps_of(codes: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Codes that are not 0 and the zeros before each, with fillers for gaps above MAX_GAP."""
    symbols, gaps, last = [], [], -1
    for position in codes.nonzero()[0].tolist():
        gap = position - last - 1
        while gap > MAX_GAP:
            symbols.append(0)
            gaps.append(MAX_GAP)
            gap -= MAX_GAP + 1
        symbols.append(int(codes[position]))
        gaps.append(gap)
        last = position
    return symbols, gaps


def from_gaps(symbols: list[int], gaps: list[int], size: int) -> NDArray[np.int64]:
    """The inverse of `gaps_of`."""
    codes = np.zeros(size, dtype=np.int64)
    position = -1
    for symbol, gap in zip(symbols, gaps, strict=True):
        position += gap + 1
        codes[position] = symbol
    return codes


class _Bits:
    """Read prefix codes one bit at a time."""

    def __init__(self, data: bytes) -> None:
        self.bits = np.unpackbits(np.frombuffer(data, np.uint8))
        self.at = 0

    def read(self, num: int, lengths: dict[int, int]) -> list[int]:
        table = {code: symbol for symbol, code in canonical_codes(lengths).items()}
        symbols = []
        for _ in range(num):
            code = ""
            while code not in table:
                code += "1" if self.bits[self.at] else "0"
                self.at += 1
            symbols.append(table[code])
        return symbols


def save_packed(model: nn.Module, path: Path, *, card: dict[str, Any] | None = None) -> int:
    """Write a packed network; returns the file's size in bytes.

    Args:
        model: what `pack` returned.
        path: to write.
        card: anything to keep in the header, such as the factory and the input's spec.

    Raises:
        ExportError: the file cannot be written, or does not decode to the network exactly.

    """
    shared = {n: m for n, m in weights_of(model).items() if parametrize.is_parametrized(m)}
    header: dict[str, Any] = {"card": card or {}, "shared": [], "plain": []}
    stream: list[str] = []
    floats: list[NDArray[np.float32]] = []
    for name, layer in shared.items():
        parts: Any = layer.parametrizations["weight"]  # type: ignore[index]
        codes = parts[0].codes.flatten().numpy()
        codebook = parts.original.detach().numpy()[1:]
        symbols, gaps = gaps_of(codes)
        lengths = (huffman_lengths(symbols), huffman_lengths(gaps)) if symbols else ({}, {})
        for values, table in zip((symbols, gaps), lengths, strict=True):
            coded = canonical_codes(table)
            stream += [coded[value] for value in values]
        floats.append(codebook.astype("<f4"))
        header["shared"].append(
            {
                "name": f"{name}.weight",
                "shape": list(layer.weight.shape),
                "entries": len(codebook),
                "num": len(symbols),
                "codes": sorted(lengths[0].items()),
                "gaps": sorted(lengths[1].items()),
            }
        )
    for name, value in unpacked_state(model).items():
        if name.removesuffix(".weight") not in shared:
            kind = str(value.dtype).removeprefix("torch.")
            header["plain"].append({"name": name, "shape": list(value.shape), "dtype": kind})
            floats.append(value.detach().cpu().numpy().astype("<f4"))
    bits = "".join(stream)
    packed = np.packbits(np.frombuffer(bits.encode(), np.uint8) - ord("0")).tobytes()
    head = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    body = b"".join(array.tobytes() for array in floats)
    data = MAGIC + struct.pack("<II", len(head), len(body)) + head + body + packed
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from error
    decoded, _ = load_packed(path)
    for name, value in unpacked_state(model).items():
        if not torch.equal(decoded[name], value):
            path.unlink()
            raise ExportError(f"{name} does not decode to what was packed")
    return len(data)


def unpacked_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a packed network as its plain architecture has it."""
    state = {k: v for k, v in model.state_dict().items() if ".parametrizations." not in k}
    for name, layer in weights_of(model).items():
        state[f"{name}.weight"] = layer.weight.detach()
    return state


def load_packed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a packed file: the state dict and the card; ExportError if it is not one."""
    try:
        data = path.read_bytes()
        if not data.startswith(MAGIC):
            raise ExportError(f"{path} is not a packed network")
        start = len(MAGIC) + 8
        head, body = struct.unpack("<II", data[len(MAGIC) : start])
        header = json.loads(zlib.decompress(data[start : start + head]))
        floats = np.frombuffer(data[start + head : start + head + body], "<f4")
        bits = _Bits(data[start + head + body :])
        return _decode(header, floats, bits), header["card"]
    except (OSError, struct.error, zlib.error, ValueError, KeyError, IndexError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"{path} is not a whole packed network: {error}") from error


def _decode(header: dict[str, Any], floats: NDArray[np.float32], bits: _Bits) -> dict[str, Tensor]:
    state, at = {}, 0
    for entry in header["shared"]:
        symbols, gaps = (
            bits.read(entry["num"], {int(s): int(n) for s, n in entry[key]})
            for key in ("codes", "gaps")
        )
        codebook = np.concatenate([np.zeros(1, "<f4"), floats[at : at + entry["entries"]]])
        at += entry["entries"]
        codes = from_gaps(symbols, gaps, int(np.prod(entry["shape"])))
        state[entry["name"]] = torch.from_numpy(codebook[codes].reshape(entry["shape"]).copy())
    for entry in header["plain"]:
        size = int(np.prod(entry["shape"], dtype=np.int64))
        values = torch.from_numpy(floats[at : at + size].reshape(entry["shape"]).copy())
        state[entry["name"]] = values.to(getattr(torch, entry["dtype"]))
        at += size
    return state
