"""Reads a suite in any of the formats, by the keys of `lmkit evaluate`."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmkit.corpus.finding import find_files
from lmkit.errors import UserError
from lmkit.suite import blimp, lines, syntaxgym, table
from lmkit.suite.blimp import Method
from lmkit.suite.items import Suite

Format = Literal["blimp", "syntaxgym", "table", "lines"]
SUFFIXES: dict[str, Format] = {
    ".jsonl": "blimp",
    ".json": "syntaxgym",
    ".csv": "table",
    ".tsv": "table",
    ".tab": "table",
    ".txt": "lines",
}


@dataclass(frozen=True)
class Source:
    """Where a suite is, in which format, and what to compare; None is what the format has."""

    format: Format
    path: str | None
    method: Method | None = None
    good: str | None = None
    bad: str | None = None
    group: str | None = None

    def read(self) -> Suite:
        """The suite; raises UserError if a key does not go with the format, or for bad files."""
        if self.path is None:
            raise UserError(f"suite={self.format} needs path=DIR or path=FILE: where the suite is")
        for key, format in {
            "method": "blimp",
            **dict.fromkeys(("good", "bad", "group"), "table"),
        }.items():
            value = getattr(self, key)
            if value is not None and self.format != format:
                raise UserError(f"{key}={value} is for suite={format}: leave it out")
        try:
            return self._read(self.path)
        except UserError as error:
            other = _format_of(self.path)
            if other in (None, self.format):
                raise
            raise UserError(f"{error}; files of its kind are read with suite={other}") from None

    def _read(self, path: str) -> Suite:
        match self.format:
            case "blimp":
                return blimp.read(path, self.method or "simple")
            case "syntaxgym":
                return syntaxgym.read(path)
            case "table":
                return table.read(path, self.good or "good", self.bad or "bad", self.group)
        if Path(path).is_file() and _format_of(path) not in (None, "lines"):
            # Its lines might pass for pairs of sentences.
            raise UserError(f"path={path}: suite=lines reads a plain text, as one ending in .txt")
        return lines.read(path)


def _format_of(path: str) -> Format | None:
    """The format that most of the files at a path have, by their names."""
    names: list[str] = []
    with suppress(UserError):
        names = list(find_files(path, "path"))
    found = Counter(
        format
        for name in names
        for suffix, format in SUFFIXES.items()
        if suffix in Path(name).suffixes
    )
    return next((format for format, _ in found.most_common(1)), None)
