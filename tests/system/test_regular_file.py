"""Files that hold anything: one error that says what and where, without waiting or end."""

import os
import re

import pytest
import yaml
from damages import make_socket

from lmkit.system import regular_file
from lmkit.system.regular_file import (
    DamagedError,
    opened,
    parse_row,
    read_bytes,
    read_json,
    read_yaml,
)

REMEDY = "; put a sound copy in its place"


KINDS = {
    "is a FIFO, not a file": os.mkfifo,
    "is a directory, not a file": os.mkdir,
    "is a socket, not a file": make_socket,
    "is a device, not a file": lambda path: path.symlink_to("/dev/zero"),
    "cannot be read: Too many levels of symbolic links": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("read", [read_bytes, read_json, read_yaml])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, what, read):
    path = tmp_path / "x"
    KINDS[what](path)
    with pytest.raises(DamagedError) as error:
        read(path)
    assert str(error.value) == f"{path} {what}{REMEDY}"


def test_what_is_not_there_is_not_damaged(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("x", "link"):
        with pytest.raises(FileNotFoundError):
            read_json(tmp_path / name)


def test_what_is_replaced_by_a_fifo_on_the_way_does_not_wait(tmp_path, monkeypatch):
    path, fifo = tmp_path / "x", tmp_path / "fifo"
    path.write_text("{}")
    os.mkfifo(fifo)
    monkeypatch.setattr(regular_file.os, "open", lambda _, flags, open=os.open: open(fifo, flags))
    with opened(path) as file:
        assert file.read(10) == b""


def test_no_more_is_read_than_may_be(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(DamagedError, match=f"^{path} has more than 4 bytes{REMEDY}$"):
        read_bytes(path, 4)
    os.truncate(path, 600 << 20)
    with pytest.raises(DamagedError, match="has more than 4,194,304 bytes"):
        read_json(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"a": ', "Expecting value: line 1 column 7 (char 6)"),
        (b"[]", "expected a mapping, found a list"),
        (b"null", "expected a mapping, found nothing"),
        (b"3", "expected a mapping, found a number"),
        (b'"x"', "expected a mapping, found a text"),
        (b"[" * 10_000, "it holds values more than 50 within each other"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "it holds values more than 50 within each other"),
        (
            b'{"a": "\xff"}',
            "'utf-8' codec can't decode byte 0xff in position 7: invalid start byte",
        ),
        (b"\0\0", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"a": ' + b"9" * 400 + b"}", "it holds an integer of more than 1024 bits"),
        (
            b'{"a": ' + b"9" * 5000 + b"}",
            "Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits",
        ),
    ],
)
def test_json_that_is_no_mapping_of_plain_values(tmp_path, text, what):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(DamagedError) as error:
        read_json(path)
    assert str(error.value) == f"{path} is damaged: {what}{REMEDY}"


def merged(levels):
    """YAML of a few hundred bytes that merging makes a mapping of 2 * 10**levels pairs of."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [", "node content"),
        ("[1]", "expected a mapping, found a list"),
        (
            merged(12),
            "could not determine a constructor for the tag 'tag:yaml.org,2002:merge' in line 2",
        ),
        ("a: 2020-01-01", "it holds a date"),
        ("a: !!binary aGk=", "it holds a bytes"),
        ("? [1, 2]\n: 3", "found unhashable key in line 1"),
        (f"a: 0x{'f' * 5000}", "it holds an integer of more than 1024 bits"),
        ("[" * 10_000, "exceeded maximum nesting depth in line 1"),
        ("a: {b: " * 200, "did not find expected"),
    ],
)
def test_yaml_that_is_no_mapping_of_plain_values(tmp_path, text, what):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(DamagedError, match=f"^{path} is damaged: .*{re.escape(what)}"):
        read_yaml(path)


def test_merging_is_refused_by_any_loader(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(merged(12))
    with pytest.raises(DamagedError, match=re.escape("tag:yaml.org,2002:merge")):
        read_yaml(path, yaml.SafeLoader)


def test_plain_values_are_as_they_were(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": {"c": "x", "4": {}}, "big": 2**1000}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**value, 4: 2}))
    assert read_yaml(tmp_path / "x.yaml") == {**value, 4: 2}
    (tmp_path / "y.yaml").write_text("[a, b]")
    assert read_yaml(tmp_path / "y.yaml", kind=list) == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (b'{"step": 1, "a": NaN}', True),
        (b'{"step": 1, "text": "x", "b": null, "c": true}', True),
        (b"[1]", False),
        (b'{"step": [1]}', False),
        (b'{"step": {"a": 1}}', False),
        (b'{"step": ' + b"9" * 400 + b"}", False),
        (b'{"step": ' + b"9" * 5000 + b"}", False),
        (b"[" * 10_000, False),
        (b'{"step"', False),
        (b"\xff", False),
        (b"", False),
    ],
)
def test_a_row_is_a_mapping_of_plain_values(line, row):
    assert (parse_row(line) is not None) == row
