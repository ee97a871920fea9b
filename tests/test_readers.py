"""Bytes to text: finding files, decompressing, decoding, cutting."""

import gzip
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lmkit import readers
from lmkit.errors import UserError

TEXT = st.text(st.sampled_from("ab# \n\r\té\u2028\x0c"), max_size=60)


def lines_of(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    path.write_bytes(data)
    return path


# ---- cutting


@given(TEXT)
def test_a_whole_file_is_its_text(text: str) -> None:
    assert list(readers.whole(lines_of(text))) == [(0, text)]


@given(TEXT)
def test_lines_and_their_ends_are_the_text(text: str) -> None:
    cut = list(readers.by_line(lines_of(text)))
    assert "\n".join(line for _, line in cut) == text.removesuffix("\n")
    assert [number for number, _ in cut] == list(range(1, len(cut) + 1))


@given(TEXT)
def test_paragraphs_are_the_runs_of_lines_that_are_not_blank(text: str) -> None:
    lines = lines_of(text)
    expected, run = [], []
    for line in [*lines, ""]:
        if line.strip():
            run.append(line)
        elif run:
            expected.append("".join(run).removesuffix("\n"))
            run = []
    cut = list(readers.by_paragraph(lines))
    assert [paragraph for _, paragraph in cut] == expected
    for number, paragraph in cut:
        assert "".join(lines[number - 1 :]).startswith(paragraph)
        assert number == 1 or not lines[number - 2].strip()


@given(TEXT, st.sampled_from(["^# ", "#", "^a.*b$", ""]))
def test_headed_sections_partition_the_text_at_the_headings(text: str, heading: str) -> None:
    lines = lines_of(text)
    cut = list(readers.by_heading(lines, re.compile(heading)))
    assert "".join(section for _, section in cut) == text
    openings = [n for n, line in enumerate(lines, 1) if re.search(heading, line)]
    assert [number for number, _ in cut] == [1, *openings[1:]]


@pytest.mark.parametrize(
    ("unit", "heading", "message"),
    [
        ("page", None, "data.unit=page is not one of file, paragraph, line, heading"),
        (
            "heading",
            None,
            "data.unit=heading but data.heading=None: a pattern such as ^# goes with "
            "data.unit=heading and with no other",
        ),
        (
            "line",
            "^#",
            "data.unit=line but data.heading=^#: a pattern such as ^# goes with "
            "data.unit=heading and with no other",
        ),
        (
            "heading",
            "(",
            "data.heading=( is not a regular expression: missing ), unterminated subpattern "
            "at position 0",
        ),
    ],
)
def test_a_unit_and_its_pattern_are_checked(unit: str, heading: str | None, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        readers.cutter(unit, heading)


# ---- bytes to lines


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_lines_are_the_same_compressed_or_not(tmp_path: Path, suffix: str) -> None:
    data = "\ufeffone\r\ntwo\n\n\u2028ünï\rx\r\n\ufefflast".encode()
    path = written(tmp_path / f"a.txt{suffix}", data)
    lines = ["one\n", "two\n", "\n", "\u2028ünï\rx\n", "\ufefflast"]
    assert list(readers.text_lines(path)) == lines


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_joined_compressed_files_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}", b"one\n")
    path.write_bytes(path.read_bytes() + written(tmp_path / f"b{suffix}", b"two\n").read_bytes())
    assert list(readers.text_lines(path)) == ["one\n", "two\n"]


@pytest.mark.parametrize(("suffix", "place"), [("", ""), (".gz", " of the decompressed text")])
@pytest.mark.parametrize("before", ["", "\ufeff", "a\r\né\n" * 50_000])
def test_invalid_utf8_names_file_and_byte(
    tmp_path: Path, suffix: str, place: str, before: str
) -> None:
    path = written(tmp_path / f"a.txt{suffix}", before.encode() + b"abc\xff\n")
    message = (
        f"{path} is not UTF-8: byte 0xff at byte offset {len(before.encode()) + 3}{place} "
        "(invalid start byte); convert the file to UTF-8 or leave it out"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        list(readers.text_lines(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "not compressed"])
def test_damaged_compression_is_an_error(tmp_path: Path, suffix: str, damage: str) -> None:
    path = written(tmp_path / f"a{suffix}", "".join(f"line {n}\n" for n in range(9999)).encode())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    damaged = {"truncated": path.read_bytes()[:-9], "flipped": bytes(data), "not compressed": b"x"}
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=re.escape(f"{path} is damaged (")):
        list(readers.text_lines(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_is_never_held_whole(tmp_path: Path, suffix: str) -> None:
    draw = random.Random(0)
    lines = b"".join(b"x" * (1 << 16) + draw.randbytes(400).hex().encode() + b"\n" for _ in "1234")
    path = written(tmp_path / f"a{suffix}", lines)
    path.write_bytes(path.read_bytes() * 1024)  # as many members or frames
    assert path.stat().st_size < 16 << 20
    program = f"""
import pathlib, resource, pyarrow
from lmkit import readers
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(map(len, readers.text_lines(pathlib.Path({str(path)!r})))) == {1024 * len(lines)}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert int(output.stdout) < 64 << 10  # KiB, of 256 MiB of text


# ---- records


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_fields_have_their_line_numbers(tmp_path: Path, suffix: str) -> None:
    rows = ['{"text": "a\\nb"}', "", '{"id": 1, "text": "\\u00e9\\r\\nx"}', '{"text": null}']
    path = written(tmp_path / f"a{suffix}", "\n".join(rows).encode())
    assert list(readers.json_fields(path, "text")) == [(1, "a\nb"), (3, "é\nx"), (4, "")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": nope}', "is not JSON: Expecting value at column 10"),
        ("[1]", "is list, not an object with a field 'text'"),
        ('{"body": "x"}', "has no field 'text': it has body; set data.field"),
        ('{"text": 3}', "field 'text' is int, not a string"),
        ('{"text": "\\ud800"}', "field 'text' is not Unicode text: surrogates not allowed"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = written(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{row}\n'.encode())
    pattern = f"^{re.escape(f'{path}, line 2')},? {re.escape(message)}"
    with pytest.raises(UserError, match=pattern):
        list(readers.json_fields(path, "text"))


def test_json_with_the_longest_list_of_keys_shows_eight(tmp_path: Path) -> None:
    row = json.dumps({f"k{n}": 0 for n in range(10)})
    path = written(tmp_path / "a.jsonl", row.encode())
    with pytest.raises(UserError, match="it has k0, k1, k2, k3, k4, k5, k6, k7 and 2 more;"):
        list(readers.json_fields(path, "text"))


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_parquet_rows(tmp_path: Path, codec: str, kind: str) -> None:
    rows = pyarrow.array(["a\r\nb", None, "é"])
    kinds = {"string_view": pyarrow.string_view(), "large_string": pyarrow.large_string()}
    rows = rows.dictionary_encode() if kind == "dictionary" else rows.cast(kinds.get(kind, "utf8"))
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": rows, "n": [1, 2, 3]}), path, compression=codec)
    assert list(readers.parquet_column(path, "text")) == [(1, "a\nb"), (2, ""), (3, "é")]


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    invalid = pyarrow.array([b"fine", b"ab\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"body": invalid, "n": [1, 2]}), path)
    cases = {
        "text": "has no column 'text': it has body, n; set data.column",
        "n": "column 'n' is int64, not string; set data.column",
        "body": "row 2 is not UTF-8: byte offset 2 of the text (invalid start byte)",
    }
    for column, message in cases.items():
        with pytest.raises(UserError, match=f"{re.escape(str(path))},? {re.escape(message)}$"):
            list(readers.parquet_column(path, column))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=re.escape(f"{path} is not a whole parquet file: ")):
        list(readers.parquet_column(path, "body"))


# ---- finding files


def names(path: Path | str, suffixes: tuple[str, ...] = ()) -> list[str]:
    return list(readers.find_files(str(path), "data.path", suffixes))


def test_a_directory_is_searched_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/.x.txt", ".git/y.txt", "a.txt"):
        written(tmp_path / name, b"x")
    assert names(tmp_path) == ["a/z.md", "a.txt", "b.txt"]
    assert names(tmp_path, (".txt",)) == ["a.txt", "b.txt"]
    assert names(tmp_path / "*.txt", (".never",)) == ["a.txt", "b.txt"]
    assert names(tmp_path / "**/*.md") == ["a/z.md"]
    assert names(tmp_path / "a/.x.txt") == [".x.txt"]


@pytest.mark.parametrize("name", ["a b, c.txt", "a[1].txt", "a*.txt", "'a' {x}=(1)?.txt"])
def test_a_path_that_exists_is_no_glob(tmp_path: Path, name: str) -> None:
    written(tmp_path / name, b"x")
    written(tmp_path / "a1.txt", b"x")
    assert names(tmp_path / name) == [name]


def test_a_directory_that_exists_is_no_glob_before_one(tmp_path: Path) -> None:
    written(tmp_path / "My, data [1]" / "x.txt", b"x")
    written(tmp_path / "My, data 1" / "y.txt", b"y")
    assert names(tmp_path / "My, data [1]" / "*.txt") == ["x.txt"]
    assert names(tmp_path / "My, data [12]" / "*.txt") == ["My, data 1/y.txt"]


def test_relative_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a.txt", b"x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/a.txt") == names("~/*.txt") == ["a.txt"]
    monkeypatch.chdir(tmp_path)
    assert names("a.txt") == names("*.txt") == names(".") == ["a.txt"]


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    written(tmp_path / "wiki" / "train.txt", b"x")
    written(tmp_path / "other.md", b"x")
    long = "x" * 300
    cases = {
        "": "data.path is empty: name a file, a directory or a glob",
        f"{tmp_path}/wiki/trian.txt": f"does not exist; {tmp_path}/wiki has train.txt",
        f"{tmp_path}/wikki/train.txt": f"does not exist; {tmp_path} has wiki",
        f"{tmp_path}/zzz": f"does not exist; {tmp_path} has other.md, wiki",
        f"{tmp_path}/other.md/x": f"does not exist; {tmp_path} has other.md",
        f"{tmp_path}/wiki/*.gz": f"names no files; {tmp_path}/wiki has train.txt",
        f"{tmp_path}/{long}": "cannot be read: File name too long",
    }
    for path, message in cases.items():
        expected = f"data.path={path} {message}" if path else message
        with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
            names(path)
    with pytest.raises(UserError, match=r"names no files that end in \.gz or \.zst; .* has train"):
        names(tmp_path / "wiki", (".gz", ".zst"))


def test_a_pipe_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=re.escape(f"data.path={tmp_path}/pipe names no files")):
        names(tmp_path / "pipe")
