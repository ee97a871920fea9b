"""Reads documents that are fields of records: lines of JSON, rows of CSV and of parquet."""

import contextlib
import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmkit.corpus.cutting import MAX_DOCUMENT
from lmkit.corpus.finding import compression
from lmkit.corpus.reading import UTF8, Expansion, text_lines
from lmkit.errors import UserError
from lmkit.system.paths import listed

ENCODING = "data.encoding"
_TABS = (".tsv", ".tab")
# Python limits a field of CSV to 128 KiB, for the whole process; here rows are limited instead.
_FIELD = (1 << 31) - 1


def json_fields(path: Path, field: str, encoding: str = UTF8) -> Iterator[tuple[int, str]]:
    """The line number and the text field of each line of JSON; blank lines are skipped."""
    for number, line in enumerate(text_lines(path, encoding, ENCODING), 1):
        if line.isspace():
            continue
        try:
            record = json.loads(line.removesuffix("\n"))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}"
            ) from None
        except (ValueError, RecursionError) as error:  # a number or nesting beyond Python's limits
            raise UserError(f"{path}, line {number} is no record: {error}") from None
        if not isinstance(record, dict):
            raise UserError(
                f"{path}, line {number} is {type(record).__name__}, not an object with "
                f"a field {field!r}"
            )
        if field not in record:
            raise UserError(
                f"{path}, line {number} has no field {field!r}: it has {listed(list(record))}; "
                "set data.field"
            )
        yield number, as_text(record[field], f"{path}, line {number}, field {field!r}")


def as_text(value: object, where: str) -> str:
    """A value as text, "" for null. Raises UserError for other types and for half a surrogate pair,
    which JSON can hold and UTF-8 cannot. where: names the value in messages."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where} is {type(value).__name__}, not a string")
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} is not Unicode text: {error.reason}") from None
    return value.replace("\r\n", "\n")


@dataclass(frozen=True)
class Table:
    """The format of a CSV file, by default that of RFC 4180.

    column: a name in the first row, or without a header the number, from 1. delimiter: None is a
    tab in .tsv and .tab, else a comma. quote: the character around a field that holds a delimiter,
    a quote (doubled) or a line end; with None, quotes are text and a line is a row.
    """

    column: str | int = "text"
    delimiter: str | None = None
    quote: str | None = '"'
    header: bool = True

    def __post_init__(self) -> None:
        if not self.header and (not isinstance(self.column, int) or self.column < 1):
            raise UserError(
                f"data.header=false but data.column={self.column}: without names of columns give "
                "the number of one, from 1, as data.column=2"
            )
        for key in ("delimiter", "quote"):
            character = getattr(self, key)
            if character is not None and (len(character) != 1 or character in "\r\n"):
                raise UserError(f"data.{key}={character}: expected one character")
        if self.quote is not None and self.quote == self.delimiter:
            raise UserError(f"data.quote={self.quote} is data.delimiter too: set one of them")

    def divided(self, path: Path) -> str:
        """The delimiter of a file."""
        is_tabs = path.name.removesuffix(compression(path.name)).endswith(_TABS)
        return self.delimiter or ("\t" if is_tabs else ",")


def csv_column(path: Path, table: Table, encoding: str = UTF8) -> Iterator[tuple[int, str]]:
    """The number of the first line and one field of each row; blank lines are skipped."""
    index, width = -1, 0
    for number, row in _rows(path, table, encoding):
        if not width:
            index, width = _index(path, table, row), len(row)
            if table.header:
                continue
        if len(row) != width:
            raise UserError(
                f"{path}, line {number} has {len(row)} fields, the first row {width}: put quotes "
                f"around fields that hold {table.divided(path)!r}, or set data.delimiter or "
                "data.quote"
            )
        yield number, as_text(row[index], f"{path}, line {number}")


def _rows(path: Path, table: Table, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of its first line, through Python's `csv`.

    pyarrow's reader is faster, but its rows must fit into a block and its errors name no line.
    """
    csv.field_size_limit(_FIELD)
    size = 0  # characters of the row so far

    def lines() -> Iterator[str]:
        nonlocal size
        for line in text_lines(path, encoding, ENCODING):
            size += len(line)
            if size > MAX_DOCUMENT:
                raise UserError(
                    f"{path} has a row of more than {MAX_DOCUMENT:,} characters, from line {first} "
                    "on: is a quote left open? Where quotes are text, set data.quote=null"
                )
            yield line

    reader = csv.reader(
        lines(),
        delimiter=table.divided(path),
        quotechar=table.quote,
        quoting=csv.QUOTE_NONE if table.quote is None else csv.QUOTE_MINIMAL,
        strict=True,
    )
    while True:
        first, size = reader.line_num + 1, 0
        try:
            row = next(reader, None)
        except csv.Error as error:
            last = f" to {reader.line_num}" if reader.line_num > first else ""
            reason = str(error).partition(" - ")[0]  # the rest is for programmers
            raise UserError(
                f"{path}, line {first}{last} is no row of CSV: {reason}; where quotes are text, "
                "set data.quote=null"
            ) from None
        if row is None:
            return
        if row:
            yield first, row


