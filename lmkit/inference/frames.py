"""Tables in memory: pandas DataFrames, pyarrow Tables, lists of dicts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from lmkit.errors import UserError
from lmkit.system import paths

if TYPE_CHECKING:
    import pyarrow as pa


def table_of(records: Sequence[dict[str, Any]], where: str) -> pa.Table:
    """A table of dicts; a key that one of them lacks is null there."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for record in records for name in record))
    arrays = []
    for name in names:
        try:
            arrays.append(pa.array([record.get(name) for record in records]))
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            raise UserError(f"{where}, column {name!r} cannot be a column: {error}") from None
    return pa.table(arrays, names)


def is_pandas(frame: Any) -> bool:
    pandas = sys.modules.get("pandas")  # somebody has one only if it is imported
    return pandas is not None and isinstance(frame, pandas.DataFrame)


def column_names(frame: Any) -> list[str]:
    """The names of the columns of a pandas DataFrame or a pyarrow Table."""
    return list(frame.columns if is_pandas(frame) else frame.column_names)


def column(frame: Any, name: str, where: str) -> list[Any]:
    """The values of a column, None where there is none; raises UserError if it is not there."""
    names = column_names(frame)
    if name not in names:
        near = get_close_matches(name, [n for n in names if isinstance(n, str)], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        shown = paths.listed([str(each) for each in names])
        divided = [sign for sign in ("\t", ";", ",") if len(names) == 1 and sign in str(names[0])]
        more = f"; its cells look divided by {divided[0]!r}, save it with commas" if divided else ""
        raise UserError(f"{where} has no column {name!r}: {hint}it has {shown}{more}")
    if names.count(name) > 1:
        raise UserError(f"{where} has two columns {name!r}: rename one")
    if not is_pandas(frame):
        return frame.column(name).to_pylist()
    values = frame[name]
    return [None if gone else value for value, gone in zip(values, values.isna(), strict=True)]


def repeated(frame: Any, rows: Any, measures: pa.Table) -> Any:
    """The rows of a DataFrame or Table by number, with the columns of `measures` beside them."""
    if is_pandas(frame):
        import pandas

        items = frame.iloc[rows].reset_index(drop=True)
        return pandas.concat([items, measures.to_pandas()], axis=1)
    items = frame.take(rows)
    for name in measures.column_names:
        items = items.append_column(name, measures.column(name))
    return items
