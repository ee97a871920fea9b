"""Tables from and to files: what passes through unchanged, and what is refused."""

import codecs
import csv
import errno
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lmkit.errors import UserError, as_user_error
from lmkit.inference import table_files
from lmkit.inference.table_files import check_out, read_items, write_table

MEASURES = pa.table({"word": ["a", 'b"', "c"], "bits": pa.array([1.5, None, 0.25])})
ROWS = [0, 0, 1]
CELLS = st.text(st.sampled_from([*"abNA017 ,;\"'\t\n\r|#=", "é", "\u2028", "\x1c"]), max_size=6)


def written(path: Path, table: pa.Table, rows=ROWS, measures=MEASURES) -> Path:
    write_table(check_out(str(path), table), table, rows, measures)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4))
def test_cells_of_csv_pass_through(tmp_path, suffix, cells):
    delimiter = table_files.DELIMITERS[suffix]
    source, out = tmp_path / f"items{suffix}", tmp_path / f"words{suffix}"
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("id", "sentence"), *cells])
    source.write_bytes(text.getvalue().encode())
    out.unlink(missing_ok=True)
    items = read_items(str(source))
    assert items.table.column_names == ["id", "sentence"]
    found = [tuple(cell or "" for cell in row.values()) for row in items.table.to_pylist()]
    assert found == cells
    rows = [i for i in range(len(cells)) for _ in range(2)]
    measures = pa.table({"word": ["w"] * len(rows)})
    written(out, items.table, rows, measures)
    again = list(
        csv.reader(io.StringIO(out.read_bytes().decode(), newline=""), delimiter=delimiter)
    )
    assert again == [["id", "sentence", "word"], *([*cells[row], "w"] for row in rows)]
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(out, sep=delimiter, dtype=str, keep_default_na=False)
    assert frame.to_numpy().tolist() == again[1:]


def test_lines_of_rows_are_counted_as_an_editor_counts_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfid,sentence\r\n1,"two\r\nlines"\r\n\r\n2,x\r\n')
    items = read_items(str(path))
    assert items.table.to_pylist() == [
        {"id": "1", "sentence": "two\r\nlines"},
        {"id": "2", "sentence": "x"},
    ]
    assert items.row(0) == f"{path}, line 2"
    assert items.row(1) == f"{path}, line 5"


def test_a_header_of_r_with_a_column_without_a_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('"","sentence"\n"1","a b c"\n"2",""\n')
    items = read_items(str(path))
    assert items.table.to_pylist() == [{"": "1", "sentence": "a b c"}, {"": "2", "sentence": None}]
    written(tmp_path / "b.csv", items.table)
    assert (tmp_path / "b.csv").read_text() == (
        '"","sentence","word","bits"\n"1","a b c","a",1.5\n"1","a b c","b""",\n"2",,"c",0.25\n'
    )


def test_a_table_may_be_compressed(tmp_path):
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(b"sentence\tn\na b\t1\n"))
    assert read_items(str(path)).table.to_pylist() == [{"sentence": "a b", "n": "1"}]


TYPED = {
    "n": pa.array([1, None], pa.int16()),
    "x": pa.array([0.1, float("nan")]),
    "when": pa.array([0, 1], pa.timestamp("ms", "UTC")),
    "kind": pa.array(["a", "b"]).dictionary_encode(),
    "yes": pa.array([True, None]),
    "sentence": pa.array(["a b", "c"], pa.large_string()),
}


def test_parquet_keeps_types(tmp_path):
    table = pa.table(TYPED)
    parquet.write_table(table, tmp_path / "a.parquet")
    items = read_items(str(tmp_path / "a.parquet"))
    assert items.row(1) == f"{tmp_path}/a.parquet, row 2"
    found = parquet.read_table(written(tmp_path / "b.parquet", items.table))
    assert found.drop_columns(["word", "bits"]).schema.types == items.table.schema.types
    assert found.column("when").to_pylist() == table.column("when").take(ROWS).to_pylist()
    assert found.column("bits").to_pylist() == [1.5, None, 0.25]


