"""Bytes to text: finding files, decompressing, decoding, cutting."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lmkit.corpus import cutting, finding, reading, records
from lmkit.errors import UserError

TEXT = st.text(st.sampled_from("ab# \n\r\té\u2028\x0c"), max_size=60)


def lines_of(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".bz2":
        data = bz2.compress(data)
    elif path.suffix == ".xz":
        data = lzma.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    path.write_bytes(data)
    return path


# ---- cutting


@given(TEXT)
def test_a_whole_file_is_its_text(text: str) -> None:
    assert list(cutting.whole(lines_of(text))) == [(0, text)]


@given(TEXT)
def test_lines_and_their_ends_are_the_text(text: str) -> None:
    cut = list(cutting.by_line(lines_of(text)))
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
    cut = list(cutting.by_paragraph(lines))
    assert [paragraph for _, paragraph in cut] == expected
    for number, paragraph in cut:
        assert "".join(lines[number - 1 :]).startswith(paragraph)
        assert number == 1 or not lines[number - 2].strip()


@given(TEXT, st.sampled_from(["^# ", "#", "^a.*b$", ""]))
def test_headed_sections_partition_the_text_at_the_headings(text: str, heading: str) -> None:
    lines = lines_of(text)
    cut = list(cutting.by_heading(lines, re.compile(heading)))
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
        cutting.cutter(unit, heading)


# ---- bytes to lines


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2", ".xz"])
def test_lines_are_the_same_compressed_or_not(tmp_path: Path, suffix: str) -> None:
    data = "\ufeffone\r\ntwo\n\n\u2028ünï\rx\r\n\ufefflast".encode()
    path = written(tmp_path / f"a.txt{suffix}", data)
    lines = ["one\n", "two\n", "\n", "\u2028ünï\rx\n", "\ufefflast"]
    assert list(reading.text_lines(path)) == lines


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_joined_compressed_files_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}", b"one\n")
    path.write_bytes(path.read_bytes() + written(tmp_path / f"b{suffix}", b"two\n").read_bytes())
    assert list(reading.text_lines(path)) == ["one\n", "two\n"]


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
        list(reading.text_lines(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "not compressed", "followed by garbage"]
)
def test_damaged_compression_is_an_error(tmp_path: Path, suffix: str, damage: str) -> None:
    path = written(tmp_path / f"a{suffix}", "".join(f"line {n}\n" for n in range(9999)).encode())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    damaged = {"truncated": path.read_bytes()[:-9], "flipped": bytes(data), "not compressed": b"x"}
    damaged["followed by garbage"] = path.read_bytes() + b"garbage"
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=re.escape(f"{path} is damaged (")):
        list(reading.text_lines(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
def test_a_compressed_file_is_never_held_whole(tmp_path: Path, suffix: str) -> None:
    draw = random.Random(0)
    lines = b"".join(b"x" * (1 << 16) + draw.randbytes(400).hex().encode() + b"\n" for _ in "1234")
    path = written(tmp_path / f"a{suffix}", lines)
    path.write_bytes(path.read_bytes() * 1024)  # as many members or frames
    assert path.stat().st_size < 16 << 20
    program = f"""
import pathlib, resource, pyarrow
from lmkit.corpus import reading
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(map(len, reading.text_lines(pathlib.Path({str(path)!r})))) == {1024 * len(lines)}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert int(output.stdout) < 64 << 10  # KiB, of 256 MiB of text


def padded(data: bytes) -> bytes:
    """A stream of xz, and zeros as the format allows after it."""
    return lzma.compress(data) + bytes(8)


def test_padded_streams_of_xz_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.xz"
    path.write_bytes(padded(b"one\n") + padded(b"") + padded(b"two\n"))
    assert list(reading.text_lines(path)) == ["one\n", "two\n"]
    path.write_bytes(b"")
    assert list(reading.text_lines(path)) == []


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "gb18030"]),
    st.sampled_from(["", ".gz", ".xz"]),
)
def test_an_encoding_makes_no_difference_to_lines(
    tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str, suffix: str
) -> None:
    text = text.removeprefix("\ufeff")  # some encodings have it as their mark
    path = written(tmp_path_factory.mktemp("text") / f"a.txt{suffix}", text.encode(encoding))
    expected = [line.replace("\r\n", "\n") for line in lines_of(text)]
    assert list(reading.text_lines(path, encoding)) == expected


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "koi8_r", "shift_jis", "utf-16-be"])
def test_long_files_of_any_encoding(tmp_path: Path, encoding: str) -> None:
    text = {"koi8_r": "слово\r\n", "shift_jis": "言葉ソ\n"}.get(encoding, "naïve çà\r\n") * 30_000
    path = written(tmp_path / "a.txt", text.encode(encoding))
    lines = list(reading.text_lines(path, encoding))
    assert "".join(lines) == text.replace("\r\n", "\n")
    assert len(lines) == 30_000


