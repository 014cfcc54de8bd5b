"""Save whole networks with torch.save, and load them without running code from the file.

A pickle can call any function that it names. This reader lets a file refer to classes and functions
of torch.nn, of this package and of the networks that it was derived from, but not call them:
tensors and collections are rebuilt by a fixed list of functions, instances are created without
code of their class, and functions, partials and methods can only be values of attributes.
"""

import enum
import functools
import inspect
import io
import pickle
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamstill.errors import RunError, TeacherError, first_line
from dreamstill.files.checkpoints import save_checkpoint
from dreamstill.files.reading import reading
from dreamstill.nn.copying import as_its_class, like_known

__all__ = ["check_saveable", "read_network", "save_network"]


def check_saveable(networks: Sequence[nn.Module]) -> None:
    """Raise TeacherError if a network cannot be saved and loaded."""
    for network in networks:
        try:
            _parts_of(network)
        except Exception as error:  # pickling runs code of the network's attributes
            raise TeacherError(
                f"{type(network).__name__} cannot be kept between stages ({first_line(error)}): "
                "give its functions names in their module, and its attributes plain values"
            ) from error


def save_network(network: nn.Module, path: Path) -> None:
    """Save a network atomically."""
    with as_its_class(network):
        save_checkpoint(path, network)


def read_network(path: Path, known_networks: Sequence[nn.Module]) -> nn.Module:
    """Load a network that consists of parts of torch.nn, of this package and of `known_networks`.

    Raises RunError if the file is damaged, refers to anything else or calls a function.
    """
    parts = frozenset[str]().union(*(_parts_of(network) for network in known_networks))
    with reading(path, RunError, "is not a network of this compression"):
        return like_known(_unpickled(path.read_bytes(), parts)[0], known_networks)


def _parts_of(network: nn.Module) -> frozenset[str]:
    """Return the names of the classes and functions that a network refers to."""
    buffer = io.BytesIO()
    with as_its_class(network):
        torch.save(network, buffer)
    return _unpickled(buffer.getvalue(), None)[1]


def _unpickled(data: bytes, allowed: frozenset[str] | None) -> tuple[nn.Module, frozenset[str]]:
    """Return the network in bytes of torch.save, and the names that it refers to.

    With `allowed` None, any name is allowed. Raises ValueError if the data is not a network; a
    damaged file can raise other exceptions.
    """
    if not data.startswith(b"PK\x03\x04"):  # torch's old format is a bare pickle
        raise ValueError("it is not what torch.save writes of a network")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(Path(name).name == "constants.pkl" for name in archive.namelist()):
            raise ValueError("it is a TorchScript archive")
    found = set[str]()

    class Unpickler(_Unpickler):
        """Unpickler of this file."""

        names, may_name = found, allowed

    module: Any = types.SimpleNamespace(
        __name__="dreamstill.pipelines.saved_networks", Unpickler=Unpickler
    )
    network = torch.load(
        io.BytesIO(data), map_location="cpu", pickle_module=module, weights_only=False
    )
    if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule):
        raise ValueError(f"it holds {type(network).__name__}, not a network")
    return network, frozenset(found)


def _emptied(kind: type, *contents: Any) -> Any:
    """Return an empty collection; the pickle fills it later."""
    if contents:
        raise ValueError(f"it fills {kind.__name__} in a way that torch.save does not")
    return kind()


def _collected(kind: type, *contents: Any) -> Any:
    """Return a set or frozenset of the plain keys in a list."""
    (values,) = contents
    if type(values) is not list or not all(map(_is_plain_key, values)):
        raise ValueError(f"it fills {kind.__name__} with objects")
    return kind(values)


def _layout(name: str) -> torch.layout:
    return {str(kind): kind for kind in (torch.strided, torch.sparse_coo)}[name]


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"it has bytes in {encoding}")
    return text.encode("latin1")