def test_typed_columns_as_text(tmp_path):
    table = pa.table(TYPED)
    lines = written(tmp_path / "b.jsonl", table).read_text().splitlines()
    assert json.loads(lines[0]) == {
        **{"n": 1, "x": 0.1, "when": "1970-01-01 00:00:00+00:00", "kind": "a", "yes": True},
        **{"sentence": "a b", "word": "a", "bits": 1.5},
    }
    assert json.loads(lines[2]) == {
        **{"n": None, "x": None, "when": "1970-01-01 00:00:00.001000+00:00", "kind": "b"},
        **{"yes": None, "sentence": "c", "word": "c", "bits": 0.25},
    }
    text = written(tmp_path / "b.csv", table).read_text().splitlines()
    assert text[0] == '"n","x","when","kind","yes","sentence","word","bits"'
    assert text[1].startswith('1,0.1,1970-01-01 00:00:00.000Z,"a",true,"a b","a",1.5')


def test_json_lines_pass_through(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"id": 7, "sentence": "a b", "day": "2020-01-01", "deep": {"a": [1, None]}},
        {"sentence": "\u2028 c", "more": 1.0},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n\n" for row in rows))
    items = read_items(str(path))
    assert items.row(1) == f"{path}, line 3"
    out = written(tmp_path / "b.jsonl", items.table)
    found = [json.loads(line) for line in out.read_text().split("\n")[:-1]]
    names = ["id", "sentence", "day", "deep", "more"]
    for row, each, measure in zip(ROWS, found, MEASURES.to_pylist(), strict=True):
        assert each == {**{name: rows[row].get(name) for name in names}, **measure}


