r"""Lossless file format of packed networks, with Huffman-coded weight indices.

Source: Han, Mao and Dally, "Deep Compression", ICLR 2016, section 4. Layout, little endian: the
magic `DSPACK2\n`; the lengths of header and numbers in bytes (two uint32); the header, JSON within
zlib; the numbers, each in its own dtype: codebooks, then tensors that are not shared (biases,
BatchNorm, other buffers); a bit stream with the codes and gaps of each shared tensor. The header
lists each tensor's name, shape and dtype, and for shared tensors the number of nonzero weights, the
codebook size and the canonical Huffman code lengths of codes and gaps. `DSPACK1\n` files, which
store all numbers as float32, can be read too.
"""

import heapq
import json
import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dreamstill.compression.deep_compression.pack import weights_of
from dreamstill.errors import ExportError
from dreamstill.files.reading import StrPath, reading
from dreamstill.files.writing import write_atomically

__all__ = ["load_packed", "save_packed"]

MAGIC = b"DSPACK2\n"
ALL_FLOAT32 = b"DSPACK1\n"
"""Magic of files that store integers as float32 too."""
MAX_GAP = 255
"""Longest gap; a longer run of zeros is split by weights of zero."""
MOST_WEIGHTS = 2**28
"""Largest number of weights in a file; a damaged header may claim any number."""
MOST_HEADER = 2**26
"""Largest header in bytes; a damaged one may inflate without end."""
LONGEST_CODE = 64
"""Largest number of bits of a symbol; codes of 2^28 weights need at most 40."""


def huffman_lengths(symbols: Iterable[int]) -> dict[int, int]:
    """Return the length in bits of each symbol's code in an optimal prefix code.

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
    """Return the canonical prefix codes, which a decoder can rebuild from the lengths alone.

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
    """Return the nonzero codes and the zeros before each; a 0 fills each gap above MAX_GAP."""
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
    """Return the (size,) codes that `gaps_of` encoded."""
    codes = np.zeros(size, dtype=np.int64)
    position = -1
    for symbol, gap in zip(symbols, gaps, strict=True):
        position += gap + 1
        codes[position] = symbol
    return codes


class _Numbers:
    """Sequential reader of tensors; with `all_float32`, all are stored as float32."""

    def __init__(self, data: bytes, *, all_float32: bool) -> None:
        self.data, self.all_float32, self.at = data, all_float32, 0

    def read(self, num: int, name: str) -> Tensor:
        """Return the next `num` values as a tensor of the named dtype, such as "float32"."""
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"there is no dtype {name}")
        stored = torch.float32 if self.all_float32 else dtype
        end = self.at + num * stored.itemsize
        part, self.at = bytearray(self.data[self.at : end]), end
        return (
            torch.frombuffer(part, dtype=stored, count=num).to(dtype)
            if num
            else torch.empty(0, dtype=dtype)
        )


def _raw(value: Tensor) -> bytes:
    """Return a tensor's raw bytes, as `_Numbers.read` expects them."""
    return value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


class _Bits:
    """Reader of prefix codes, one bit at a time."""

    def __init__(self, data: bytes) -> None:
        self.bits = np.unpackbits(np.frombuffer(data, np.uint8))
        self.at = 0

    def read(self, num: int, lengths: dict[int, int]) -> list[int]:
        if not all(1 <= length <= LONGEST_CODE for length in lengths.values()):
            raise ValueError(f"codes have 1 to {LONGEST_CODE} bits; got {lengths}")
        table = {code: symbol for symbol, code in canonical_codes(lengths).items()}
        symbols = []
        for _ in range(num):
            code = ""
            while code not in table:
                code += "1" if self.bits[self.at] else "0"
                self.at += 1
            symbols.append(table[code])
        return symbols


