"""The tokenizer of words between whitespace, line by line, as in WikiText and the Penn Treebank."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from lmkit.tokenizer.base import (
    CountedTokenizer,
    Encoded,
    Positions,
    at_least,
    by_frequency,
    in_batches,
)

EOS, UNK = "<eos>", "<unk>"
WORD = re.compile(r"\S+|\n")  # cuts where str.split() does, and at line ends


class Word(CountedTokenizer):
    """`line.split() + ["<eos>"]` for every line; a blank line is one `<eos>`.

    A literal `<eos>` or `<unk>` in the text is that token, as in WikiText's own files.

    min_frequency: words rarer than this in the train split are `<unk>`.
    vocabulary_size: at most so many ids, the most frequent words, `<eos>` and `<unk>` counted.
    lower: read all text in lower case.
    """

    name = "word"
    trainable = True
    lossless = False

    def __init__(
        self, min_frequency: int = 1, vocabulary_size: int | None = None, lower: bool = False
    ) -> None:
        at_least("min_frequency", min_frequency, 1, "every word of the text occurs once")
        at_least("vocabulary_size", vocabulary_size, 3, "<eos>, <unk> and one word")
        self.min_frequency = min_frequency
        self.wanted_size = vocabulary_size
        self.lower = lower

    @classmethod
    def of(cls, vocabulary: Sequence[str], lower: bool = False) -> Self:
        """The tokenizer whose ids are the places in `vocabulary`, which has <eos> and <unk>."""
        tokenizer = cls(lower=lower)
        tokenizer._adopt(list(vocabulary))
        return tokenizer

    def _adopt(self, vocabulary: list[str]) -> None:
        self.vocabulary = vocabulary
        self.vocabulary_size = len(vocabulary)
        self._index = {word: i for i, word in enumerate(vocabulary)}
        self.eos_id = vocabulary.index(EOS)
        self._unk = self.unk_id = vocabulary.index(UNK)
        # Almost every chunk is a word and one space, and need not be decoded: look it up.
        spaced = " \n".join([*vocabulary, ""]).encode().split(b"\n")
        self._usual = dict(zip(spaced, range(len(vocabulary)), strict=False))
        self._usual[b"\n"] = self.eos_id

    def count(self, texts: Iterable[str]) -> dict[str, int]:
        chunks: dict[bytes, int] = {}
        for batch in in_batches(texts, len):
            text = _in_chunks(batch)
            for chunk, n in zip(text.chunks, np.bincount(text.codes).tolist(), strict=True):
                chunks[chunk] = chunks.get(chunk, 0) + n
        counts: dict[str, int] = {}
        for chunk, n in chunks.items():
            for word in self._split(chunk):
                counts[word] = counts.get(word, 0) + n
        return counts

    def learn(self, counts: dict[str, int]) -> None:
        vocabulary = by_frequency(
            counts,
            min_frequency=self.min_frequency,
            size=self.wanted_size,
            specials=(EOS, UNK),
        )
        self._adopt(vocabulary)

    def _split(self, chunk: bytes) -> list[str]:
        if chunk == b"\n":
            return [EOS]
        text = chunk.decode()
        return (text.lower() if self.lower else text).split()

    def encode(self, texts: Sequence[str], by_line: bool = False) -> Encoded:
        text = _in_chunks(texts)
        ids = np.array(list(map(self._usual.get, text.chunks, repeat(-1))), np.int32)
        unusual = {k: self._split(text.chunks[k]) for k in np.flatnonzero(ids < 0).tolist()}
        widths = np.ones(len(ids), np.int32)
        widths[list(unusual)] = list(map(len, unusual.values()))
        starts = np.cumsum(widths, dtype=np.int32) - widths
        # The ids of the words of each distinct chunk, in order.
        word_ids = np.repeat(ids, widths)
        unknown = np.zeros(len(word_ids), np.bool_)
        for k, words in unusual.items():
            for position, word in enumerate(words, start=starts[k]):
                word_ids[position] = self._index.get(word, self._unk)
                unknown[position] = word not in self._index
        tokens = _spread(text.codes, starts, widths)
        line_ends = np.flatnonzero(tokens == starts[text.chunks.index(b"\n")]) + 1
        return Encoded(
            ids=word_ids.astype(np.uint32)[tokens],
            document_ends=line_ends[text.line_counts - 1],
            line_ends=line_ends,
            num_bytes=text.num_bytes,
            num_unknown=int(unknown[tokens].sum()) if unknown.any() else 0,
        )

    def unknown(self, text: str, by_line: bool = False) -> dict[int, str]:
        text = text.lower() if self.lower else text
        lines = text.removesuffix("\n").split("\n")
        words = (word for line in lines for word in (*line.split(), EOS))
        return {i: word for i, word in enumerate(words) if word not in self._index}

    def spans(self, text: str, by_line: bool = False) -> list[tuple[int, int]]:
        """A word's, or that of the newline that an `<eos>` stands for."""
        closed = [] if text.endswith("\n") else [(len(text), len(text))]
        return [*(match.span() for match in WORD.finditer(text)), *closed]

    def encode_text(self, text: str) -> list[int]:
        text = text.lower() if self.lower else text
        lines = [line.split() for line in text.split("\n")]
        words = lines[0] + [word for line in lines[1:] for word in (EOS, *line)]
        return [self._index.get(word, self._unk) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        surfaces = []
        line_start = True
        for i in ids:
            word = "\n" if i == self.eos_id else self.vocabulary[i]
            surfaces.append(word if line_start or word == "\n" else f" {word}")
            line_start = word == "\n"
        return surfaces

    def settings(self) -> dict[str, Any]:
        return {
            "min_frequency": self.min_frequency,
            "vocabulary_size": self.wanted_size,
            "lower": self.lower,
        }

    def _state(self) -> dict[str, Any]:
        # In the file the size keeps its old name, on which the hashes of saved tokenizers depend.
        names = {"vocabulary_size": "max_size"}
        settings = {names.get(key, key): value for key, value in self.settings().items()}
        return {"settings": settings, "vocabulary": self.vocabulary}

    @classmethod
    def _restore(cls, state: dict[str, Any]) -> Self:
        names = {"max_size": "vocabulary_size"}
        tokenizer = cls(**{names.get(key, key): value for key, value in state["settings"].items()})
        tokenizer._adopt(state["vocabulary"])
        return tokenizer


class _Chunks(NamedTuple):
    """A text as chunks: `chunks` has each distinct one, `codes` their order in the text.

    line_counts: (documents,) lines up to each document's end. num_bytes: (documents,).
    """

    codes: npt.NDArray[np.int32]
    chunks: list[bytes]
    line_counts: Positions
    num_bytes: Positions


def _in_chunks(texts: Sequence[str]) -> _Chunks:
    """Cut after every space and around every newline, so that each word is a chunk of its own.

    Python then has to look at distinct chunks only; other whitespace stays inside a chunk.
    """
    import pyarrow as pa

    encoded = [text.encode() for text in texts]
    closed = [text if text.endswith(b"\n") else text + b"\n" for text in encoded]
    data = b"".join(closed)
    characters = np.frombuffer(data, np.uint8)
    newline = characters == ord("\n")
    cuts = np.empty(len(data) + 1, np.bool_)
    cuts[0] = True
    cuts[1:] = newline | (characters == ord(" "))
    cuts[:-1] |= newline
    offsets = np.flatnonzero(cuts)
    chunks = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    ).dictionary_encode()
    closings = np.cumsum([len(text) for text in closed])
    return _Chunks(
        codes=chunks.indices.to_numpy(),
        chunks=chunks.dictionary.to_pylist(),
        line_counts=np.searchsorted(np.flatnonzero(newline), closings),
        num_bytes=np.fromiter(map(len, encoded), np.int64, len(encoded)),
    )


def _spread(
    codes: npt.NDArray[np.int32], starts: npt.NDArray[np.int32], widths: npt.NDArray[np.int32]
) -> npt.NDArray[np.integer[Any]]:
    """From chunks to words: code c becomes `starts[c], .., starts[c] + widths[c] - 1`."""
    if widths.max() <= 1:
        tokens = np.where(widths == 1, starts, -1)[codes]
        return tokens[tokens >= 0]
    repeats = widths[codes]
    within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    return np.repeat(starts[codes], repeats) + within
