"""The base classes of all that a model can be trained on: a corpus, with its splits and a
fingerprint, and a source of text, whose documents are read in independent pieces."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from lmkit.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
# In every fingerprint: raise it when the same bytes come to give other documents.
_FORMAT = 1
# The key under which empty documents are counted, beside the splits.
EMPTY = "empty"
# A split cut by a hash with so many times more or fewer tokens than asked for causes a remark.
_LOPSIDED = 3


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is read from its beginning, and a name for it within its source."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of documents that is read independently of others.

    own_split: the source's split before any is cut out of it. spans: where the documents are, in
    the source's own terms. num_bytes: on disk, 0 if unknown.
    """

    own_split: str
    spans: tuple[Any, ...] = ()
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The number of tokens of a split, and the id and number of tokens of its longest document."""

    total: int
    longest: str
    most: int


class Corpus(ABC):
    """Anything that the config group `data` may name: text (`Source`) or prepared tokens
    (`PreparedSource`); the constructor's arguments are the group's keys.

    The attributes of a class are known before anything is read:
    has_text: whether a tokenizer can be trained on it.
    has_tokenizer: whether its tokens come with the tokenizer that made them.
    is_remote: whether its splits are known only after asking a service.
    refused: the protocols under which it cannot be read, each with the reason and a remedy.
    repeats: whether a window can be trained on again and again (`trainer.overfit_batches`).
    has_bytes: whether the bytes of its text are known, and so bits per byte.
    finer: how its documents can be made smaller, for messages.
    """

    has_text = True
    has_tokenizer = False
    is_remote = False
    refused: Mapping[str, str] = MappingProxyType({})
    repeats = True
    has_bytes = True
    finer = ""

    def __init__(self, where: str, settings: Mapping[str, object]) -> None:
        """`where` names it in messages."""
        self._where = where
        self._settings = {"source": type(self).__name__, **settings}

    @property
    def _cut(self) -> Mapping[str, float]:
        """The splits that are cut out of train."""
        return {}

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of train, valid and test that it has."""
        return tuple(name for name in SPLITS if name in {*self._own_splits(), *self._cut})

    @abstractmethod
    def _own_splits(self) -> Iterable[str]: ...

    def _content(self) -> Iterable[object]:
        """JSON values that change whenever the documents or tokens do."""
        return ()

    def fingerprint(self) -> str:
        """SHA-256 (hex) of content and settings: equal if the same documents are read."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        settings = {"format": _FORMAT, "cut": self._cut, **self._settings}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for value in self._content():
            digest.update(json.dumps(value).encode() + b"\n")
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        """Plain values for the run's record of what was read."""
        return {
            **self._settings,
            "splits": list(self.splits),
            "cut_by_hash": dict(self._cut),
            "fingerprint": self.fingerprint(),
        }


