"""Reads what PyTorch has saved, a whole module too, without importing or running anything of it.

Pickles can name any function and have it called. Here the only ones that exist are those of
`FUNCTIONS`; every other name becomes a `Record`, which keeps what it is given and does nothing.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from lmkit.errors import UserError
from lmkit.system.regular_file import opened

MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py: how files before PyTorch 1.6 begin
MAX_PICKLE = 256 << 20  # bytes; with a vocabulary of a million words it has about 30 MiB
MAX_KINDS = 10_000

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Record:
    """An object of a class that was not imported, as the file describes it.

    kind: the class's name, with its module. arguments: what it was made with. state: what it was
    then given, usually its attributes. items: what was added to it, as to a list or a dict.
    """

    kind: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *arguments: Any, **named: Any) -> Record:
        record = super().__new__(cls)
        record.arguments = (*arguments, *named.values())
        record.state = {}
        record.items = []
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: Iterable[Any]) -> None:
        self.items.extend(values)

    def attributes(self) -> Mapping[str, Any]:
        """Its attributes by name; none if it was given something else."""
        return self.state if isinstance(self.state, dict) else {}

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class Dict(dict[Any, Any]):
    """An OrderedDict, defaultdict or Counter of the file; its attributes are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuilt(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor over a storage; raises UserError where it would reach beyond it."""
    numbers = (offset, *size, *stride)
    if (
        not isinstance(storage, Tensor)
        or len(size) != len(stride)
        or not all(type(number) is int and 0 <= number < 2**62 for number in numbers)
    ):
        raise UserError("a tensor is not made of a storage, an offset, sizes and strides")
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if 0 not in size and (reach > len(storage) or math.prod(size) > len(storage)):
        raise UserError(f"a tensor of the sizes {tuple(size)} is larger than what holds it")
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    """A parameter is its tensor, without whether it asks for a gradient."""
    return value


def _dict(*arguments: Any) -> Dict:
    return Dict(*(argument for argument in arguments if isinstance(argument, dict | list | tuple)))


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """How a pickle of protocol 2 writes bytes."""
    if encoding != "latin1":
        raise UserError(f"bytes in the encoding {encoding!r}: expected latin1")
    return text.encode(encoding)


def _new(kind: Any, *_: Any) -> Any:
    """How a pickle of protocol 0 or 1 makes an object."""
    if not (isinstance(kind, type) and issubclass(kind, Record)):
        raise UserError(f"an object of {kind!r}")
    return kind()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.Size": tuple,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "collections.Counter": _dict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "_codecs.encode": _encoded,
    "copyreg._reconstructor": _new,
}
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # of Python 2


class Inert(pickle.Unpickler):
    """Unpickles plain values, tensors and `Record`s; `storage(kind, key, numel)` gives the elements
    of a storage as a tensor (numel)."""

    def __init__(self, file: IO[bytes], storage: Callable[[torch.dtype, str, int], Tensor]) -> None:
        super().__init__(file, encoding="latin1")  # as Python 2 wrote bytes
        self.storage = storage
        self.kinds: dict[str, type[Record]] = {}

    def find_class(self, module: str, name: str) -> Any:
        path = f"{OLD_MODULES.get(module, module)}.{name}"
        if path in FUNCTIONS:
            return FUNCTIONS[path]
        if path not in self.kinds:
            if len(self.kinds) == MAX_KINDS:
                raise UserError(f"more than {MAX_KINDS:,} kinds of objects")
            self.kinds[path] = type(name, (Record,), {"kind": path})
        return self.kinds[path]

    def persistent_load(self, saved: Any) -> Any:
        match saved:
            case ("storage", type() as kind, key, _, int() as numel, *views):
                name = getattr(kind, "kind", "").rpartition(".")[2]
                if any(view is not None for view in views) or name not in DTYPES:
                    raise UserError(f"a storage of the kind {name or kind!r}")
                return self.storage(DTYPES[name], str(key), numel)
            case ("module", kind, *_):  # with its source text, in files before PyTorch 1.6
                return kind
        raise UserError("an object that is stored elsewhere, and is no storage of a tensor")


def read(path: Path) -> Any:
    """The object in a file that PyTorch has saved, in its format of today or that before 1.6.

    Raises UserError for a file that is no such thing, is damaged, or holds what cannot be read.
    """
    with opened(path) as file:
        try:
            if zipfile.is_zipfile(file):
                return _read_archive(file)
            file.seek(0)
            return _read_sequence(file)
        except UserError as error:
            raise UserError(f"{path} holds {error}: it is no model that can be read") from None
        except Exception as error:  # damaged bytes can make the unpickler raise anything
            what = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"{path} is no file that PyTorch has saved, or is damaged: {what}"
            ) from None


def _read_archive(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise UserError("compressed entries, which PyTorch never writes")
        (main,) = [name for name in entries if name.endswith("/data.pkl")]
        root = main.removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in entries else b"little"
        if order != b"little":
            raise UserError(f"numbers in {order.decode(errors='replace')} byte order")
        storages: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
            if key not in storages:
                storages[key] = _elements(archive.read(f"{root}data/{key}"), dtype, numel)
            return storages[key]

        if entries[main].file_size > MAX_PICKLE:
            raise UserError(f"more than {MAX_PICKLE:,} bytes beside its tensors")
        with archive.open(main) as data:
            return Inert(data, storage).load()


def _elements(data: bytes, dtype: torch.dtype, numel: int) -> Tensor:
    if not 0 <= numel * dtype.itemsize <= len(data):
        raise UserError(f"a storage of {numel:,} elements in {len(data):,} bytes")
    if not numel:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype, count=numel)


def _read_sequence(file: IO[bytes]) -> Any:
    """Pickles one after the other, and then the storages (torch/serialization.py, _legacy_save)."""
    size = file.seek(0, 2)
    file.seek(0)
    storages: dict[str, Tensor] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        if key not in storages:
            if not 0 <= numel * dtype.itemsize <= size:
                raise UserError(f"a storage of {numel:,} elements in a file of {size:,} bytes")
            storages[key] = torch.zeros(numel, dtype=dtype)
        return storages[key]

    def load() -> Any:
        return Inert(file, storage).load()

    if load() != MAGIC:
        raise UserError("another beginning than PyTorch's")
    load()  # the version of the format
    machine = load()
    if not machine.get("little_endian", True):
        raise UserError("numbers in big byte order")
    found = load()
    for key in load():
        held = storages[str(key)]
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != len(held):
            raise UserError(f"a storage of {numel:,} elements, announced with {len(held):,}")
        data = file.read(numel * held.element_size())
        held.copy_(_elements(data, held.dtype, numel))
    return found
