"""The sources of text: Python's own documents, files, datasets of the hub, the memory probe."""

import itertools
import platform
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from lmkit import probe_corpus, pydocs, readers
from lmkit.errors import UserError
from lmkit.hub import HuggingFace
from lmkit.source import SPLITS, Document, Piece, Source

__all__ = [
    "Document",
    "Files",
    "HuggingFace",
    "Jsonl",
    "MemoryProbe",
    "Parquet",
    "Pydocs",
    "Source",
    "WikiText",
]


class Pydocs(Source):
    """The language reference and the docstrings of the Python that runs: needs no download."""

    def __init__(self, *, valid_fraction: float = 0.1, test_fraction: float = 0.1) -> None:
        python = f"{platform.python_implementation()} {platform.python_version()}"
        cut = {"valid": valid_fraction, "test": test_fraction}
        super().__init__("data=pydocs", {"python": python}, cut)

    @cached_property
    def _documents(self) -> list[Document]:
        return [Document(id, text) for id, text in pydocs.pydoc_documents()]

    def _own_splits(self) -> Iterable[str]:
        return ("train",)

    def _read(self, split: str) -> Iterator[Document]:
        return iter(self._documents)

    def _content(self) -> Iterable[object]:
        for name, file in pydocs.source_files().items():
            yield name, readers.sha256(file)


class Span(NamedTuple):
    """A file by its name in the source; of a parquet file perhaps some row groups only."""

    name: str
    file: Path
    groups: range | None = None


class _Files(Source):
    """Files found by path; a split is its own path's, its directory's, or cut out of train."""

    suffixes: tuple[str, ...] = ()

    def __init__(
        self,
        paths: Mapping[str, str | None],
        settings: Mapping[str, object],
        cut: Mapping[str, float],
    ) -> None:
        self._paths = {split: path for split, path in paths.items() if path is not None}
        self._files = {
            split: readers.find_files(path, _path_key(split), self.suffixes)
            for split, path in self._paths.items()
        }
        path = self._paths["train"]
        if len(self._paths) == 1 and readers.located(path).is_dir():
            self._files = readers.split_files(self._files["train"], path, "data.path")
        self._check_overlap()
        super().__init__(f"data.path={path}", settings, cut)

    def _check_overlap(self) -> None:
        owners: dict[Path, str] = {}
        for split, files in self._files.items():
            for file in files.values():
                owner = owners.setdefault(file.resolve(), split)
                if owner != split:
                    raise UserError(
                        f"{_path_key(split)}={self._paths[split]} and "
                        f"{_path_key(owner)}={self._paths[owner]} both name {file}: "
                        "a file belongs to one split"
                    )

    @abstractmethod
    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        """Line or row number (0: the whole file) and text of each document of a file."""

    def _spans(self, name: str, file: Path) -> list[tuple[Span, int]]:
        """What a file is read as, each with its bytes on disk."""
        return [(Span(name, file), file.stat().st_size)]

    def _own_splits(self) -> Iterable[str]:
        return self._files

    def _read(self, split: str) -> Iterator[Document]:
        for piece in self._pieces(split):
            yield from self._read_piece(piece)

    def _pieces(self, part: str) -> list[Piece]:
        pieces: list[Piece] = []
        run: list[Span] = []
        num_bytes = 0
        for name, file in self._files[part].items():
            for span, size in self._spans(name, file):
                if run and num_bytes + size > self.piece_bytes:
                    pieces.append(Piece(part, tuple(run), num_bytes))
                    run, num_bytes = [], 0
                run.append(span)
                num_bytes += size
        return [*pieces, Piece(part, tuple(run), num_bytes)]

    def _read_piece(self, piece: Piece) -> Iterator[Document]:
        for span in piece.spans:
            for number, text in self._records(span):
                yield Document(f"{span.name}:{number}" if number else span.name, text)

    def _content(self) -> Iterable[object]:
        named = [
            (split, name, file)
            for split in self._files
            for name, file in self._files[split].items()
        ]
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
            hashes = pool.map(readers.sha256, [file for _, _, file in named])
            for (split, name, _), sha256 in zip(named, hashes, strict=True):
                yield split, name, sha256

    def _remedy(self, split: str) -> str:
        if split == "train":
            return super()._remedy(split)
        return f"{super()._remedy(split)}, or name its own text with data.{split}_path"

    def describe(self) -> dict[str, object]:
        """Settings, paths, and how many files and bytes each split was read from."""
        return {
            **super().describe(),
            "paths": dict(self._paths),
            "num_files": {split: len(files) for split, files in self._files.items()},
            "num_bytes": {
                split: sum(file.stat().st_size for file in files.values())
                for split, files in self._files.items()
            },
        }


def _path_key(split: str) -> str:
    return "data.path" if split == "train" else f"data.{split}_path"