COLLECTIONS = tuple(functools.partial(_collected, kind) for kind in (set, frozenset))
REBUILT: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": torch._utils._rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": torch._utils._rebuild_parameter_with_state,
    "torch._utils._rebuild_sparse_tensor": torch._utils._rebuild_sparse_tensor,
    "torch.serialization._get_layout": _layout,
    "torch.device": torch.device,
    "torch.Size": torch.Size,
    "collections.OrderedDict": functools.partial(_emptied, OrderedDict),
    "builtins.set": COLLECTIONS[0],
    "builtins.frozenset": COLLECTIONS[1],
    "builtins.complex": complex,
    "builtins.slice": slice,
    "builtins.range": range,
    "_codecs.encode": _encoded,
}
"""Functions that a file may call by name, and the functions called instead."""
OLD_NAMES = {
    "__builtin__.xrange": "builtins.range",
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
}
"""Names of Python 2, which torch.save writes, and their present names."""
HASHES: list[Any] = [
    kind.__hash__
    for kind in (object, str, bytes, int, float, complex, type(None), Tensor, enum.Enum)
]
VALUES = (
    *(str, bytes, int, bool, float, complex, type(None), dict, OrderedDict),
    *(torch.dtype, torch.layout, torch.device, torch.Size, torch.storage.TypedStorage),
    *(Tensor, nn.Parameter),
)


def _is_plain_key(value: Any) -> bool:
    """Tell whether hashing a value runs no code of a custom class."""
    if type(value) is tuple:
        return all(map(_is_plain_key, value))
    return type(value).__hash__ in HASHES


def _is_value(value: Any) -> bool:
    """Tell whether a value, as an argument, runs no code of a custom class."""
    if type(value) in (tuple, list):
        return all(map(_is_value, value))
    return type(value) in VALUES


def _checked(attributes: Any) -> dict[str, Any]:
    """Return the attributes of an instance; raise ValueError if they are not a dictionary."""
    if type(attributes) not in (dict, OrderedDict):
        raise ValueError(f"it takes attributes from {type(attributes).__qualname__}")
    found: dict[str, Any] = attributes
    return found


def _name_of(function: Any) -> str:
    """Return the qualified name of a function or object for a message."""
    if isinstance(function, _Called):
        return f"{function.name} with objects"
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', None) or 'builtins'}.{name}"