def save_packed(model: nn.Module, path: StrPath, *, card: dict[str, Any] | None = None) -> int:
    """Write a packed network and return the size of the file in bytes.

    Args:
        model: network returned by `pack`.
        path: file to write.
        card: JSON data to store in the header, such as the factory and the input specification.

    Raises:
        ExportError: the file cannot be written, or does not decode to exactly the same network.

    """
    path = Path(path)
    shared = {n: m for n, m in weights_of(model).items() if parametrize.is_parametrized(m)}
    header: dict[str, Any] = {"card": card or {}, "shared": []}
    stream: list[str] = []
    body = b""
    for name, layer in shared.items():
        parts: Any = layer.parametrizations["weight"]  # type: ignore[index]
        codes = parts[0].codes.flatten().cpu().numpy()
        codebook = parts.original.detach()[1:]
        symbols, gaps = gaps_of(codes)
        lengths = (huffman_lengths(symbols), huffman_lengths(gaps)) if symbols else ({}, {})
        for values, table in zip((symbols, gaps), lengths, strict=True):
            coded = canonical_codes(table)
            stream += [coded[value] for value in values]
        body += _raw(codebook)
        header["shared"].append(
            {
                "name": f"{name}.weight",
                "shape": list(layer.weight.shape),
                "dtype": _dtype(codebook),
                "entries": len(codebook),
                "num": len(symbols),
                "codes": sorted(lengths[0].items()),
                "gaps": sorted(lengths[1].items()),
            }
        )
    left = {
        n: v for n, v in unpacked_state(model).items() if n.removesuffix(".weight") not in shared
    }
    header["plain"] = list(_plain_entries(left))
    body += b"".join(_raw(left[e["name"]]) for e in header["plain"] if "same_as" not in e)
    bits = "".join(stream)
    packed = np.packbits(np.frombuffer(bits.encode(), np.uint8) - ord("0")).tobytes()
    head = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    data = MAGIC + struct.pack("<II", len(head), len(body)) + head + body + packed

    def compare(temporary: Path) -> None:
        decoded, _ = load_packed(temporary)
        for name, value in unpacked_state(model).items():
            if decoded[name].dtype != value.dtype or not torch.equal(decoded[name], value.cpu()):
                raise ExportError(f"{name} does not decode to what was packed")

    write_atomically(path, data, check=compare, error=ExportError)
    return len(data)


def _plain_entries(left: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """Yield the header entries of tensors that are not coded; repeated ones name the first."""
    written: dict[tuple[int, torch.Size], str] = {}
    for name, value in left.items():
        first = written.setdefault((value.data_ptr() or id(value), value.shape), name)
        if first != name:  # a weight shared by two layers
            yield {"name": name, "same_as": first}
        else:
            yield {"name": name, "shape": list(value.shape), "dtype": _dtype(value)}


def unpacked_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a packed network's state dict in the format of its plain architecture."""
    state = {k: v for k, v in model.state_dict().items() if ".parametrizations." not in k}
    for name, layer in weights_of(model).items():
        state[f"{name}.weight"] = layer.weight.detach()
    return state


def load_packed(path: StrPath) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict and card of a packed file; raise ExportError if it is not one."""
    with reading(path, ExportError, "is not a whole packed network"):
        data = Path(path).read_bytes()
        if not data.startswith((MAGIC, ALL_FLOAT32)):
            raise ExportError(f"{path} is not a packed network")
        start = len(MAGIC) + 8
        head, body = struct.unpack("<II", data[len(MAGIC) : start])
        inflated = zlib.decompressobj().decompress(data[start : start + head], MOST_HEADER)
        header = json.loads(inflated)
        numbers = _Numbers(
            data[start + head : start + head + body], all_float32=data.startswith(ALL_FLOAT32)
        )
        bits = _Bits(data[start + head + body :])
        sizes = [_size(entry) for kind in ("shared", "plain") for entry in header[kind]]
        if sum(sizes) > MOST_WEIGHTS:
            raise ValueError(f"it tells of {sum(sizes):,} weights; at most {MOST_WEIGHTS:,} can be")
        return _decode(header, numbers, bits), dict(header["card"])


def _size(entry: dict[str, Any]) -> int:
    """Return a tensor's number of values according to its header entry."""
    shape = entry.get("shape", ())
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"{entry['name']} has no shape: {shape}")
    return math.prod(shape)


def _decode(header: dict[str, Any], numbers: _Numbers, bits: _Bits) -> dict[str, Tensor]:
    state = {}
    for entry in header["shared"]:
        symbols, gaps = (
            bits.read(entry["num"], {int(s): int(n) for s, n in entry[key]})
            for key in ("codes", "gaps")
        )
        entries = numbers.read(entry["entries"], entry.get("dtype", "float32"))
        codes = torch.from_numpy(from_gaps(symbols, gaps, _size(entry)))
        codebook = torch.cat([entries.new_zeros(1), entries])
        state[entry["name"]] = codebook[codes].reshape(entry["shape"])
    for entry in header["plain"]:
        if "same_as" in entry:
            state[entry["name"]] = state[entry["same_as"]]
            continue
        values = numbers.read(_size(entry), entry["dtype"])
        state[entry["name"]] = values.reshape(entry["shape"])
    return state
