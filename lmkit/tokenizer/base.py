"""The interface of tokenizers: documents in, token ids with document and line ends out."""

from __future__ import annotations

import codecs
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from lmkit.errors import UserError
from lmkit.system.allowed import under
from lmkit.system.files import write_atomically

FORMAT = "lmkit tokenizer 1"
FILE = "tokenizer.json"

Ids = npt.NDArray[np.uint32]
Positions = npt.NDArray[np.int64]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Some documents as one run of token ids.

    ids: (tokens,). document_ends: (documents,) and line_ends: (lines,), exclusive token
    positions, strictly increasing; the end of a document is also the end of a line. num_bytes:
    (documents,), of the text in UTF-8. num_unknown: tokens that `<unk>` replaces.
    """

    ids: Ids
    document_ends: Positions
    line_ends: Positions
    num_bytes: Positions
    num_unknown: int


class AnyTokenizer(ABC):
    """Anything that the config group `tokenizer` may name: a tokenizer, or the path of a saved one.

    trainable: whether `train` must see the train split before anything is encoded.
    is_saved: whether it is only the path of a saved one.
    """

    trainable: ClassVar[bool] = False
    is_saved: ClassVar[bool] = False

    @abstractmethod
    def resolved(self) -> Tokenizer | None:
        """The tokenizer itself; None: use the one that the data comes with."""


class Tokenizer(AnyTokenizer):
    """Text to ids and back; `name` is what messages call it.

    lossless: `decode` returns every text exactly, so that bits per byte have a meaning.
    lines_alone: a line has the same tokens whatever comes before and after it.
    vocabulary_size: the number of ids, including `<eos>` and `<unk>`. The setting of that name is
    an upper bound, which includes them too. A trainable tokenizer has it only after training.
    """

    name: ClassVar[str]
    lines_alone: ClassVar[bool] = True
    lossless: bool
    eos_id: int
    unk_id: int | None
    vocabulary_size: int

    def resolved(self) -> Tokenizer:
        return self

    @classmethod
    def kind(cls) -> str:
        """What a saved file calls it: the name of lmkit's own, the dotted path of another class, so
        that one that is derived is never taken for what it is derived from."""
        own = under(cls.__module__, ["lmkit"])
        return cls.name if own else f"{cls.__module__}.{cls.__qualname__}"

    @property
    def is_trained(self) -> bool:
        """Whether it has its vocabulary, or needs no training."""
        return not self.trainable or hasattr(self, "vocabulary_size")

    @abstractmethod
    def train(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary from the documents of the train split."""

    @abstractmethod
    def encode(self, texts: Sequence[str], by_line: bool = False) -> Encoded:
        """Encode one or more whole documents, each closed with `<eos>`, so that none is empty.

        by_line: encode each line by itself.
        """

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Encode a prompt: as `encode`, but nothing is added at its end."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text that tokens stand for."""

    @abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The surface of each token; joined they are `decode(ids)`.

        A character that is split over several tokens is the surface of the last of them.
        """

    def unknown(self, text: str, by_line: bool = False) -> dict[int, str]:
        """The positions at which `encode([text], by_line)` has `<unk>` for an unknown text, and
        these texts."""
        return {}

    def spans(self, text: str, by_line: bool = False) -> list[tuple[int, int]]:
        """The characters of `text` that each token of `encode([text], by_line)` stands for, from
        the first to before the last; that of a closing `<eos>` is empty, at the end of the text.

        A character that is split over several tokens is in the span of the last of them, or of
        each. Raises UserError if the tokenizer loses text and has no `spans` of its own.
        """
        pieces = self.pieces(self.encode([text], by_line).ids.tolist())
        if "".join(pieces) != text:
            raise UserError(
                f"{type(self).__name__} does not say which characters of a text its tokens stand "
                "for: give it a method spans(text, by_line)"
            )
        return list(pairwise(accumulate(map(len, pieces), initial=0)))

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """All that `_restore` needs, as JSON values."""

    @classmethod
    @abstractmethod
    def _restore(cls, state: dict[str, Any]) -> Self: ...

    def saved(self) -> dict[str, Any]:
        """What `save` writes, as JSON values."""
        return {"format": FORMAT, "name": self.kind(), **self._state()}

    def _payload(self) -> bytes:
        return json.dumps(self.saved(), ensure_ascii=False).encode()

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` into `directory`, whole or not at all."""
        write_atomically(Path(directory) / FILE, self._payload())

    def hash(self) -> str:
        """SHA-256 of what `save` writes."""
        return hashlib.sha256(self._payload()).hexdigest()


class CountedTokenizer(Tokenizer):
    """A tokenizer whose vocabulary follows from counts, which add up over pieces of the text."""

    def train(self, texts: Iterable[str]) -> None:
        self.learn(self.count(texts))

    @abstractmethod
    def count(self, texts: Iterable[str]) -> dict[str, int]:
        """How often each entry of a vocabulary occurs, in the order of first appearance."""

    @abstractmethod
    def learn(self, counts: dict[str, int]) -> None:
        """Choose the vocabulary by the counts of all texts."""


def add_counts(counts: dict[str, int], more: Mapping[str, int]) -> None:
    """Add the counts of the text that follows."""
    for token, n in more.items():
        counts[token] = counts.get(token, 0) + n