def test_the_names_of_an_encoding_are_one() -> None:
    assert {reading.known_encoding(name) for name in ("utf8", "UTF-8", "u8")} == {"utf-8"}
    assert reading.known_encoding("latin-1") == reading.known_encoding("iso8859_1")


@pytest.mark.parametrize(
    ("encoding", "remedy"),
    [
        ("utf-l6", "did you mean utf-16, "),
        ("latin-x", "did you mean latin"),
        ("cp-1252", "did you mean cp1252, "),
        ("klingon", "as utf-8, utf-16, latin-1, cp1252, gb18030"),
        ("base64", "as utf-8, "),
        ("unicode_escape", "as utf-8, "),
        ("", "as utf-8, "),
        ("a\0", "as utf-8, "),
    ],
)
def test_no_encoding(encoding: str, remedy: str) -> None:
    message = f"data.encoding={encoding} is no encoding of text that Python knows; {remedy}"
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        reading.known_encoding(encoding)


@pytest.mark.parametrize(
    ("data", "encoding", "message"),
    [
        (
            "é\n".encode("latin-1"),
            "utf-8",
            "UTF-8: byte 0xe9 at byte offset 0 (invalid continuation byte); name the encoding it "
            "has with data.encoding, as latin-1, cp1252 or utf-16, or leave it out",
        ),
        (
            "a\n".encode("utf-16"),
            "utf-8",
            "UTF-8: byte 0xff at byte offset 0 (invalid start byte); it begins as UTF-16: set "
            "data.encoding=utf-16, or leave it out",
        ),
        (
            gzip.compress(b"abc", mtime=0),
            "utf-8",
            "UTF-8: byte 0x8b at byte offset 1 (invalid start byte); it begins as gzip: give its "
            "name the end .gz, or leave it out",
        ),
        (
            b"abc\n" * 50_000 + b"\x81",
            "cp1252",
            "cp1252: byte 0x81 at byte offset 200000 (character maps to <undefined>); name the "
            "encoding it has with data.encoding, as latin-1, cp1252 or utf-16, or leave it out",
        ),
        (
            "a\n".encode("utf-16-le") * 50_000 + b"x",
            "utf-16-le",
            "utf-16-le: byte 0x78 at byte offset 200000 (truncated data); name the encoding it "
            "has with data.encoding, as latin-1, cp1252 or utf-16, or leave it out",
        ),
        (
            "a\n".encode("utf-16-le"),
            "utf-16",
            "utf-16 (UTF-16 stream does not start with BOM): without a byte order mark set "
            "data.encoding=utf-16-le or data.encoding=utf-16-be",
        ),
    ],
)
def test_the_wrong_encoding_is_named(
    tmp_path: Path, data: bytes, encoding: str, message: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        list(reading.text_lines(path, encoding, "data.encoding"))
    assert str(error.value) == f"{path} is not {message}"


# ---- records


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_json_fields_have_their_line_numbers(tmp_path: Path, suffix: str) -> None:
    rows = ['{"text": "a\\nb"}', "", '{"id": 1, "text": "\\u00e9\\r\\nx"}', '{"text": null}']
    path = written(tmp_path / f"a{suffix}", "\n".join(rows).encode())
    assert list(records.json_fields(path, "text")) == [(1, "a\nb"), (3, "é\nx"), (4, "")]


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
        list(records.json_fields(path, "text"))


def test_json_with_the_longest_list_of_keys_shows_eight(tmp_path: Path) -> None:
    row = json.dumps({f"k{n}": 0 for n in range(10)})
    path = written(tmp_path / "a.jsonl", row.encode())
    with pytest.raises(UserError, match="it has k0, k1, k2, k3, k4, k5, k6, k7 and 2 more;"):
        list(records.json_fields(path, "text"))


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_parquet_rows(tmp_path: Path, codec: str, kind: str) -> None:
    rows = pyarrow.array(["a\r\nb", None, "é"])
    kinds = {"string_view": pyarrow.string_view(), "large_string": pyarrow.large_string()}
    rows = rows.dictionary_encode() if kind == "dictionary" else rows.cast(kinds.get(kind, "utf8"))
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": rows, "n": [1, 2, 3]}), path, compression=codec)
    assert list(records.parquet_column(path, "text")) == [(1, "a\nb"), (2, ""), (3, "é")]


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
            list(records.parquet_column(path, column))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=re.escape(f"{path} is not a whole parquet file: ")):
        list(records.parquet_column(path, "body"))