class Files(_Files):
    """Text files, also .gz and .zst; a document is a file, paragraph, headed section or line."""

    def __init__(
        self,
        path: str,
        *,
        unit: Literal["file", "paragraph", "heading", "line"] = "file",
        heading: str | None = None,
        valid_path: str | None = None,
        test_path: str | None = None,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        """unit: what a document is.
        heading: the pattern of the lines that open a document, with unit=heading."""
        self._cutter = readers.cutter(unit, heading)
        self._finer = ("cut finer with data.unit",) if unit == "file" else ()
        super().__init__(
            {"train": path, "valid": valid_path, "test": test_path},
            {"unit": unit, "heading": heading},
            {"valid": valid_fraction, "test": test_fraction},
        )

    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        return readers.documents(span.file, self._cutter)


class Jsonl(_Files):
    """Lines of JSON, also .gz and .zst; a document is one field of a line."""

    suffixes = tuple(
        f".{name}{codec}" for name in ("jsonl", "ndjson") for codec in ("", ".gz", ".zst")
    )

    def __init__(
        self,
        path: str,
        *,
        field: str = "text",
        valid_path: str | None = None,
        test_path: str | None = None,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        """field: the name of the field that holds the text."""
        self._field = field
        super().__init__(
            {"train": path, "valid": valid_path, "test": test_path},
            {"field": field},
            {"valid": valid_fraction, "test": test_fraction},
        )

    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        return readers.json_fields(span.file, self._field)


class Parquet(_Files):
    """Parquet files; a document is one column of a row."""

    suffixes = (".parquet",)

    def __init__(
        self,
        path: str,
        *,
        column: str = "text",
        valid_path: str | None = None,
        test_path: str | None = None,
        valid_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        self._column = column
        super().__init__(
            {"train": path, "valid": valid_path, "test": test_path},
            {"column": column},
            {"valid": valid_fraction, "test": test_fraction},
        )

    def _spans(self, name: str, file: Path) -> list[tuple[Span, int]]:
        size = file.stat().st_size
        if size <= self.piece_bytes:
            return super()._spans(name, file)
        num_groups = readers.num_row_groups(file)
        number = min(-(-size // self.piece_bytes), num_groups)
        bounds = [num_groups * n // number for n in range(number + 1)]
        return [
            (Span(name, file, range(*groups)), size // number)
            for groups in itertools.pairwise(bounds)
        ]

    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        return readers.parquet_column(span.file, self._column, span.groups)


class WikiText(_Files):
    """WikiText (Merity et al. 2016): a document is an article, opened by its ` = Title = `.

    The articles hold every line of a file; lines before the first title belong to the first.
    """

    def __init__(self, path: str) -> None:
        """path: of train, valid and test as .txt, .tokens, .raw, wiki.*.tokens or wiki.*.raw."""
        self._cutter = readers.cutter("heading", "^ = [^=].* = $")
        directory = readers.located(path)
        if directory.is_file():
            raise UserError(
                f"data.path={path} is a file: data=wikitext takes the directory of train, valid "
                "and test; for one file take data=files data.unit=heading"
            )
        if not directory.is_dir():
            raise UserError(f"data.path={path} does not exist; {readers.nearby(directory)}")
        files = {split: _wikitext_file(directory, split) for split in SPLITS}
        super().__init__(files, {}, {})
        self._where = f"data.path={path}"

    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        return readers.documents(span.file, self._cutter)


def _wikitext_file(directory: Path, split: str) -> str:
    names = [f"{split}.{suffix}" for suffix in ("txt", "tokens", "raw")]
    names += [f"wiki.{split}.tokens", f"wiki.{split}.raw"]
    found = [name for name in names if (directory / name).is_file()]
    if len(found) != 1:
        has = f"both {' and '.join(found)}" if found else f"none of {', '.join(names)}"
        raise UserError(
            f"data.path={directory} has {has}: {readers.nearby(directory / split)}; "
            f"data=wikitext needs one file for {split}"
        )
    return str(directory / found[0])


class MemoryProbe(Source):
    """Generated documents whose last two words only a memory of the first two can predict."""

    def __init__(
        self,
        *,
        num_train: int = 4000,
        num_valid: int = 560,
        num_test: int = 1120,
        num_countries: int = 12,
        min_distance: int = 5,
        max_distance: int = 60,
        corpus_seed: int = 1,
    ) -> None:
        """num_train, num_valid, num_test: documents of the split.
        num_countries: words to choose from.
        min_distance, max_distance: words from a country to its repetition.
        corpus_seed: of what the documents are drawn by."""
        self._counts = {"train": num_train, "valid": num_valid, "test": num_test}
        for split, count in self._counts.items():
            if count < 1:
                raise UserError(f"data.num_{split}={count} is not at least 1")
        most = len(probe_corpus.COUNTRIES)
        if not 2 <= num_countries <= most:
            raise UserError(f"data.num_countries={num_countries} is not between 2 and {most}")
        if not probe_corpus.SHORTEST <= min_distance <= max_distance:
            raise UserError(
                f"data.min_distance={min_distance} and data.max_distance={max_distance}: the "
                f"distances go up, from {probe_corpus.SHORTEST} words at least"
            )
        self._seed, self._num_countries = corpus_seed, num_countries
        self._distances = range(min_distance, max_distance + 1)
        settings = {
            **{"num_train": num_train, "num_valid": num_valid, "num_test": num_test},
            **{"num_countries": num_countries, "corpus_seed": corpus_seed},
            **{"min_distance": min_distance, "max_distance": max_distance},
        }
        super().__init__("data=memory_probe", settings, {})

    def _own_splits(self) -> Iterable[str]:
        return self._counts

    def _read(self, split: str) -> Iterator[Document]:
        pairs = probe_corpus.probe_documents(
            split,
            seed=self._seed,
            num_documents=self._counts[split],
            num_countries=self._num_countries,
            distances=self._distances,
        )
        return itertools.starmap(Document, pairs)