class Flat(NamedTuple):
    """Documents as ids without `<eos>`: counts (documents,), newline_ends after each newline."""

    ids: Ids
    counts: Positions
    newline_ends: Positions
    num_unknown: int


class DocumentTokenizer(Tokenizer):
    """A tokenizer that closes a document, not a line, with `<eos>`; `decode` gives it no text."""

    @abstractmethod
    def _flat(self, texts: Sequence[str]) -> Flat: ...

    @cached_property
    def newline(self) -> list[int]:
        """The tokens of a line end: none if the tokenizer reads it as a space or skips it."""
        alone, closed = self.encode_text("a"), self.encode_text("a\n")
        end = closed[len(alone) :] if closed[: len(alone)] == alone else []
        ends = (end, self.encode_text("\n"))
        return next((end for end in ends if "\n" in self.decode(end)), [])

    def _flat_lines(self, texts: Sequence[str]) -> Flat:
        """Encode each line by itself and without its line end, whose tokens are inserted after."""
        rows = [text.split("\n") for text in texts]
        flat = self._flat([line for lines in rows for line in lines])
        last = np.cumsum([len(lines) for lines in rows]) - 1
        ended = np.ones(len(flat.counts), bool)
        ended[last] = False  # the last line has no newline
        positions = np.repeat(np.cumsum(flat.counts)[ended], len(self.newline))
        newlines = np.tile(np.array(self.newline, np.uint32), int(ended.sum()))
        counts = flat.counts + len(self.newline) * ended
        line_ends = np.cumsum(counts)
        return Flat(
            np.insert(flat.ids, positions, newlines),
            np.diff(line_ends[last], prepend=0),
            line_ends[counts > 0],
            flat.num_unknown,
        )

    def encode(self, texts: Sequence[str], by_line: bool = False) -> Encoded:
        flat = self._flat_lines(texts) if by_line and not self.lines_alone else self._flat(texts)
        closings = np.cumsum(flat.counts)
        document_ends = closings + np.arange(1, len(texts) + 1)
        newline_ends = flat.newline_ends + np.searchsorted(closings, flat.newline_ends)
        # The closing <eos> belongs to the last line and is never a line of its own.
        inner = np.setdiff1d(newline_ends, document_ends - 1)
        return Encoded(
            ids=np.insert(flat.ids, closings, np.uint32(self.eos_id)),
            document_ends=document_ends,
            line_ends=np.union1d(inner, document_ends),
            num_bytes=np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts)),
            num_unknown=flat.num_unknown,
        )

    def encode_text(self, text: str) -> list[int]:
        return self._flat([text]).ids.tolist()

    def _spans_by(
        self, offsets: Callable[[str], Iterable[tuple[int, int]]], text: str, by_line: bool
    ) -> list[tuple[int, int]]:
        """`spans`, by a function that gives those of the tokens of a text encoded by itself."""
        spans: list[tuple[int, int]] = []
        begin = 0
        for line in text.split("\n") if by_line else [text]:
            spans += [(begin + first, begin + stop) for first, stop in offsets(line)]
            begin += len(line) + 1
            if begin <= len(text):
                spans += [(begin - 1, begin)] * len(self.newline)
        return [*spans, (len(text), len(text))]


class ByteSurfaces(DocumentTokenizer):
    """A tokenizer whose tokens are runs of bytes: `surfaces[id]`, empty for `<eos>`."""

    lossless = True
    surfaces: list[bytes]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.surfaces[i] for i in ids).decode(errors="replace")

    def pieces(self, ids: Sequence[int]) -> list[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        surfaces = [decoder.decode(self.surfaces[i]) for i in ids]
        if surfaces:
            surfaces[-1] += decoder.decode(b"", final=True)
        return surfaces


def by_frequency(
    counts: dict[str, int], *, min_frequency: int, size: int | None, specials: Sequence[str]
) -> list[str]:
    """The vocabulary, most frequent first, ties by first appearance (the order of `counts`).

    size: the most tokens it may have, including `specials`.
    The last of `specials` is the unknown token; its count is that of all tokens it replaces.
    """
    ordinary = {token: n for token, n in counts.items() if n >= min_frequency}
    for special in specials:
        ordinary.pop(special, None)
    kept = {*ordinary, *specials}
    if size is not None:
        ranked = sorted(ordinary, key=ordinary.__getitem__, reverse=True)  # stable, reversed or not
        kept = {*ranked[: size - len(specials)], *specials}
    encoded = {token: n for token, n in counts.items() if token in kept}
    replaced = sum(counts.values()) - sum(encoded.values())
    for special in specials:
        encoded.setdefault(special, 0)
    encoded[specials[-1]] += replaced
    return sorted(encoded, key=encoded.__getitem__, reverse=True)


def in_batches(
    items: Iterable[Item], length: Callable[[Item], int], size: int = 1 << 22
) -> Iterator[list[Item]]:
    """Group items into runs with a total length of at least `size` (the last may be shorter)."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += length(item)
        if total >= size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def at_least(setting: str, value: int | None, minimum: int, why: str) -> None:
    """Refuse a tokenizer's setting below `minimum`."""
    if value is not None and value < minimum:
        raise UserError(f"tokenizer.{setting}={value}: must be at least {minimum} ({why})")