def test_a_large_table_is_written_in_parts(tmp_path, monkeypatch):
    table = pa.table({"id": [*map(str, range(7))]})
    measures = pa.table({"n": list(range(21))})
    rows = [i // 3 for i in range(21)]
    whole = [
        written(tmp_path / f"a{suffix}", table, rows, measures) for suffix in table_files.SUFFIXES
    ]
    for key, size in (("ROWS_AT_ONCE", 4), ("TEXT_AT_ONCE", 2), ("TEXT_AT_ONCE", 0)):
        monkeypatch.setattr(table_files, key, size)
        check_parts(tmp_path, whole, table, rows, measures)


def check_parts(place, whole, table, rows, measures):
    for path in whole:
        (place / f"b{path.suffix}").unlink(missing_ok=True)
        parts = written(place / f"b{path.suffix}", table, rows, measures)
        if path.suffix == ".parquet":
            assert parquet.read_table(parts).equals(parquet.read_table(path))
        else:
            assert parts.read_bytes() == path.read_bytes()


UNREADABLE = [
    ("a.csv", b"", "{path} is empty: its first row must name the columns"),
    ("a.csv", b"sentence\n", "{path} has no rows: give a table with one item in each"),
    ("a.csv", b"a,a\n1,2\n", "{path} has two columns 'a': rename one"),
    (
        "a.csv",
        b'a,sentence\n1,"x\ny"\n2,b,c\n',
        "{path}, line 4 has 3 cells, the first row 2: put double quotes around a cell that holds "
        "','",
    ),
    (
        "a.csv",
        b'sentence\n"open\nb\n',
        "{path}, line 2 to 3 is no row of a table: unexpected end of data; within a cell in double "
        "quotes, write a double quote twice",
    ),
    (
        "a.csv",
        "id,sentence\n1,a\n2,caf\xe9\n".encode("latin-1"),
        "{path}, line 3 is not UTF-8: byte 0xe9 (invalid continuation byte); save the table as "
        "UTF-8",
    ),
    (
        "a.csv",
        b"PK\x03\x04",
        "{path} is no text: it begins as a spreadsheet or .zip archive: save the table as CSV",
    ),
    (
        "a.tsv",
        codecs.BOM_UTF16_LE + b"a\0",
        "{path} is no text: it begins as UTF-16: save the table as UTF-8",
    ),
    ("a.jsonl", b'{"a": 1}\n{"a": \n', "{path}, line 2 is not JSON: Expecting value"),
    ("a.jsonl", b"[1]\n", "{path}, line 1 is no JSON object, as each row must be"),
    (
        "a.jsonl",
        b'{"a": 1}\n{"a": "x"}\n',
        "{path}, column 'a' cannot be a column: Could not convert 'x' with type str: tried to "
        "convert to int64",
    ),
    (
        "a.xlsx",
        b"PK",
        "table={path}: a table is .csv, .tsv, .parquet or .jsonl, by the end of its name",
    ),
    ("a", b"x", "table={path}: a table is .csv, .tsv, .parquet or .jsonl, by the end of its name"),
]


@pytest.mark.parametrize(("name", "data", "message"), UNREADABLE)
def test_files_that_are_no_tables(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_items(str(path))
    assert str(error.value) == message.format(path=path)


def test_a_file_that_is_only_called_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("id,sentence\n")
    with pytest.raises(UserError, match=r"a\.parquet is not a whole parquet file: "):
        read_items(str(path))


def test_a_parquet_file_that_expands_without_end(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    table = pa.table({"sentence": ["a" * 10**5] * 99})
    parquet.write_table(table, path, use_dictionary=False, compression="zstd")
    assert read_items(str(path)).table.num_rows == 99
    monkeypatch.setattr("lmkit.corpus.reading.ALWAYS_ALLOWED", 1)
    with pytest.raises(UserError, match=r"a\.parquet has .* bytes and expands to more than 9,"):
        read_items(str(path))


def test_a_table_that_is_not_there(tmp_path):
    (tmp_path / "stimuli.csv").write_text("sentence\na\n")
    with pytest.raises(UserError) as error:
        read_items(str(tmp_path / "stimulus.csv"))
    assert str(error.value) == (
        f"table={tmp_path}/stimulus.csv does not exist; {tmp_path} has stimuli.csv"
    )
    with pytest.raises(UserError, match="is not a file"):
        read_items(str(tmp_path))


def test_where_a_table_cannot_be_written(tmp_path):
    table = pa.table({"sentence": ["a"], "deep": [[1]]})
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere")
    for name in ("there.csv", "link.csv"):
        with pytest.raises(UserError) as error:
            check_out(str(tmp_path / name), table)
        assert str(error.value) == (
            f"out={tmp_path}/{name} exists: name another file, or remove it"
        )
    with pytest.raises(
        UserError, match=r"there is no directory .*/gone; .* has link.csv, there.csv"
    ):
        check_out(str(tmp_path / "gone" / "a.csv"), table)
    with pytest.raises(UserError, match=r"out=.*a\.txt: a table is .csv, .tsv, .parquet or .jsonl"):
        check_out(str(tmp_path / "a.txt"), table)
    with pytest.raises(UserError, match=r"a\.csv\.gz: tables are written uncompressed"):
        check_out(str(tmp_path / "a.csv.gz"), table)
    with pytest.raises(UserError) as error:
        check_out(str(tmp_path / "a.csv"), table)
    assert str(error.value) == (
        f"out={tmp_path}/a.csv: column 'deep' holds list<item: int64>, which .csv has no cell for; "
        "take an out that ends in .parquet, or leave the column out"
    )
    assert check_out(str(tmp_path / "a.jsonl"), table) == tmp_path / "a.jsonl"


def test_a_directory_that_cannot_be_written():
    with pytest.raises(UserError, match=r"out=/proc/a\.csv: cannot write into /proc: .*; take ano"):
        check_out("/proc/a.csv", pa.table({"sentence": ["a"]}))


@pytest.mark.parametrize("suffix", table_files.SUFFIXES)
def test_nothing_half_written_is_left(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(table_files, "ROWS_AT_ONCE", 1)
    path, table = tmp_path / f"a{suffix}", pa.table({"id": ["1", "2"]})
    repeated, calls = table_files.repeated, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return repeated(*arguments)

    monkeypatch.setattr(table_files, "repeated", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_table(path, table, ROWS, MEASURES)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", table_files.SUFFIXES)
def test_a_disk_that_is_full_is_named(tmp_path, suffix, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = lambda path, mode: io.BufferedWriter(Full(path, mode))  # noqa: E731
    monkeypatch.setattr(Path, "open", opened)
    path, table = tmp_path / f"a{suffix}", pa.table({"id": ["1", "2"]})
    with pytest.raises(OSError, match="No space left on device") as error:
        write_table(path, table, ROWS, MEASURES)
    message = str(as_user_error(error.value))
    assert message.startswith(f"cannot write {path}: No space left on device (")
    assert message.endswith("; make room there")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_came_meanwhile_stays(tmp_path):
    path, table = tmp_path / "a.csv", pa.table({"id": ["1", "2"]})
    path.write_text("theirs")
    with pytest.raises(UserError, match=r"a\.csv has come into being meanwhile"):
        write_table(path, table, ROWS, MEASURES)
    assert path.read_text() == "theirs"
    assert [each.name for each in tmp_path.iterdir()] == ["a.csv"]
