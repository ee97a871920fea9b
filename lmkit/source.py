"""What a source of text is: documents by split, with a fingerprint of what it will yield."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from lmkit.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
# Part of every fingerprint: raise it when the same bytes give other documents.
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is read from its beginning, and a name for it within its source."""

    id: str
    text: str


class Source(ABC):
    """Documents by split; the constructor's arguments are the keys of the config group `data`."""

    _finer: tuple[str, ...] = ()

    def __init__(
        self, where: str, settings: Mapping[str, object], cut: Mapping[str, float]
    ) -> None:
        """`where` names the source in messages; `cut` the fractions for splits it lacks."""
        for split, fraction in cut.items():
            if not 0 <= fraction < 1:
                raise UserError(f"data.{split}_fraction={fraction} is not in [0, 1)")
        if sum(cut.values()) >= 1:
            raise UserError(
                " and ".join(f"data.{split}_fraction={part}" for split, part in cut.items())
                + " leave nothing to train on: lower them"
            )
        self._where = where
        self._settings = {"source": type(self).__name__, **settings}
        self._fractions = cut
        self._warned: set[str] = set()

    @cached_property
    def _cut(self) -> dict[str, float]:
        """The splits to cut out of train: test first, so that the size of valid moves none."""
        own = set(self._own_splits())
        return {
            split: part
            for split, part in sorted(self._fractions.items())
            if part and split not in own
        }

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits there are, of train, valid and test."""
        return tuple(name for name in SPLITS if name in {*self._own_splits(), *self._cut})

    def documents(self, split: str) -> Iterator[Document]:
        """The split's documents in their order, without the empty ones, which are counted."""
        if split not in self.splits:
            raise UserError(
                f"{self._where} has no split {split!r}: it has {', '.join(self.splits)}"
            )
        cut = self._cut if split in (*self._cut, "train") else {}
        part = "train" if cut else split
        counts, num_empty = dict.fromkeys((part, *cut), 0), 0
        for document in self._read(part):
            if not document.text or document.text.isspace():
                num_empty += 1
                continue
            home = _home(document.text, cut) if cut else part
            counts[home] += 1
            if home == split:
                yield document
        self._check(part, counts, num_empty)

    def _check(self, part: str, counts: Mapping[str, int], num_empty: int) -> None:
        total = sum(counts.values())
        if num_empty and part not in self._warned:
            self._warned.add(part)
            log.warning("%s: skipped %d empty documents of %s", self._where, num_empty, part)
        if total == 0:
            raise UserError(
                f"{self._where} has no documents for {part} ({num_empty} empty ones): "
                "name text that has words"
            )
        if empty := [name for name in SPLITS if counts.get(name) == 0]:
            found = ", ".join(f"{counts[name]} {name}" for name in SPLITS if name in counts)
            remedies = (*self._finer, *(self._remedy(name) for name in empty))
            raise UserError(
                f"{self._where}: {total} documents are too few to cut by their hash ({found}): "
                + "; ".join(remedies)
            )

    def _remedy(self, split: str) -> str:
        if split == "train":
            return "lower data.valid_fraction and data.test_fraction"
        return f"raise data.{split}_fraction or set it to 0 to go without"

    @abstractmethod
    def _own_splits(self) -> Iterable[str]: ...

    @abstractmethod
    def _read(self, split: str) -> Iterator[Document]:
        """Every document of one of the source's own splits, before any cut."""

    def _content(self) -> Iterable[object]:
        """JSON values that change whenever the documents do."""
        for split in self._own_splits():
            for document in self._read(split):
                yield split, document.id, hashlib.sha256(document.text.encode()).hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 (hex) of content and settings: equal where `documents` yields the same."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        settings = {"format": _FORMAT, "cut": self._cut, **self._settings}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for value in self._content():
            digest.update(json.dumps(value).encode() + b"\n")
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        """What was read, for the run's record: plain values."""
        return {
            **self._settings,
            "splits": list(self.splits),
            "cut_by_hash": dict(self._cut),
            "fingerprint": self.fingerprint(),
        }


def _home(text: str, cut: Mapping[str, float]) -> str:
    """The split of a text by its hash alone: copies stay together and additions move nothing."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    point = int.from_bytes(digest) / 2**64
    for split, fraction in cut.items():
        if point < fraction:
            return split
        point -= fraction
    return "train"
