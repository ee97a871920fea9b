"""The base class of sources that are files on disk: their splits, pieces, names and hashes."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from lmkit.corpus import finding, reading
from lmkit.corpus.reading import UTF8
from lmkit.corpus.source import Document, Piece, Source, TokenCount
from lmkit.errors import UserError
from lmkit.ranges import Share
from lmkit.system import paths
from lmkit.system.paths import Paths


class Span(NamedTuple):
    """A file with its name in the source; of a parquet file perhaps only some row groups."""

    name: str
    file: Path
    groups: range | None = None


class FileSource(Source):
    """Files found by path; a split has a path of its own, is stated by the files' names, or is cut
    out of train."""

    suffixes: tuple[str, ...] = ()
    _by_path = True

    def __init__(
        self,
        path: str | list[str],
        *,
        valid_path: str | list[str] | None = None,
        test_path: str | list[str] | None = None,
        valid_fraction: Share = 0.1,
        test_fraction: Share = 0.1,
    ) -> None:
        """As in `Source`; a subclass passes these on as its **settings."""
        given = {"train": path, "valid": valid_path, "test": test_path}
        self._find(given, {"valid": valid_fraction, "test": test_fraction})

    def _find(self, given: Mapping[str, Paths | None], cut: Mapping[str, float]) -> None:
        """`given` has the path of train, and those of other splits that have one of their own."""
        # What the files were as the fingerprint was made, which is what their tokens are known by.
        self._hashed: dict[Path, tuple[int, int]] = {}
        self._paths = {split: path for split, path in given.items() if path is not None}
        self._files = {
            split: finding.find_files(path, path_key(split), self.suffixes)
            for split, path in self._paths.items()
        }
        path = self._paths["train"]
        if len(self._paths) == 1 and isinstance(path, str) and paths.located(path).is_dir():
            self._files = finding.split_files(self._files["train"], path, "data.path")
        self._check_overlap()
        super().__init__(f"data.path={paths.spelled(path)}", self._how_read(), cut)

    def _how_read(self) -> dict[str, object]:
        """What the text depends on beside the files, as JSON values: known once they are found."""
        return {}

    def _check_overlap(self) -> None:
        owners: dict[Path, str] = {}
        for split, files in self._files.items():
            for file in files.values():
                owner = owners.setdefault(file.resolve(), split)
                if owner != split:
                    one, other = (
                        f"{path_key(name)}={paths.spelled(self._paths[name])}"
                        for name in (split, owner)
                    )
                    raise UserError(
                        f"{one} and {other} both name {file}: a file belongs to one split"
                    )

    @abstractmethod
    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        """Line or row number (0: the whole file) and text of each document of a file."""

    def _spans(self, name: str, file: Path) -> list[tuple[Span, int]]:
        """The spans in which a file is read, each with its bytes on disk."""
        return [(Span(name, file), paths.state(file)[0])]

    def _own_splits(self) -> Iterable[str]:
        return self._files

    def _read(self, split: str) -> Iterator[Document]:
        for piece in self._pieces(split):
            yield from self._read_piece(piece)

    def _pieces(self, own_split: str) -> list[Piece]:
        pieces: list[Piece] = []
        run: list[Span] = []
        num_bytes = 0
        for name, file in self._files[own_split].items():
            for span, size in self._spans(name, file):
                if run and num_bytes + size > self.piece_bytes:
                    pieces.append(Piece(own_split, tuple(run), num_bytes))
                    run, num_bytes = [], 0
                run.append(span)
                num_bytes += size
        return [*pieces, Piece(own_split, tuple(run), num_bytes)]

    def _read_piece(self, piece: Piece) -> Iterator[Document]:
        for span in piece.spans:
            for number, text in self._records(span):
                yield Document(f"{span.name}:{number}" if number else span.name, text)
            if self._hashed.get(span.file, paths.state(span.file)) != paths.state(span.file):
                raise UserError(
                    f"{span.file} has changed since it was hashed, while it was prepared: "
                    "run the command again when nothing writes to it"
                )

    def _content(self) -> Iterable[object]:
        named = [
            (split, name, file)
            for split in self._files
            for name, file in self._files[split].items()
        ]
        self._hashed |= {file: paths.state(file) for _, _, file in named}
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
            hashes = pool.map(paths.sha256, [file for _, _, file in named])
            for (split, name, _), sha256 in zip(named, hashes, strict=True):
                yield split, name, sha256

    def remarks(self, counts: Mapping[str, TokenCount]) -> list[str]:
        """The remarks of any source, and one if file names state splits but a hash cuts train."""
        remarks = super().remarks(counts)
        if self._cut and len(self._files) == 1 and (stated := finding.by_split(self._around())):
            names = [name for files in stated.values() for name in files]
            are = "are" if len(self._cut) > 1 else "is"
            remarks.append(
                f"{self._where}: {' and '.join(self._cut)} {are} cut out of it by a hash, though "
                f"names state splits ({paths.listed(sorted(names))}); give their directory as "
                "data.path to take them so"
            )
        return remarks

    def _around(self) -> Mapping[str, Path]:
        """The files of train; if that is one file with `train` in its name, its neighbours too."""
        files = self._files["train"]
        file = next(iter(files.values()))
        if len(files) > 1 or finding.split_of(file.name) != "train":
            return files
        return {each.name: each for each in file.parent.glob(f"*{file.suffix}")}

    def describe(self) -> dict[str, object]:
        """Settings, paths, and how many files and bytes each split was read from."""
        return {
            **super().describe(),
            "paths": dict(self._paths),
            "num_files": {split: len(files) for split, files in self._files.items()},
            "num_bytes": {
                split: sum(paths.state(file)[0] for file in files.values())
                for split, files in self._files.items()
            },
        }


class TextFileSource(FileSource):
    """Files of text in an encoding."""

    def __init__(self, path: str | list[str], *, encoding: str = "utf-8", **settings: Any) -> None:
        """settings: those of `FileSource`."""
        self._encoding = reading.known_encoding(encoding)
        super().__init__(path, **settings)

    def _how_read(self) -> dict[str, object]:
        # Left out where it is the usual one: so stores of before there was the key are found.
        encoded = {} if self._encoding == UTF8 else {"encoding": self._encoding}
        return {**super()._how_read(), **encoded}


def path_key(split: str) -> str:
    return "data.path" if split == "train" else f"data.{split}_path"
