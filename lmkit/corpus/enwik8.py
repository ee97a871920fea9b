"""The first 100 MB of Wikipedia as models of characters are compared on them, cut by bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from lmkit.corpus import cutting, finding
from lmkit.corpus.reading import open_bytes
from lmkit.corpus.source import SPLITS, Document, Piece, Source
from lmkit.errors import UserError
from lmkit.ranges import Size
from lmkit.system import paths

PAGE = re.compile("^  <page>$")
NAME = "enwik8"
EXPECTED = "the file enwik8 of 100,000,000 bytes (unpack enwik8.zip), or its directory"


class Enwik8(Source):
    """enwik8 (Hutter 2006): the last bytes of the file are test, those before valid, others train.

    A character that a cut would divide belongs to the part that it begins in.

    unit: what a document is; page: a page of Wikipedia; split: the whole split, without an end
    between its pages, which is what published results read with the protocol stream.
    valid_bytes, test_bytes: of the file.
    """

    def __init__(
        self,
        path: str,
        *,
        unit: Literal["page", "split"] = "page",
        valid_bytes: Size = 5_000_000,
        test_bytes: Size = 5_000_000,
    ) -> None:
        """path: the file, also compressed, or its directory."""
        where = paths.found_at(path, "data.path")
        self._file = where / NAME if where.is_dir() else where
        if not self._file.is_file():
            raise UserError(
                f"data.path={path} does not exist or has no file {NAME}; "
                f"{paths.nearby(self._file)}; data=enwik8 takes {EXPECTED}"
            )
        if self._file.suffix == ".zip":
            raise UserError(f"data.path={path} is an archive: data=enwik8 takes {EXPECTED}")
        self._path, self._unit = path, unit
        self._valid, self._test = valid_bytes, test_bytes
        if not finding.compression(self._file.name):
            self._check(paths.state(self._file)[0])
        settings = {"unit": unit, "valid_bytes": valid_bytes, "test_bytes": test_bytes}
        super().__init__(f"data.path={path}", settings, {})

    def _check(self, num_bytes: int) -> None:
        if num_bytes <= self._valid + self._test:
            raise UserError(
                f"data.path={self._path} has {num_bytes:,} bytes, of which data.valid_bytes="
                f"{self._valid} and data.test_bytes={self._test} leave nothing to train on: "
                f"data=enwik8 takes {EXPECTED}"
            )

    def _own_splits(self) -> Iterable[str]:
        return SPLITS

    def _content(self) -> Iterable[object]:
        yield paths.sha256(self._file)

    def _pieces(self, own_split: str) -> list[Piece]:
        known = {"valid": self._valid, "test": self._test}
        rest = paths.state(self._file)[0] - sum(known.values())
        return [Piece(own_split, (), known.get(own_split, max(rest, 1)))]

    def _read(self, split: str) -> Iterator[Document]:
        text = self._decoded(self._bytes(split))
        if self._unit == "split":
            yield Document(split, text)
            return
        lines = io.StringIO(text, newline="\n")
        for number, page in cutting.by_heading(lines, PAGE):
            yield Document(f"{split}:{number}", page)

    def _bytes(self, split: str) -> bytes:
        """The bytes of a split."""
        with open_bytes(self._file) as stream:
            data = stream.read()
        self._check(len(data))
        ends = [len(data) - self._valid - self._test, len(data) - self._test]
        cuts = [0, *(_after_character(data, end) for end in ends), len(data)]
        at = SPLITS.index(split)
        return data[cuts[at] : cuts[at + 1]]

    def _decoded(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._file} is not UTF-8: byte 0x{data[error.start]:02x} ({error.reason}); "
                f"data=enwik8 takes {EXPECTED}"
            ) from None


def _after_character(data: bytes, position: int) -> int:
    """The first position from this one on at which a character of UTF-8 begins."""
    while position < len(data) and data[position] & 0xC0 == 0x80:
        position += 1
    return position
