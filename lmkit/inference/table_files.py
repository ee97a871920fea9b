"""Tables from and to files: CSV, TSV, parquet and JSON lines."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from lmkit.corpus.finding import compression
from lmkit.corpus.reading import Expansion, open_bytes
from lmkit.corpus.records import table_rows
from lmkit.errors import UserError, cannot_write
from lmkit.inference.frames import repeated, table_of
from lmkit.system import paths
from lmkit.system.files import atomically, strict_json

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
SUFFIXES = (*DELIMITERS, *PARQUET, *JSON_LINES)
KNOWN = "a table is .csv, .tsv, .parquet or .jsonl"
MAX_CELL = (1 << 31) - 1  # characters; Python's own limit is 128 KiB
# Of a table that is written: the most rows at a time, and the most characters of their texts.
ROWS_AT_ONCE = 1 << 16
TEXT_AT_ONCE = 1 << 28
# The first bytes of files that are no text, and what they are.
_BEGINNINGS = {
    b"PK\x03\x04": "it begins as a spreadsheet or .zip archive: save the table as CSV",
    b"PAR1": "it begins as parquet: give its name the end .parquet",
    b"\x1f\x8b": "it begins as gzip: give its name the end .gz",
    b"\xff\xfe": "it begins as UTF-16: save the table as UTF-8",
    b"\xfe\xff": "it begins as UTF-16: save the table as UTF-8",
}


class Items(NamedTuple):
    """A table from a file, with the number of the line that each row begins in, if it has lines."""

    table: pa.Table
    path: Path
    lines: Sequence[int] | None

    def row(self, index: int) -> str:
        """What messages call a row."""
        if self.lines is None:
            return f"{self.path}, row {index + 1:,}"
        return f"{self.path}, line {self.lines[index]:,}"


def suffix_of(path: Path, key: str) -> str:
    """The suffix that says the format of a table; raises UserError for another one."""
    name = path.name.removesuffix(compression(path.name))
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{key}={path}: {KNOWN}, by the end of its name")
    return suffix


def read_items(file: str) -> Items:
    """The table in a file; one of text may be compressed. Cells of CSV and TSV stay texts, as they
    are written; an empty one is null."""
    path = paths.found_at(file, "table")
    if not path.exists():
        raise UserError(f"table={file} does not exist; {paths.nearby(path)}")
    if not path.is_file():
        raise UserError(f"table={file} is not a file; {paths.nearby(path / '*')}")
    suffix = suffix_of(path, "table")
    if suffix in PARQUET:
        items = Items(_read_parquet(path), path, None)
    elif suffix in JSON_LINES:
        items = _read_json_lines(path)
    else:
        items = _read_csv(path, DELIMITERS[suffix])
    if not items.table.num_rows:
        raise UserError(f"{path} has no rows: give a table with one item in each")
    return items


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow
    from pyarrow import parquet

    try:
        footer = parquet.read_metadata(path)
        groups = (footer.row_group(i) for i in range(footer.num_row_groups))
        Expansion(path).add(sum(group.total_byte_size for group in groups))
        return parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole parquet file: {error}") from None


def _read_text(path: Path) -> str:
    """The text of a UTF-8 file with its line ends as they are, without a byte order mark."""
    with open_bytes(path) as stream:
        data = stream.read()
    known = (what for start, what in _BEGINNINGS.items() if data.startswith(start))
    if (what := next(known, None)) is not None:
        raise UserError(f"{path} is no text: {what}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line:,} is not UTF-8: byte 0x{error.object[error.start]:02x} "
            f"({error.reason}); save the table as UTF-8"
        ) from None


def _read_csv(path: Path, delimiter: str) -> Items:
    import pyarrow as pa

    rows: list[list[str]] = []
    lines: list[int] = []
    for line, row in _rows(path, delimiter):
        if rows and len(row) != len(rows[0]):
            raise UserError(
                f"{path}, line {line:,} has {len(row)} cells, the first row {len(rows[0])}: put "
                f"double quotes around a cell that holds {delimiter!r}"
            )
        rows.append(row)
        lines.append(line)
    if not rows:
        raise UserError(f"{path} is empty: its first row must name the columns")
    names = rows[0]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path} has two columns {twice[0]!r}: rename one")
    columns = [[row[i] or None for row in rows[1:]] for i in range(len(names))]
    arrays = [pa.array(column, pa.string()) for column in columns]
    return Items(pa.table(arrays, names), path, lines[1:])


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of its first line; blank lines are skipped."""
    csv.field_size_limit(MAX_CELL)
    remedy = "; within a cell in double quotes, write a double quote twice"
    return table_rows(path, io.StringIO(_read_text(path), newline=""), delimiter, remedy)


