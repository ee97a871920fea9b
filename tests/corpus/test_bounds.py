"""Bombs: small files that would fill the memory are refused while it is still empty."""

import bz2
import gzip
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from lmkit.corpus import cutting, reading, records
from lmkit.errors import UserError
from lmkit.store import TokenStore
from lmkit.store.shard import Shard
from lmkit.tokenizer import load_tokenizer

SIZE = 512 << 20  # of what each would become, at least
ZEROS = b"0" * (1 << 20)


def gzipped(path: Path) -> None:
    with gzip.open(path, "wb") as file:
        for _ in range(SIZE >> 20):
            file.write(ZEROS)


def many_streams(path: Path) -> None:
    path.write_bytes(bz2.compress(ZEROS + b"\n") * (SIZE >> 20))


def xzipped(path: Path) -> None:
    with lzma.open(path, "wb", preset=0) as file:
        for _ in range(SIZE >> 20):
            file.write(ZEROS)


def many_members(path: Path) -> None:
    path.write_bytes(gzip.compress(ZEROS + b"\n") * (SIZE >> 20))


def one_frame(path: Path) -> None:
    with zstandard.open(path, "wb") as file:
        for _ in range(SIZE >> 20):
            file.write(ZEROS)


def many_frames(path: Path) -> None:
    path.write_bytes(zstandard.compress(ZEROS + b"\n") * (SIZE >> 20))


def repeated_value(path: Path) -> None:
    """A dictionary of one long value, and a run of its index."""
    values = pyarrow.DictionaryArray.from_arrays([0] * 2048, [ZEROS.decode()])
    table = pyarrow.table({"text": values})
    parquet.write_table(table, path, compression="zstd", store_schema=False)


def packed_pages(path: Path) -> None:
    rows = [f"{row:09}" + "0" * (1 << 16) for row in range(SIZE >> 16)]
    table = pyarrow.table({"text": rows})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)


