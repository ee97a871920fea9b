"""Tables of minimal pairs: CSV or TSV with a column of good sentences and one of bad ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lmkit.corpus.finding import find_files
from lmkit.corpus.reading import text_lines
from lmkit.corpus.records import table_rows
from lmkit.errors import UserError
from lmkit.suite.items import Item, Suite, near, pair, sentence

SUFFIXES = (".csv", ".tsv", ".tab", *(f"{s}.{z}" for s in (".csv", ".tsv") for z in ("gz", "zst")))


def read(path: str, good: str, bad: str, group: str | None) -> Suite:
    """The suite of a file, or of all in a directory; raises UserError.

    good, bad, group: names of columns; without `group` each file is one.
    """
    if len({good, bad, group}) < 3:
        raise UserError(f"good={good}, bad={bad}, group={group}: name three different columns")
    items: list[Item] = []
    for file_name, file in find_files(path, "path", SUFFIXES).items():
        rows = _rows(file)
        _, header = next(rows, (1, []))
        columns = [column.strip() for column in header]
        keys = {"good": good, "bad": bad, "group": group}
        places = [_place(key, name, columns, file) for key, name in keys.items() if name]
        for number, row in rows:
            where = f"line {number}"
            if len(row) != len(columns):
                raise UserError(
                    f"{file}, {where} has {len(row)} fields, the first row {len(columns)}: put "
                    'quotes (") around fields that hold the delimiter'
                )
            texts = [
                sentence(row[place], file, f"{where}, column {columns[place]!r}")
                for place in places
            ]
            its_group = texts[2] if group else file_name.partition(".")[0]
            items.append(pair(str(number), its_group, texts[0], texts[1]))
    if not items:
        raise UserError(f"path={path} has no row under its first one: there is nothing to test")
    return Suite("table", tuple(items))


def _place(key: str, column: str, columns: Sequence[str], path: Path) -> int:
    """The index of the column that a key names."""
    if columns.count(column) == 1:
        return columns.index(column)
    if column in columns:
        raise UserError(f"{path} has several columns {column!r}: rename all but one")
    raise UserError(
        f"{path}, line 1 has no column {column!r} ({key}=COLUMN names another); "
        f"{near(column, dict.fromkeys(columns))}"
    )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of its first line; blank lines are skipped."""
    delimiter = "," if ".csv" in path.suffixes else "\t"
    return table_rows(path, text_lines(path), delimiter)