def table_rows(
    path: Path, lines: Iterable[str], delimiter: str, remedy: str = ""
) -> Iterator[tuple[int, list[str]]]:
    """Each row of a table of CSV with the number of its first line; blank lines are skipped.

    By Python's `csv`, as the errors of pyarrow's reader name no line. remedy: the end of the
    message for what is no row.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            last = f" to {reader.line_num:,}" if reader.line_num > first else ""
            reason = str(error).partition(" - ")[0]  # the rest is for programmers
            raise UserError(
                f"{path}, line {first:,}{last} is no row of a table: {reason}{remedy}"
            ) from None
        if row is None:
            return
        if row:
            yield first, row


def _index(path: Path, table: Table, row: list[str]) -> int:
    """The index of the field with the text, from the first row."""
    if not table.header:
        assert isinstance(table.column, int)
        if table.column > len(row):
            raise UserError(f"{path} has {len(row)} columns: data.column={table.column} is none")
        return table.column - 1
    names = [name.strip() for name in row]
    number = names.count(str(table.column))
    if number == 1:
        return names.index(str(table.column))
    if number:
        raise UserError(f"{path} has {number} columns {table.column!r}: rename all but one")
    remedy = "set data.column, or data.header=false and a number where the first line names none"
    for other in ("\t", ";", "|", ",") if len(row) == 1 else ():
        if other in row[0]:
            remedy = f"its fields look divided by {other!r}: set data.delimiter"
            break
    raise UserError(f"{path} has no column {table.column!r}: it has {listed(names)}; {remedy}")


def parquet_column(
    path: Path, column: str, groups: range | None = None
) -> Iterator[tuple[int, str]]:
    """The number (from 1) and text of each row, in all or some row groups; reads batch by batch."""
    with _parquet(path, column) as file:
        groups = range(file.num_row_groups) if groups is None else groups
        number = sum(file.metadata.row_group(k).num_rows for k in range(groups.start))
        expansion = Expansion(path)
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=[column]):
            for value in batch.column(0):
                number += 1
                text = _scalar_text(value, f"{path}, row {number}")
                expansion.add(len(text))
                yield number, text


def num_row_groups(path: Path) -> int:
    """The number of row groups of a parquet file."""
    with _parquet(path) as file:
        return int(file.num_row_groups)


@contextlib.contextmanager
def _parquet(path: Path, column: str | None = None) -> Iterator[Any]:
    """An open parquet file, after its footer was checked for the column that is to be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        footer = parquet.read_metadata(path)
        if column is not None:
            _check_column(path, footer.schema.to_arrow_schema(), column)
            _check_declared(path, footer, column)
        # Read as a dictionary: a value that many rows repeat is in memory once.
        repeated = [column] if column is not None else None
        with parquet.ParquetFile(path, metadata=footer, read_dictionary=repeated) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole parquet file: {error}") from error


def _check_column(path: Path, schema: Any, column: str) -> None:
    from pyarrow import types

    names = schema.names
    if column not in names:
        raise UserError(f"{path} has no column {column!r}: it has {listed(names)}; set data.column")
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise UserError(f"{path}, column {column!r} is {kind}, not string; set data.column")


def _check_declared(path: Path, footer: Any, column: str) -> None:
    """Refuse pages that would expand too much, before they are read."""
    expansion = Expansion(path)
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            if chunk.path_in_schema == column:
                expansion.add(chunk.total_uncompressed_size)


def _scalar_text(value: Any, where: str) -> str:
    try:
        return as_text(value.as_py(), where)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8: byte offset {error.start} of the text ({error.reason})"
        ) from None