def _read_json_lines(path: Path) -> Items:
    records, lines = [], []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise UserError(f"{path}, line {number:,} is not JSON: {what}") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number:,} is no JSON object, as each row must be")
        records.append(record)
        lines.append(number)
    return Items(table_of(records, str(path)), path, lines)


def check_out(out: str, table: pa.Table) -> Path:
    """The path of a new table; raises UserError if it cannot become one, before time is spent."""
    path = paths.located(out)
    suffix = suffix_of(path, "out")
    if compression(path.name):
        raise UserError(f"out={out}: tables are written uncompressed; leave the last suffix out")
    if os.path.lexists(path):
        raise UserError(f"out={out} exists: name another file, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"out={out}: there is no directory {path.parent}; {paths.nearby(path)}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        what = f"out={out}: cannot write into {path.parent}"
        raise cannot_write(what, path, error, "take another directory") from None
    for field in table.schema if suffix not in PARQUET else ():
        _check_writable(field, suffix, out)
    return path


def _check_writable(field: pa.Field, suffix: str, out: str) -> None:
    import pyarrow.types as of

    kind = field.type.value_type if of.is_dictionary(field.type) else field.type
    text = of.is_string(kind) or of.is_large_string(kind) or of.is_string_view(kind)
    plain = text or of.is_primitive(kind) or of.is_null(kind) or of.is_decimal(kind)
    nested = suffix in JSON_LINES and (of.is_nested(kind) or plain)
    if not (plain or nested):
        raise UserError(
            f"out={out}: column {field.name!r} holds {kind}, which {suffix} has no cell for; take "
            "an out that ends in .parquet, or leave the column out"
        )


def write_table(path: Path, table: pa.Table, rows: Any, measures: pa.Table) -> None:
    """Write `repeated(table, rows, measures)` to a new file, whole or not at all."""
    with atomically(path) as file:
        size = max(1, min(ROWS_AT_ONCE, TEXT_AT_ONCE // max(1, _widest(table))))
        with _Writer(file, path.suffix.lower()) as writer:
            for begin in range(0, len(rows), size):
                some = np.asarray(rows[begin : begin + size])
                writer.write(repeated(table, some, measures.slice(begin, size)))
        if os.path.lexists(path):
            raise UserError(f"{path} has come into being meanwhile: name another out, or remove it")


def _widest(table: pa.Table) -> int:
    """A bound on the bytes of the texts in a row."""
    import pyarrow.compute as pc
    import pyarrow.types as of

    texts = (c for c in table.columns if of.is_string(c.type) or of.is_large_string(c.type))
    return sum(pc.max(pc.binary_length(column)).as_py() or 0 for column in texts)


class _Writer:
    """Writes parts of a table, in the format that a suffix says."""

    def __init__(self, file: IO[bytes], suffix: str) -> None:
        self._file, self._suffix = file, suffix
        self._library: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Close the library's writer, which would else write later into a file that is closed."""
        with contextlib.suppress(OSError, ValueError) if kind else contextlib.nullcontext():
            if self._library is not None:
                self._library.close()

    def write(self, part: pa.Table) -> None:
        if self._suffix in JSON_LINES:
            for row in part.to_pylist():
                self._file.write(f"{strict_json(_plain(row))}\n".encode())
            return
        if self._library is None:
            self._library = self._begin(part.schema)
        self._library.write_table(part)

    def _begin(self, schema: pa.Schema) -> Any:
        if self._suffix in PARQUET:
            from pyarrow import parquet

            return parquet.ParquetWriter(self._file, schema)
        from pyarrow import csv as arrow_csv

        options = arrow_csv.WriteOptions(delimiter=DELIMITERS[self._suffix])
        return arrow_csv.CSVWriter(self._file, schema, write_options=options)


def _plain(value: Any) -> Any:
    """A value as JSON has it: dates, times and decimals as texts."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
