"""Surprisal tables: a table of items in, a row for each word of their texts out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lmkit.corpus.records import as_text
from lmkit.errors import UserError
from lmkit.inference import frames
from lmkit.inference.tokens import Reads, read_tokens
from lmkit.inference.words import (
    Integers,
    Measures,
    Words,
    previous,
    read_words,
    reductions,
    sum_up,
)
from lmkit.system.paths import listed
from lmkit.tokenizer import Tokenizer
from lmkit.windows.lanes import Protocol

if TYPE_CHECKING:
    import pyarrow as pa

Joint = Literal["space", "newline"]
FirstWord = Literal["scored", "missing"]
JOINTS = {"space": " ", "newline": "\n"}
MAX_SPILLOVER = 20
DIGITS = 6  # after the point of a measure in bits: more than float32 computes


@dataclass(frozen=True)
class Layout:
    """What is read from a table of items, and what is written beside it.

    text_column: the column of the texts; each row's is read from the zero state, after `<eos>`.
    context_column: rows with the same value there are one text, in their order, joined by
    `joined_by`, a space or a newline. spillover: for so many words before, their surprisal and
    length too. first_word: missing: no measures of the first word of a text, which has no words
    before it. prefix: what the names of the new columns begin with. protocol: document, or sentence
    for every line by itself; None: the model's. Raises UserError for what cannot be.
    """

    text_column: str = "sentence"
    context_column: str | None = None
    spillover: int = 0
    first_word: FirstWord = "scored"
    joined_by: Joint = "space"
    prefix: str = ""
    protocol: Protocol | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.spillover <= MAX_SPILLOVER:
            raise UserError(f"spillover={self.spillover}: must be from 0 to {MAX_SPILLOVER}")
        for key, known in (("first_word", FirstWord), ("joined_by", Joint)):
            _check_choice(key, getattr(self, key), known.__args__)  # type: ignore[attr-defined]
        if self.protocol == "stream":
            raise UserError(
                "protocol=stream: in a table each row is a text of its own; for rows that are read "
                "on from each other name their context_column, under protocol=document"
            )

    def by_line(self, trained: Reads) -> bool:
        """Whether each line is read by itself."""
        by_line = (self.protocol or trained.protocol) == "sentence"
        if by_line and self.context_column is not None and self.joined_by == "newline":
            raise UserError(
                "protocol=sentence reads each line from the zero state, so that nothing would be "
                "carried over the rows that joined_by=newline makes lines: set protocol=document, "
                "or joined_by=space"
            )
        return by_line

    def columns(self, trained: Reads) -> list[str]:
        """The names of the new columns."""
        corrected = ["surprisal_corrected"] if trained.word_starts is not None else []
        names = ["word", "position", "length", "surprisal", *corrected, "entropy"]
        names += ["entropy_reduction", "rank", "unknown", "num_tokens"]
        for back in range(1, self.spillover + 1):
            names += [f"{name}_prev{back}" for name in ("surprisal", *corrected, "length")]
        return [self.prefix + name for name in names]


def _check_choice(key: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        near = get_close_matches(str(value), known, n=1)
        raise UserError(f"{key}={value}: expected {' or '.join(near or known)}")


class WordTable(NamedTuple):
    """What was measured: rows (words,), the number of each word's row; columns; and counts.

    num_unknown: words with a token that is `<unk>`.
    """

    rows: Integers
    columns: pa.Table
    num_texts: int
    num_tokens: int
    num_unknown: int


def tabulate(
    trained: Reads,
    frame: Any,
    layout: Layout,
    where: str = "the table",
    row: Callable[[int], str] = "row {}".format,
) -> WordTable:
    """Measure the words of a DataFrame or Table. where: its name in messages; row: that of a row.

    Raises UserError for a table without the columns, with names that the new columns have, or with
    cells that are empty or no text.
    """
    names = layout.columns(trained)
    if taken := [name for name in names if name in frames.column_names(frame)]:
        raise UserError(
            f"{where} has {listed(taken)} already, names of the words' columns: rename what it "
            "has, or set a prefix for the new columns, as prefix=lm_"
        )
    by_line = layout.by_line(trained)
    cells = _texts(frame, layout.text_column, where, row)
    texts = [[cell] for cell in cells]
    if layout.context_column is not None:
        ends = _story_ends(frame, layout.context_column, where, row)
        texts = [cells[begin:end] for begin, end in pairwise([0, *ends])]
    try:
        text, words = read_words(texts, JOINTS[layout.joined_by], trained.tokenizer, by_line)
    except UserError as error:
        raise _located(error, cells, trained.tokenizer, row) from None
    starts = trained.word_starts
    tokens = read_tokens(trained, text, "sentence" if by_line else "document", starts)
    ids = np.asarray(text.tokens)
    measures = sum_up(
        words,
        tokens,
        ids == (-1 if trained.tokenizer.unk_id is None else trained.tokenizer.unk_id),
        None if starts is None else starts[ids],
    )
    columns = _columns(words, measures, layout, names)
    num_unknown = int(measures.unknown.sum())
    return WordTable(words.cell, columns, len(texts), text.num_tokens, num_unknown)


def _located(
    error: UserError, cells: Sequence[str], tokenizer: Tokenizer, row: Callable[[int], str]
) -> UserError:
    """The error of a tokenizer that cannot encode every text, with the row of the text."""
    for i, cell in enumerate(cells):
        try:
            tokenizer.encode([cell])
        except UserError as own:
            return UserError(f"{row(i)}: {own}")
    return error


def of_frame(trained: Reads, frame: Any, layout: Layout) -> Any:
    """A row for each word of a DataFrame, a Table or a list of dicts, as one of its kind."""
    import pyarrow as pa

    is_list = isinstance(frame, list) and all(isinstance(item, dict) for item in frame)
    if not (is_list or isinstance(frame, pa.Table) or frames.is_pandas(frame)):
        raise UserError(
            "a table is a pandas DataFrame, a pyarrow Table or a list of dicts, not "
            f"{type(frame).__name__}"
        )
    if not len(frame):
        raise UserError("the table has no rows: give one with an item in each")
    if not is_list:
        table = tabulate(trained, frame, layout)
        return frames.repeated(frame, table.rows, table.columns)
    used = (layout.text_column, layout.context_column)  # others may hold anything
    records = [{key: item[key] if key in used else None for key in item} for item in frame]
    table = tabulate(trained, frames.table_of(records, "the table"), layout)
    pairs = zip(table.rows.tolist(), table.columns.to_pylist(), strict=True)
    return [{**frame[row], **columns} for row, columns in pairs]


def _texts(frame: Any, name: str, where: str, row: Callable[[int], str]) -> list[str]:
    """The texts of a column, with "\\n" for each line end."""
    values = frames.column(frame, name, where)
    texts = []
    for i, value in enumerate(values):
        text = as_text(value, f"{row(i)}, column {name!r}")
        texts.append("" if text.isspace() else text)
    if empty := [row(i) for i, text in enumerate(texts) if not text]:
        several = f", and {len(empty) - 1:,} more such cells" if len(empty) > 1 else ""
        raise UserError(
            f"{empty[0]}: column {name!r} is empty{several}; give each row a text, or leave it out"
        )
    return texts


def _story_ends(frame: Any, name: str, where: str, row: Callable[[int], str]) -> list[int]:
    """The row before which each text ends: rows that follow each other with the same value."""
    values = frames.column(frame, name, where)
    ends: list[int] = []
    seen = set()
    for i, value in enumerate(values):
        if value is None or not isinstance(value, Hashable):
            what = "is empty" if value is None else f"holds {type(value).__name__}"
            raise UserError(
                f"{row(i)}: context_column={name} {what}; name the text that the row belongs to"
            )
        if i and value == values[i - 1]:
            continue
        if value in seen:
            raise UserError(
                f"{row(i)}: context_column={name} has {value!r} again after other values; put the "
                "rows of a text together, or give it another name where it is read again"
            )
        seen.add(value)
        ends += [i] if i else []
    return [*ends, len(values)]


def _columns(words: Words, measures: Measures, layout: Layout, names: Sequence[str]) -> pa.Table:
    """The new columns in the order of the texts; null where a word has no such value."""
    import pyarrow as pa

    begins = words.begins
    missing = begins if layout.first_word == "missing" else np.zeros_like(begins)
    rank_missing = missing | (measures.num_tokens == 0)
    bits = [np.where(missing, np.nan, measures.surprisal)]
    if measures.corrected is not None:
        bits.append(np.where(missing, np.nan, measures.corrected))
    entropy = np.where(missing, np.nan, measures.entropy)
    length = np.array([len(word) for word in words.words], np.int64)
    new_row = np.diff(words.cell, prepend=-1) > 0
    number = np.arange(len(length))
    position = 1 + number - np.maximum.accumulate(np.where(new_row, number, 0))
    columns = [pa.array(words.words, pa.string()), pa.array(position), pa.array(length)]
    columns += [*map(_floats, bits), _floats(entropy), _floats(reductions(entropy, begins))]
    columns += [pa.array(measures.rank, mask=rank_missing), pa.array(measures.unknown)]
    columns.append(pa.array(measures.num_tokens))
    for _ in range(layout.spillover):
        number = previous(number, begins)
        columns += [_floats(np.where(number < 0, np.nan, each[number])) for each in bits]
        columns.append(pa.array(length[number], mask=number < 0))
    return pa.table(columns, list(names))


def _floats(values: Any) -> pa.Array:
    """Rounded, and null for what is not a number."""
    import pyarrow as pa

    return pa.array(np.round(values, DIGITS) + 0.0, from_pandas=True)  # + 0.0: no -0.0
