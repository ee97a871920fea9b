"""The first 100 MB of Wikipedia as models of characters are compared on them, cut by bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Literal

from lmkit.corpus import cutting
from lmkit.corpus.cut_file import CutFile
from lmkit.corpus.source import Document
from lmkit.ranges import Size

PAGE = re.compile("^  <page>$")


class Enwik8(CutFile):
    """enwik8 (Hutter 2006): the last bytes of the file are test, those before valid, others train.

    A character that a cut would divide belongs to the part that it begins in.

    unit: what a document is; page: a page of Wikipedia; split: the whole split, without an end
    between its pages, which is what published results read with the protocol stream.
    valid_bytes, test_bytes: of the file.
    """

    file_name = option = "enwik8"
    expected = "the file enwik8 of 100,000,000 bytes (unpack enwik8.zip), or its directory"

    def __init__(
        self,
        path: str,
        *,
        unit: Literal["page", "split"] = "page",
        valid_bytes: Size = 5_000_000,
        test_bytes: Size = 5_000_000,
    ) -> None:
        """path: the file, also compressed, or its directory."""
        self._unit = unit
        super().__init__(path, {"unit": unit}, valid_bytes, test_bytes)

    def _read(self, split: str) -> Iterator[Document]:
        if self._unit == "split":
            yield from super()._read(split)
            return
        lines = io.StringIO(self.text(split), newline="\n")
        for number, page in cutting.by_heading(lines, PAGE):
            yield Document(f"{split}:{number}", page)