class Source(Corpus):
    """The base class of sources of text: documents by split.

    piece_bytes: the size on disk of the pieces in which files are read.

    Keys that several sources have:
    path: a file, directory, glob or list of them; of train, or of all splits told by their names.
    valid_path, test_path: the same for a split of its own.
    valid_fraction, test_fraction: of the documents, cut out of train where there is no such split.
    column: the name of the column that holds the text.
    encoding: of the files, as latin-1, cp1252, utf-16.
    """

    piece_bytes = 1 << 28
    # Whether a split's text can be named with its own path.
    _by_path = False

    def __init__(
        self, where: str, settings: Mapping[str, object], cut: Mapping[str, float]
    ) -> None:
        """As `Corpus`; `cut` has the fractions for splits it lacks."""
        for split, fraction in cut.items():
            if not 0 <= fraction < 1:
                raise UserError(f"data.{split}_fraction={fraction} is not in [0, 1)")
        if sum(cut.values()) >= 1:
            raise UserError(
                " and ".join(f"data.{split}_fraction={share}" for split, share in cut.items())
                + " leave nothing to train on: lower them"
            )
        super().__init__(where, settings)
        self._fractions = cut
        self._warned: set[str] = set()

    @cached_property
    def _cut(self) -> dict[str, float]:
        """The splits to cut out of train, with their fractions; test comes first, so that its
        documents do not depend on the fraction of valid."""
        own = set(self._own_splits())
        return {
            split: fraction
            for split, fraction in sorted(self._fractions.items())
            if fraction and split not in own
        }

    def documents(self, split: str) -> Iterator[Document]:
        """The split's documents in order; empty ones are skipped and counted."""
        counts: Counter[str] = Counter()
        for piece in self.pieces(split):
            yield from self.read(split, piece, counts)
        self.check_counts(split, counts)

    def pieces(self, split: str) -> list[Piece]:
        """The pieces that `documents` reads, in order; they depend on the source only."""
        if split not in self.splits:
            raise UserError(
                f"{self._where} has no split {split!r}: it has {', '.join(self.splits)}"
            )
        return self._pieces("train" if self._cut_with(split) else split)

    def read(self, split: str, piece: Piece, counts: Counter[str]) -> Iterator[Document]:
        """The split's documents in one piece; `counts` gets all those read, by split and EMPTY."""
        cut = self._cut_with(split)
        for document in self._read_piece(piece):
            if not document.text or document.text.isspace():
                counts[EMPTY] += 1
                continue
            home = _home(document.text, cut) if cut else piece.own_split
            counts[home] += 1
            if home == split:
                yield document

    def check_counts(self, split: str, counts: Counter[str]) -> None:
        """Warn of documents skipped in all pieces of a split; UserError if a split has none."""
        cut = self._cut_with(split)
        own_split = "train" if cut else split
        total = counts.total() - counts[EMPTY]
        if total == 0:
            raise UserError(
                f"{self._where} has no documents for {own_split} ({counts[EMPTY]} empty ones): "
                "name text that has words"
            )
        if counts[EMPTY] and own_split not in self._warned:
            self._warned.add(own_split)
            log.warning(
                "%s: skipped %d empty documents of %s", self._where, counts[EMPTY], own_split
            )
        homes = [name for name in SPLITS if name in (own_split, *cut)]
        if empty := [name for name in homes if not counts[name]]:
            numbers = ", ".join(f"{counts[name]} {name}" for name in homes)
            few = "1 document is too few to cut by its hash"
            few = few if total == 1 else f"{total} documents are too few to cut by their hash"
            # Where there are fewer documents than splits, no fractions give each of them one.
            remedies = map(self._remedy, empty) if total >= len(homes) else [self._uncut()]
            raise UserError(
                f"{self._where}: {few} ({numbers}): "
                + "; or ".join(filter(None, (self.finer, "; ".join(remedies))))
            )

    def remarks(self, counts: Mapping[str, TokenCount]) -> list[str]:
        """Remarks on splits cut by a hash whose sizes are far from what was asked, a line each."""
        homes = [name for name in SPLITS if name in ("train", *self._cut)]
        if not self._cut or not all(name in counts for name in homes):
            return []
        total = sum(counts[name].total for name in homes)
        shares = {name: counts[name].total / total for name in homes}
        off = [
            name
            for name, wanted in self._cut.items()
            if not wanted / _LOPSIDED < shares[name] < wanted * _LOPSIDED
        ]
        longest = max((counts[name] for name in homes), key=lambda count: count.most)
        if not off and longest.most <= total / 2:
            return []
        sizes = ", ".join(f"{name} {counts[name].total:,} ({shares[name]:.1%})" for name in homes)
        wanted = " and ".join(f"{name} {share:.0%}" for name, share in self._cut.items())
        key = "path" if self._by_path else "fraction"
        keys = " and ".join(f"data.{name}_{key}" for name in off or self._cut)
        remedy = f"name text for it with {keys}" if self._by_path else f"change {keys}"
        return [
            f"{self._where}: the tokens are {sizes}, where {wanted} are cut by a hash of each "
            f"document, whatever its length; the longest ({longest.longest}) has "
            f"{longest.most / total:.1%} of all: "
            + "; or ".join(filter(None, (self.finer, remedy)))
        ]

    def _cut_with(self, split: str) -> Mapping[str, float]:
        """The splits that are cut out of the same documents as this one."""
        return self._cut if split in (*self._cut, "train") else {}

    def _remedy(self, split: str) -> str:
        if split == "train":
            return "lower data.valid_fraction and data.test_fraction"
        own = f", or name its own text with data.{split}_path" if self._by_path else ""
        return f"raise data.{split}_fraction or set it to 0 to go without{own}"

    def _uncut(self) -> str:
        without = " and ".join(f"data.{split}_fraction=0" for split in self._cut)
        keys = " and ".join(f"data.{split}_path" for split in self._cut)
        own = f", or name other text with {keys}" if self._by_path else ""
        return f"set {without} to go without{own}"

    @abstractmethod
    def _read(self, split: str) -> Iterator[Document]:
        """Every document of one of the source's own splits, before any is cut out of it."""

    def _pieces(self, own_split: str) -> list[Piece]:
        return [Piece(own_split)]

    def _read_piece(self, piece: Piece) -> Iterator[Document]:
        return self._read(piece.own_split)

    def _content(self) -> Iterable[object]:
        for split in self._own_splits():
            for document in self._read(split):
                yield split, document.id, hashlib.sha256(document.text.encode()).hexdigest()


def _home(text: str, cut: Mapping[str, float]) -> str:
    """The split of a text, by its hash only: copies stay together, and new documents move none."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    point = int.from_bytes(digest) / 2**64
    for split, fraction in cut.items():
        if point < fraction:
            return split
        point -= fraction
    return "train"
