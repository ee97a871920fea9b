"""Files of torch.save are read as torch itself reads them, and nothing that they ask for is run."""

import collections
import io
import os
import pickle
import struct
import sys
import zipfile
from contextlib import suppress
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmkit.errors import UserError
from lmkit.foreign.unpickler import MAX_KINDS, Record, read

FORMATS = {"zip": True, "legacy": False}
TENSORS = {
    "float": torch.randn(3, 5),
    "transposed": torch.randn(4, 6).T,
    "part": torch.arange(20)[3:9],
    "strided": torch.arange(24, dtype=torch.int32).view(4, 6)[:, ::2],
    "half": torch.randn(7).half(),
    "bfloat": torch.randn(2, 2).bfloat16(),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture(params=FORMATS)
def save(request, tmp_path):
    def save(value):
        path = tmp_path / "file.pt"
        torch.save(value, path, _use_new_zipfile_serialization=FORMATS[request.param])
        return path

    return save


def test_tensors_and_containers_are_those_of_torch(save):
    shared = torch.randn(4)
    value = {
        **TENSORS,
        "nested": collections.OrderedDict(a=[1, 2.5, None, (True, "ü")], b={"x", 3}),
        "counter": collections.Counter("abca"),
        "bytes": b"\x00\xff",
        "tied": [shared, shared[1:]],
    }
    found = read(save(value))
    expected = torch.load(save(value), weights_only=False)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], expected[name]), name
    for name in ("nested", "counter", "bytes"):
        assert found[name] == expected[name]
    one, other = found["tied"]
    one[1] = 7.0
    assert other[0] == 7.0  # one storage


def test_a_module_is_read_without_its_class(save):
    found = read(save(nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.25))))
    assert isinstance(found, Record)
    assert found.kind == "torch.nn.modules.container.Sequential"
    linear, dropout = found.attributes()["_modules"].values()
    assert linear.attributes()["_parameters"]["weight"].shape == (3, 2)
    assert dropout.attributes()["p"] == 0.25


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archived(path, data, storage=b""):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", storage)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch TARGET"),
        (exec, "open('TARGET', 'w')"),
        (eval, "open('TARGET', 'w')"),
        (open, "TARGET", "w"),
        (getattr, "x", "upper"),
        (torch.load, "TARGET"),
        (bytearray, 10**12),
    ],
)
def test_a_function_that_a_pickle_calls_is_not_called(tmp_path, protocol, call):
    target = tmp_path / "ran"
    arguments = [a.replace("TARGET", str(target)) if isinstance(a, str) else a for a in call[1:]]
    data = pickle.dumps({"a": Hostile(call[0], *arguments), "b": 1}, protocol=protocol)
    found = read(archived(tmp_path / "file.pt", data))
    assert found["b"] == 1
    assert isinstance(found["a"], Record)
    assert list(found["a"].arguments) == arguments
    assert not target.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch ran'\ntR.",  # GLOBAL and REDUCE
        b"(S'touch ran'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch ran'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",  # STACK_GLOBAL
        b"\x80\x02cos\nsystem\nU\x09touch ran\x85\x81.",  # NEWOBJ
    ],
)
def test_each_way_to_name_a_function_makes_a_record(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    found = read(archived(tmp_path / "file.pt", data))
    assert (found.kind, found.arguments) == ("os.system", ("touch ran",))
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


def test_nothing_is_imported(tmp_path):
    (tmp_path / "imported_by_a_pickle.py").write_text("raise SystemExit")
    sys.path.insert(0, str(tmp_path))
    try:
        found = read(archived(tmp_path / "file.pt", b"cimported_by_a_pickle\nThing\n)R."))
    finally:
        sys.path.remove(str(tmp_path))
    assert found.kind == "imported_by_a_pickle.Thing"
    assert "imported_by_a_pickle" not in sys.modules


def rebuilt(offset, size, stride, numel=6, kind="FloatStorage"):
    """A pickle that asks for a tensor over a storage of so many elements."""

    class Saved(pickle.Pickler):
        def persistent_id(self, value):
            return value.id if isinstance(value, Storage) else None

    class Storage:
        id = ("storage", getattr(torch, kind), "0", "cpu", numel)

    file = io.BytesIO()
    call = Hostile(torch._utils._rebuild_tensor_v2, Storage(), offset, size, stride, False, {})
    Saved(file, 2).dump(call)
    return file.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (7,), (1,)), "larger than what holds it"),
        ((1, (2, 3), (3, 1)), "larger than what holds it"),
        ((0, (10**9, 2), (0, 1)), "larger than what holds it"),  # one element many times
        ((-1, (2,), (1,)), "not made of a storage, an offset, sizes and strides"),
        ((0, (2,), (-1,)), "not made of a storage, an offset, sizes and strides"),
        ((0, (2, 3), (1,)), "not made of a storage, an offset, sizes and strides"),
        ((0, (6,), (1,), 7), "a storage of 7 elements in 24 bytes"),
        ((0, (6,), (1,), 10**15), "a storage of 1,000,000,000,000,000 elements in 24 bytes"),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, arguments, message):
    storage = struct.pack("<6f", *range(6))
    sound = read(archived(tmp_path / "file.pt", rebuilt(1, (2, 2), (2, 1)), storage))
    assert sound.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(UserError, match=message):
        read(archived(tmp_path / "file.pt", rebuilt(*arguments), storage))


def test_kinds_without_end_are_refused(tmp_path):
    names = b"".join(b"ca\nb%d\n0" % i for i in range(MAX_KINDS + 1))
    with pytest.raises(UserError, match="more than 10,000 kinds of objects"):
        read(archived(tmp_path / "file.pt", names + b"N."))


def test_what_is_no_such_file(tmp_path, save):
    path = tmp_path / "other"
    for content in (b"", b"PK\x03\x04", b"a text\n", pickle.dumps(1), b"\x80\x05."):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"other (is no file that PyTorch has saved|holds)"):
            read(path)
    path = tmp_path / "packed"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1))
    with pytest.raises(UserError, match="packed holds compressed entries"):
        read(path)
    with pytest.raises(UserError, match="is a directory"):
        read(tmp_path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged") / "file.pt"


@cache
def saved_once(archive):
    """The same bytes for every example: names of storages depend on the memory that they are in."""
    file = io.BytesIO()
    torch.save({"w": torch.ones(3, 2)}, file, _use_new_zipfile_serialization=archive)
    return file.getvalue()


@given(data=st.data())
@pytest.mark.parametrize("archive", FORMATS.values(), ids=FORMATS)
def test_damage_is_an_error_of_the_user_and_never_more(scratch, archive, data):
    """Bytes changed or cut anywhere: the file is read, or one error is raised."""
    content = bytearray(saved_once(archive))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    scratch.write_bytes(content)
    with suppress(UserError):
        read(scratch)
