"""A text in one file, cut into splits by bytes, in the file's order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from lmkit.corpus import finding
from lmkit.corpus.reading import open_bytes
from lmkit.corpus.source import SPLITS, Document, Piece, Source
from lmkit.errors import UserError
from lmkit.ranges import Count, Size
from lmkit.system import paths


class CutFile(Source):
    """The last bytes of a file are test, those before valid, others train; of 0 bytes there is no
    test. A character that a cut would divide belongs to the part that it begins in.

    The attributes of a class: file_name: in a directory; option: its name in the group `data`;
    expected: what data.path is to name.
    """

    file_name: ClassVar[str]
    option: ClassVar[str]
    expected: ClassVar[str]

    def __init__(
        self, path: str, settings: dict[str, object], valid_bytes: Size, test_bytes: Count
    ) -> None:
        """path: the file, also compressed, or its directory; settings: other keys of the class."""
        where = paths.found_at(path, "data.path")
        self._file = where / self.file_name if where.is_dir() else where
        takes = f"data={self.option} takes {self.expected}"
        if not self._file.is_file():
            raise UserError(
                f"data.path={path} does not exist or has no file {self.file_name}; "
                f"{paths.nearby(self._file)}; {takes}"
            )
        if self._file.suffix == ".zip":
            raise UserError(f"data.path={path} is an archive: {takes}")
        self._path, self._takes = path, takes
        self._valid, self._test = valid_bytes, test_bytes
        if not finding.compression(self._file.name):
            self._check(paths.state(self._file)[0])
        cuts = {"valid_bytes": valid_bytes, "test_bytes": test_bytes}
        super().__init__(f"data.path={path}", {**settings, **cuts}, {})

    def _check(self, num_bytes: int) -> None:
        if num_bytes <= self._valid + self._test:
            raise UserError(
                f"data.path={self._path} has {num_bytes:,} bytes, of which data.valid_bytes="
                f"{self._valid} and data.test_bytes={self._test} leave nothing to train on: "
                f"{self._takes}"
            )

    def _own_splits(self) -> Iterable[str]:
        return SPLITS if self._test else SPLITS[:2]

    def _content(self) -> Iterable[object]:
        yield paths.sha256(self._file)

    def _pieces(self, own_split: str) -> list[Piece]:
        known = {"valid": self._valid, "test": self._test}
        rest = paths.state(self._file)[0] - sum(known.values())
        return [Piece(own_split, (), known.get(own_split, max(rest, 1)))]

    def _read(self, split: str) -> Iterator[Document]:
        yield Document(split, self.text(split))

    def text(self, split: str) -> str:
        """The text of a split."""
        data = self._bytes(split)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._file} is not UTF-8: byte 0x{data[error.start]:02x} ({error.reason}); "
                f"{self._takes}"
            ) from None

    def _bytes(self, split: str) -> bytes:
        """The bytes of a split."""
        with open_bytes(self._file) as stream:
            data = stream.read()
        self._check(len(data))
        ends = [len(data) - self._valid - self._test, len(data) - self._test]
        cuts = [0, *(_after_character(data, end) for end in ends), len(data)]
        at = SPLITS.index(split)
        return data[cuts[at] : cuts[at + 1]]


def _after_character(data: bytes, position: int) -> int:
    """The first position from this one on at which a character of UTF-8 begins."""
    while position < len(data) and data[position] & 0xC0 == 0x80:
        position += 1
    return position
