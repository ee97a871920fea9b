"""Sources that are files on disk: text, JSON lines, CSV, parquet, WikiText."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lmkit.corpus import cutting, finding, records
from lmkit.corpus.file_source import FileSource, Span, TextFileSource
from lmkit.corpus.records import ENCODING, Table
from lmkit.corpus.source import SPLITS
from lmkit.system import paths

FINER = (
    "cut files finer with data.unit=paragraph, line or heading (and data.heading=PATTERN, as ^#)"
)


class Files(TextFileSource):
    """Text files, also compressed; a document is a file, paragraph, headed section or line."""

    def __init__(
        self,
        path: str | list[str],
        *,
        unit: Literal["file", "paragraph", "heading", "line"] = "file",
        heading: str | None = None,
        **settings: Any,
    ) -> None:
        """unit: what a document is.
        heading: the pattern of the lines that open a document, with unit=heading."""
        self._unit, self._heading = unit, heading
        self._cutter = cutting.cutter(unit, heading)
        self.finer = FINER if unit == "file" else ""
        super().__init__(path, **settings)

    def _how_read(self) -> dict[str, object]:
        return {**super()._how_read(), "unit": self._unit, "heading": self._heading}

    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        return cutting.documents(span.file, self._cutter, self._encoding, ENCODING)


def _ends(*names: str) -> tuple[str, ...]:
    """The suffixes of file names, with those of compressed files."""
    return tuple(f"{name}{codec}" for name in names for codec in ("", *finding.COMPRESSED))


class Jsonl(TextFileSource):
    """Lines of JSON, also compressed; a document is one field of a line."""

    suffixes = _ends(".jsonl", ".ndjson")

    def __init__(
        self,
        path: str | list[str],
        *,
        field: str = "text",
        **settings: Any,
    ) -> None:
        """field: the name of the field that holds the text."""
        self._field = field
        super().__init__(path, **settings)

    def _how_read(self) -> dict[str, object]:
        return {**super()._how_read(), "field": self._field}

    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        return records.json_fields(span.file, self._field, self._encoding)


class Csv(TextFileSource):
    """Tables as CSV or TSV, also compressed; a document is one column of a row."""

    suffixes = _ends(".csv", ".tsv", ".tab")

    def __init__(
        self,
        path: str | list[str],
        *,
        column: str | int = "text",
        delimiter: str | None = None,
        quote: str | None = '"',
        header: bool = True,
        **settings: Any,
    ) -> None:
        """column: its name in the first row, or its number, from 1, with header=false.
        delimiter: one character, or tab; null: a tab in .tsv and .tab, else a comma.
        quote: what is around a field that holds a delimiter or line end; null: quotes are text.
        header: whether the first row names the columns."""
        named = {"\\t": "\t", "tab": "\t"}
        delimiter = named.get(delimiter, delimiter) if delimiter else delimiter
        self._table = Table(column, delimiter, quote, header)
        super().__init__(path, **settings)

    def _how_read(self) -> dict[str, object]:
        return {**super()._how_read(), **asdict(self._table)}

    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        return records.csv_column(span.file, self._table, self._encoding)


class Parquet(FileSource):
    """Parquet files; a document is one column of a row."""

    suffixes = (".parquet",)

    def __init__(
        self,
        path: str | list[str],
        *,
        column: str = "text",
        **settings: Any,
    ) -> None:
        self._column = column
        super().__init__(path, **settings)

    def _how_read(self) -> dict[str, object]:
        return {**super()._how_read(), "column": self._column}

    def _spans(self, name: str, file: Path) -> list[tuple[Span, int]]:
        size = paths.state(file)[0]
        if size <= self.piece_bytes:
            return super()._spans(name, file)
        num_groups = records.num_row_groups(file)
        number = min(-(-size // self.piece_bytes), num_groups)
        bounds = [num_groups * n // number for n in range(number + 1)]
        return [
            (Span(name, file, range(*groups)), size // number)
            for groups in itertools.pairwise(bounds)
        ]

    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        return records.parquet_column(span.file, self._column, span.groups)


TITLE = "^ = [^=].* = $"


class WikiText(FileSource):
    """WikiText (Merity et al. 2016): a document is an article, opened by its ` = Title = `.

    The articles hold every line of a file; lines before the first title belong to the first.
    """

    def __init__(self, path: str) -> None:
        """path: of train, valid and test as .txt, .tokens, .raw, wiki.*.tokens or wiki.*.raw."""
        self._cutter = cutting.cutter("heading", TITLE)
        names = {split: _wikitext_names(split) for split in SPLITS}
        expected = (
            "the directory of train, valid and test; for one file take data=files "
            f"data.unit=heading 'data.heading={TITLE}'"
        )
        files = finding.published_files(path, names, "data=wikitext", expected)
        self._find(files, {})
        self._where = f"data.path={path}"

    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        return cutting.documents(span.file, self._cutter)


def _wikitext_names(split: str) -> list[str]:
    names = [f"{split}.{suffix}" for suffix in ("txt", "tokens", "raw")]
    return [*names, f"wiki.{split}.tokens", f"wiki.{split}.raw"]