# ---- tables

# Not "\r" alone: Python before 3.13 writes it without quotes.
CELLS = st.lists(
    st.sampled_from(["a", ",", ";", "\t", '"', "\n", "\r\n", " ", "é", "\u2028", "\ufeff"]),
    max_size=6,
).map("".join)


def csv_texts(path: Path, **table: Any) -> list[tuple[int, str]]:
    return list(records.csv_column(path, records.Table(**table)))


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=6)
    ),
    st.data(),
)
def test_any_table_that_python_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], data: st.DataObject
) -> None:
    """Of every delimiter, line end, quoting and encoding, compressed or not."""
    width = len(rows[0]) if rows else 2
    names = [f"c{n}" for n in range(width)]
    column = data.draw(st.integers(0, width - 1))
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    delimiter = data.draw(st.sampled_from([",", "\t", ";"]))
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    suffix = data.draw(st.sampled_from(["", ".gz", ".bz2", ".xz"]))
    buffer = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if width == 1 else csv.QUOTE_MINIMAL  # a blank line is no row
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([names, *rows])
    name = f"a.tsv{suffix}" if delimiter == "\t" else f"a.csv{suffix}"
    path = written(tmp_path_factory.mktemp("csv") / name, buffer.getvalue().encode(encoding))
    table = records.Table(names[column], ";" if delimiter == ";" else None)
    found = list(records.csv_column(path, table, encoding))
    assert [text for _, text in found] == [row[column].replace("\r\n", "\n") for row in rows]
    number = 2
    for (found_number, _), row in zip(found, rows, strict=True):
        assert found_number == number
        number += 1 + sum(cell.count("\n") for cell in row)


def test_a_table_as_people_have_it(tmp_path: Path) -> None:
    data = '\ufeffid, text ,n\r\n1,"two\r\nlines, ""quoted""",3\r\n\r\n2,,4\r\n3,plain,5'
    path = written(tmp_path / "a.csv", data.encode())
    expected = [(2, 'two\nlines, "quoted"'), (5, ""), (6, "plain")]
    assert csv_texts(path) == expected
    assert csv_texts(path, header=False, column=3) == [(1, "n"), (2, "3"), (5, "4"), (6, "5")]
    path = written(tmp_path / "a.tab.gz", b'text\tn\n"Well," she said\t1\n')
    assert csv_texts(path, quote=None) == [(2, '"Well," she said')]
    path = written(tmp_path / "numbers.csv", b"1;2\nx;y\n")
    assert csv_texts(path, column=2, delimiter=";") == [(2, "y")]


@pytest.mark.parametrize(
    ("data", "table", "message"),
    [
        (
            "id,body\n1,x\n",
            {},
            " has no column 'text': it has id, body; set data.column, or data.header=false and a "
            "number where the first line names none",
        ),
        (
            "id;text\n1;x\n",
            {},
            " has no column 'text': it has id;text; its fields look divided by ';': set "
            "data.delimiter",
        ),
        ("text,text\n", {}, " has 2 columns 'text': rename all but one"),
        ("a,b\n", {"header": False, "column": 3}, " has 2 columns: data.column=3 is none"),
        (
            'text,n\n"a\nb",1\nc, d,2\n',
            {},
            ", line 4 has 3 fields, the first row 2: put quotes around fields that hold ',', or "
            "set data.delimiter or data.quote",
        ),
        (
            'text\nfine\n"a\nb',
            {},
            ", line 3 to 4 is no row of CSV: unexpected end of data; where quotes are text, set "
            "data.quote=null",
        ),
        (
            'text,n\n"a" b,1\n',
            {},
            ", line 2 is no row of CSV: ',' expected after '\"'; where quotes are text, set "
            "data.quote=null",
        ),
        (
            "text,n\ra,1\r",
            {},
            ", line 1 is no row of CSV: new-line character seen in unquoted field; where quotes "
            "are text, set data.quote=null",
        ),
    ],
)
def test_a_bad_table_is_named(
    tmp_path: Path, data: str, table: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / "a.csv", data.encode())
    with pytest.raises(UserError) as error:
        csv_texts(path, **table)
    assert str(error.value) == f"{path}{message}"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"header": False},
            "data.header=false but data.column=text: without names of columns give the number of "
            "one, from 1, as data.column=2",
        ),
        (
            {"header": False, "column": 0},
            "data.header=false but data.column=0: without names of columns give the number of "
            "one, from 1, as data.column=2",
        ),
        ({"delimiter": "::"}, "data.delimiter=::: expected one character"),
        ({"quote": ""}, "data.quote=: expected one character"),
        ({"quote": ";", "delimiter": ";"}, "data.quote=; is data.delimiter too: set one of them"),
    ],
)
def test_no_way_to_write_a_table(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        records.Table(**table)


# ---- finding files


def names(path: Path | str, suffixes: tuple[str, ...] = ()) -> list[str]:
    return list(finding.find_files(str(path), "data.path", suffixes))


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
    with pytest.raises(UserError, match=r"names no files that end in \.csv or \.tsv; .* has train"):
        names(tmp_path / "wiki", (".csv", ".csv.gz", ".tsv", ".tsv.gz"))


def test_a_pipe_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=re.escape(f"data.path={tmp_path}/pipe names no files")):
        names(tmp_path / "pipe")


