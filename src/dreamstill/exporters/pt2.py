"""Write PyTorch's exported programs, and load them without running code from the file.

torch.export.load unpickles data, evaluates size expressions as Python, and calls any torch function
that a node names. Files written here need none of this: tensors are raw, sizes are arithmetic on
symbols, and nodes call torch.ops. Only such files are loaded.
"""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_pt2", "open_pt2", "to_pt2"]

MEMBERS = re.compile(
    r"[^/]+/(models/model\.json|data/sample_inputs/model\.pt"
    r"|data/(weights|constants)/((weight|tensor)_\d+|model_(weights|constants)_config\.json)"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id|alignment))"
)
TARGETS = re.compile(
    r"torch\.ops\.(?!load_library|import_module)[a-z]\w*\.(?!from_file)\w+(\.\w+)?|torch\.sym_\w+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
WORDS = re.compile(
    r"(s|u|zf|zuf)\d+|Symbol|Integer|Float|Rational|precision|positive|nonnegative|integer|real"
    r"|True|False|true|false|Add|Mul|Pow|Mod|PythonMod|Max|Min|Abs|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not"
    r"|floor|ceiling|Equality|Unequality|StrictLessThan|StrictGreaterThan|LessThan|GreaterThan"
    r"|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|IntTrueDiv|FloatTrueDiv|TruncToInt|CeilToInt"
    r"|FloorToInt|RoundToInt|ToFloat|PowByNatural|FloatPow|Where|Identity|LShift|RShift"
)
"""Words allowed in size expressions, as sympy writes them."""


def to_pt2(program: torch.export.ExportedProgram) -> bytes:
    """Return the bytes of a program's file, without paths and lines of the source code."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()  # torch's file writer aborts the process if the disk is full
    torch.export.save(program, buffer)
    return buffer.getvalue()


def open_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a file's function (N, C, H, W) -> (N, K); raise ValueError if it may hold code."""
    data = path.read_bytes()
    check_pt2(data)
    module = torch.export.load(io.BytesIO(data)).module()

    def run(inputs: Tensor) -> Tensor:
        output: Tensor = module(inputs)
        return output

    return run


def check_pt2(data: bytes) -> None:
    """Raise ValueError if a file holds anything that `to_pt2` does not write."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError("it holds a file twice")
        for name in names:
            if not MEMBERS.fullmatch(name):
                raise ValueError(f"it holds {name}, which is not opened: it may be code")
            if name.endswith(".pt"):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            elif name.endswith(".json"):
                _check_plain(json.loads(archive.read(name)))


def _check_plain(plain: Any) -> None:
    """Raise ValueError if JSON data would have code unpickled, evaluated or called."""
    for name, value in _entries(plain):
        if name == "use_pickle" and value is not False:
            raise ValueError("it holds a pickle, which is not opened: it may run code")
        if name == "target" and not (isinstance(value, str) and TARGETS.fullmatch(value)):
            raise ValueError(f"it calls {value!r}, which is not of torch.ops")
        if name == "expr_str" and not _is_arithmetic(value):
            raise ValueError(f"it has a size of {value!r}, which is no arithmetic")


def _is_arithmetic(value: Any) -> bool:
    """Return whether a value is an expression of known words, numbers and operators."""
    return (
        isinstance(value, str)
        and re.fullmatch(r"[\w\s'+\-*/(),.<>=&|~]*", value) is not None
        and all(WORDS.fullmatch(word) for word in re.findall(r"[^\W\d]\w*", value))
    )


def _entries(plain: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of all dicts nested in JSON data."""
    if isinstance(plain, dict):
        yield from plain.items()
    for value in plain.values() if isinstance(plain, dict) else plain:
        if isinstance(value, dict | list):
            yield from _entries(value)