READ = """
import resource, sys
from pathlib import Path
import pyarrow.parquet
from lmkit.corpus import cutting, records
from lmkit.errors import UserError

path = Path(sys.argv[1])
read = {".parquet": lambda: records.parquet_column(path, "text")}.get(
    path.suffix, lambda: cutting.documents(path, cutting.whole)
)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for _ in read():
        pass
except UserError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (gzipped, "a.gz"),
        (many_members, "a.gz"),
        (many_streams, "a.bz2"),
        (xzipped, "a.xz"),
        (one_frame, "a.zst"),
        (many_frames, "a.zst"),
        (repeated_value, "a.parquet"),
        (packed_pages, "a.parquet"),
    ],
)
def test_a_bomb_is_refused_and_the_memory_stays_empty(tmp_path, make, name):
    path = tmp_path / name
    make(path)
    assert path.stat().st_size < 2 << 20
    command = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    message, grown = done.stdout.splitlines()
    assert re.fullmatch(
        rf"{re.escape(str(path))} has {path.stat().st_size:,} bytes and expands to more than "
        r"[\d,]+, over 200 times as many: text does not, a bomb does; if it is meant, decompress "
        "it yourself",
        message,
    )
    assert int(grown) << 10 < SIZE // 2


def test_small_files_may_pack_as_well_as_they_can(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(ZEROS + b"\n"))
    assert ZEROS[:-1] in reading.text_lines(path).__next__().encode()
    table = pyarrow.table({"text": ["the same"] * 5000})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = list(records.parquet_column(tmp_path / "a.parquet", "text"))
    assert found == [(number, "the same") for number in range(1, 5001)]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_parquet_of_every_encoding_is_read_as_it_was(tmp_path, kind):
    texts = [f"row {n % 7} {n}" if n % 3 else None for n in range(3000)]
    table = pyarrow.table({"text": pyarrow.array(texts, kind)})
    for place, dictionary in enumerate((True, False)):
        path = tmp_path / f"{place}.parquet"
        parquet.write_table(table, path, use_dictionary=dictionary, row_group_size=700)
        found = [text for _, text in records.parquet_column(path, "text")]
        assert found == [text or "" for text in texts]


def test_a_line_that_never_ends_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE", 10)
    path = tmp_path / "a.txt"
    path.write_text("0123456789"[:9] + "\n" + "x" * 11)
    with pytest.raises(UserError) as error:
        list(reading.text_lines(path))
    assert str(error.value) == (
        f"{path} has a line of more than 10 characters, line 2: is it text? Break its lines, or "
        "leave it out"
    )
    path.write_text("0123456789"[:9] + "\n" + "x" * 10)
    assert len(list(reading.text_lines(path))) == 2


@pytest.mark.parametrize("unit", ["file", "paragraph", "heading"])
def test_a_document_that_never_ends_is_refused(tmp_path, monkeypatch, unit):
    monkeypatch.setattr(cutting, "MAX_DOCUMENT", 10)
    path = tmp_path / "a.txt"
    path.write_text("# a\n\n# b\nabc\nabc\n")
    cut = cutting.cutter(unit, "^#" if unit == "heading" else None)
    with pytest.raises(UserError) as error:
        list(cutting.documents(path, cut))
    first = {"file": 1, "paragraph": 3, "heading": 3}[unit]
    assert str(error.value) == (
        f"{path} has a document of more than 10 characters, from line {first} on: cut it finer "
        "with data.unit"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "line 2 is no record: maximum recursion depth"),
        ('{"text": ' + "9" * 5000 + "}", "line 2 is no record: Exceeds the limit"),
    ],
)
def test_a_record_beyond_pythons_bounds_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}, {message}"):
        list(records.json_fields(path, "text"))


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../x": {"bytes": 1, "sha256": ""}}},
        {"dtype": "O"},
        {"dtype": "<f8"},
        {"files": 3},
        {"num_bytes": None, "files": {}},
    ],
)
def test_a_hostile_manifest_of_a_shard_is_damage(tmp_path, change):
    names = ("tokens", "document_ends", "line_ends", "document_bytes", "document_id_ends")
    record = {"bytes": 8, "sha256": ""}
    for name in (*names, "document_ids"):
        (tmp_path / f"{name}.bin").write_bytes(b"01234567")
    manifest = {
        **{"format": "lmkit shard 1", "dtype": "<u2", "num_tokens": 4, "num_documents": 1},
        **{"num_lines": 1, "num_bytes": 8, "num_unknown": 0, "tokenizer": "", "read": {}},
        **{"vocabulary_size": 9, "files": dict.fromkeys((*names, "document_ids"), record)},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert Shard.open(tmp_path).num_tokens == 4
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match="the prepared data is damaged: found not a whole manifest"):
        Shard.open(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "3", '{"format": "lmkit split 1", "shards": []}'])
@pytest.mark.parametrize("opened", [Shard, TokenStore])
def test_a_file_that_is_no_manifest_is_damage(tmp_path, text, opened):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="the prepared data is damaged: found not a whole manifest"):
        opened.open(tmp_path)


@pytest.mark.parametrize("shards", [3, [3], [{"sha256": ""}], {"a": 1}])
def test_a_hostile_list_of_shards_is_damage(tmp_path, shards):
    text = json.dumps({"format": "lmkit split 1", "shards": shards})
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="the prepared data is damaged"):
        TokenStore.open(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": "lmkit tokenizer 1", "name": "characters", "settings": {}, "vocabulary": [1]}',
        '{"format": "lmkit tokenizer 1", "name": "os.system"}',
        '{"format": "lmkit tokenizer 1", "name": ' + "9" * 5000 + "}",
    ],
)
def test_a_hostile_tokenizer_is_damage(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"damaged|unknown tokenizer"):
        load_tokenizer(tmp_path)


def test_a_row_that_never_ends_is_refused(tmp_path, monkeypatch):
    """Neither an open quote nor fields without an end fill the memory."""
    monkeypatch.setattr(records, "MAX_DOCUMENT", 40)
    path = tmp_path / "a.csv"
    for row in ('1,"open' + "\nxxxxxxxx" * 9, "1" + ',"\n"' * 20):
        path.write_text("id,text\n0,fine\n" + row + "\n")
        with pytest.raises(UserError) as error:
            list(records.csv_column(path, records.Table()))
        assert str(error.value) == (
            f"{path} has a row of more than 40 characters, from line 3 on: is a quote left open? "
            "Where quotes are text, set data.quote=null"
        )


def test_xz_that_needs_much_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_XZ_MEMORY", 1 << 20)
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"a few words", preset=9))
    with pytest.raises(UserError) as error:
        list(reading.text_lines(path))
    assert str(error.value) == (
        f"{path} is damaged (Memory usage limit exceeded): make the .xz file anew"
    )