def test_a_list_is_in_its_order_each_file_once(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "a.txt", "c/a.txt"):
        written(tmp_path / name, b"x")

    def listed_names(*items: str) -> list[str]:
        return list(finding.find_files([f"{tmp_path}/{item}" for item in items], "data.path"))

    assert listed_names("b", "a.txt") == ["b/1.txt", "b/2.txt", "a.txt"]
    assert listed_names("a.txt", "b/*.txt") == ["a.txt", "b/1.txt", "b/2.txt"]
    assert listed_names("b/2.txt", "b/1.txt", "b") == ["2.txt", "1.txt"]
    assert listed_names("a.txt", "b/../a.txt", "c/a.txt") == ["a.txt", "c/a.txt"]
    assert listed_names("b") == names(tmp_path / "b")
    with pytest.raises(UserError, match=r"^data\.path is empty: name a file"):
        finding.find_files([], "data.path")
    with pytest.raises(UserError, match=f"^data.path={tmp_path}/d.txt does not exist; "):
        listed_names("a.txt", "d.txt")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.txt", "train"),
        ("wiki.train.tokens", "train"),
        ("corpus.valid.txt.gz", "valid"),
        ("validation-00000-of-00002.parquet", "valid"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("train/test.txt", "train"),
        ("train_10M/bnc_spoken.train", "train"),
        ("dev/bnc_spoken.dev", "valid"),
        ("en-VAL.csv", "valid"),
        ("a/b/test/c.txt", "test"),
        ("latest.txt", ""),
        ("how-to-train-a-dog.txt", ""),
        ("train_test.txt", ""),
        ("train-valid/test.txt", "test"),
        ("devices.txt", ""),
    ],
)
def test_what_split_a_name_states(name: str, split: str) -> None:
    assert finding.split_of(name) == split


ARCHIVE = "an archive: unpack it, and name the directory of its files"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a.zip"], f"a.zip, {ARCHIVE}"),
        (["a.tar.gz", "b.TGZ"], f"a.tar.gz, b.TGZ, {ARCHIVE}"),
        (
            ["b.pdf", "c.txt"],
            "b.pdf, a formatted document: make plain text of it, as with pdftotext or pandoc; for "
            "the other files alone, name them by a glob or a list",
        ),
        (
            ["a.md", "b.PNG"],
            "b.PNG, no text but a picture or a recording: leave it out; for the other files alone, "
            "name them by a glob or a list",
        ),
        (["x.xlsx"], "x.xlsx, a spreadsheet: save it as .csv, and take data=csv"),
        (
            ["x.txt.lz4"],
            "x.txt.lz4, compressed in a way that is not read: make it anew as one of .gz, .zst, "
            ".bz2, .xz",
        ),
        (
            ["x.7z", "y.parquet"],
            f"x.7z, {ARCHIVE}; y.parquet, parquet: take data=parquet",
        ),
    ],
)
def test_what_is_no_text_is_named_before_it_is_read(
    tmp_path: Path, given: list[str], message: str
) -> None:
    for name in given:
        (tmp_path / name).touch()
    with pytest.raises(UserError) as error:
        names(tmp_path)
    assert str(error.value) == f"data.path={tmp_path} names {message}"