class _Unpickler(pickle._Unpickler):
    """Unpickler that calls nothing that a pickle names.

    It extends the Python version, because the C version cannot restrict calls.
    """

    names: set[str]
    """Names that the file refers to."""
    may_name: frozenset[str] | None
    """Names that it may refer to besides modules of torch.nn and of this package; None: any."""
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.made: list[Any] = []
        """Instances whose attributes may be set."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the object with a name; raise ValueError if the file may not refer to it."""
        name = f"{module_name}.{global_name}"
        name = OLD_NAMES.get(name, f"{OLD_NAMES.get(module_name, module_name)}.{global_name}")
        module, _, last = name.rpartition(".")
        if name in REBUILT or name == "builtins.getattr":
            return _Called(name)
        if name == "functools.partial":
            return functools.partial
        self.names.add(name)
        if self.may_name is None or name in self.may_name:
            return super().find_class(module, last)
        if module == "torch" and isinstance(getattr(torch, last, None), torch.dtype):
            return getattr(torch, last)
        if module.startswith(("torch.nn.", "dreamstill.")):
            found = super().find_class(module, last)
            if isinstance(found, type) and issubclass(found, nn.Module):
                return found
        raise ValueError(f"it holds {name}, which is neither ours nor of a named factory")

    def load_reduce(self) -> None:
        """Call a function of REBUILT; raise ValueError for any other."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        if type(arguments) is not tuple:
            raise ValueError("it calls something in a way that torch.save does not")
        if isinstance(function, _Called) and function.name == "builtins.getattr":
            self.stack[-1] = self._attribute(*arguments)
        elif isinstance(function, _Called) and (
            all(map(_is_value, arguments)) or REBUILT[function.name] in COLLECTIONS
        ):
            self.stack[-1] = REBUILT[function.name](*arguments)
        elif function is functools.partial:
            (of,) = arguments
            self.stack[-1] = functools.partial(of)  # its arguments are set by load_build
            self.made.append(self.stack[-1])
        elif isinstance(function, type) and issubclass(function, enum.Enum):
            (value,) = arguments
            if not _is_value(value):
                raise ValueError(f"it looks for a member of {function.__qualname__} by an object")
            self.stack[-1] = next(m for m in function.__members__.values() if m._value_ == value)
        else:
            raise ValueError(f"it calls {_name_of(function)}, which no network of ours does")

    def _attribute(self, owner: Any, name: str) -> Any:
        """Return a function, class or method of a class or instance, without running its code."""
        kind = owner if isinstance(owner, type) else type(owner)
        full = f"{kind.__module__}.{kind.__qualname__}.{name}"
        if self.may_name is not None and full not in self.may_name:
            raise ValueError(f"it holds {full}, which is neither ours nor of a named factory")
        self.names.add(full)
        found = inspect.getattr_static(kind, name)
        if isinstance(found, staticmethod):
            found = found.__func__
        elif isinstance(found, classmethod):
            return types.MethodType(found.__func__, kind)
        elif isinstance(found, types.FunctionType) and owner is not kind:
            return types.MethodType(found, owner)
        functions = types.FunctionType | types.BuiltinFunctionType | types.MethodDescriptorType
        if isinstance(found, type | functions):
            return found
        raise ValueError(f"it holds {full}, which is neither a function nor a class")

    def load_newobj(self) -> None:
        """Create an instance without running code of its class."""
        arguments = self.stack.pop()
        kind = self.stack.pop()
        if not isinstance(kind, type) or type(arguments) is not tuple:
            raise ValueError(f"it makes an instance of {type(kind).__name__}")
        if issubclass(kind, tuple):
            values = arguments if hasattr(kind, "_fields") else arguments[0]
            self.stack.append(tuple.__new__(kind, values))
            return
        for base in (object, dict, list, OrderedDict):
            if not arguments and kind.__new__ is base.__new__ and issubclass(kind, base):
                self.stack.append(base.__new__(kind))
                self.made.append(self.stack[-1])
                return
        raise ValueError(f"it calls {kind.__qualname__}.__new__")

    def load_build(self) -> None:
        """Set the attributes of an instance; call no __setstate__ but those of torch.nn."""
        state = self.stack.pop()
        instance = self.stack[-1]
        kind = type(instance)
        if not any(instance is one for one in self.made):
            raise ValueError(f"it changes {_name_of(instance)}, which it has not made")
        owner: Any = next((base for base in kind.__mro__ if "__setstate__" in vars(base)), None)
        if kind is functools.partial:
            if type(state) is not tuple or any(isinstance(part, _Called) for part in state):
                raise ValueError("it makes a partial of what rebuilds tensors")
            instance.__setstate__(state)
        elif owner is not None:
            if not owner.__module__.startswith("torch.nn.") or type(state) is not dict:
                raise ValueError(f"it calls {owner.__qualname__}.__setstate__")
            owner.__setstate__(instance, state)
        else:
            attributes, slots = state if type(state) is tuple else (state, None)
            if attributes is not None:
                instance.__dict__.update(_checked(attributes))
            for name, value in _checked(slots or {}).items():
                place = inspect.getattr_static(kind, name)
                if not isinstance(place, types.MemberDescriptorType):
                    raise ValueError(f"it sets {kind.__qualname__}.{name}, which is no slot")
                place.__set__(instance, value)

    def load_setitem(self) -> None:
        """Set one item of a dictionary."""
        self._put([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self) -> None:
        """Set items of a dictionary."""
        self._put(self.pop_mark())

    def _put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target).__setitem__ not in (dict.__setitem__, OrderedDict.__setitem__):
            raise ValueError(f"it calls {type(target).__qualname__}.__setitem__")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not _is_plain_key(key):
                raise ValueError(f"it has a key of {type(key).__qualname__}")
            target[key] = value

    def load_append(self) -> None:
        """Append one value to a list."""
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        """Append values to a list."""
        self._extend(self.pop_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError(f"it calls {type(target).__qualname__}.append")
        list.extend(target, values)

    WRITTEN = (
        *(b"PROTO", b"STOP", b"MARK", b"POP", b"POP_MARK", b"NONE", b"NEWTRUE", b"NEWFALSE"),
        *(b"BININT", b"BININT1", b"BININT2", b"LONG1", b"LONG4", b"BINFLOAT", b"BINUNICODE"),
        *(b"EMPTY_TUPLE", b"TUPLE", b"TUPLE1", b"TUPLE2", b"TUPLE3", b"EMPTY_LIST", b"EMPTY_DICT"),
        *(b"GET", b"BINGET", b"LONG_BINGET", b"PUT", b"BINPUT", b"LONG_BINPUT", b"BINPERSID"),
        *(b"GLOBAL",),
    )
    """Opcodes that torch.save writes, besides those above; any other is refused."""
    dispatch = {  # type: ignore[assignment]
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name.decode())[0] for name in WRITTEN)
    } | {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
    }


class _Called:
    """Name of a function that a file may call but not store in an attribute."""

    def __init__(self, name: str) -> None:
        self.name = name
