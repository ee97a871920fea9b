"""The tokenizers that have a token for each byte, or for each character."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from lmkit.tokenizer.base import (
    ByteSurfaces,
    CountedTokenizer,
    DocumentTokenizer,
    Encoded,
    Flat,
    at_least,
    by_frequency,
)
from lmkit.tokenizer.word import EOS, UNK


class Bytes(ByteSurfaces):
    """A token for each of the 256 bytes of UTF-8, and `<eos>`."""

    name = "bytes"
    trainable = False
    eos_id = 256
    unk_id = None
    vocabulary_size = 257
    surfaces = [*(bytes([byte]) for byte in range(256)), b""]  # noqa: RUF012

    def train(self, texts: Iterable[str]) -> None:
        """Does nothing: the vocabulary is fixed."""

    def _flat(self, texts: Sequence[str]) -> Flat:
        data = [text.encode() for text in texts]
        ids = np.frombuffer(b"".join(data), np.uint8).astype(np.uint32)
        counts = np.fromiter(map(len, data), np.int64, len(data))
        return Flat(ids, counts, np.flatnonzero(ids == ord("\n")) + 1, 0)

    def settings(self) -> dict[str, Any]:
        return {}

    def _state(self) -> dict[str, Any]:
        return {}

    @classmethod
    def _restore(cls, state: dict[str, Any]) -> Self:
        return cls()


class Characters(DocumentTokenizer, CountedTokenizer):
    """Unicode code points, of the train split.

    min_frequency: characters rarer than this in the train split are `<unk>`.
    vocabulary_size: at most so many ids, the most frequent characters, `<eos>` and `<unk>` counted.
    """

    name = "characters"
    trainable = True
    lossless = False

    def __init__(self, min_frequency: int = 1, vocabulary_size: int | None = None) -> None:
        at_least("min_frequency", min_frequency, 1, "every character of the text occurs once")
        at_least("vocabulary_size", vocabulary_size, 3, "<eos>, <unk> and one character")
        self.min_frequency = min_frequency
        self.wanted_size = vocabulary_size

    def count(self, texts: Iterable[str]) -> dict[str, int]:
        counts: Counter[str] = Counter()
        num_documents = 0
        for num_documents, text in enumerate(texts, start=1):  # noqa: B007
            counts.update(text)
        return {**counts, EOS: num_documents}

    def learn(self, counts: dict[str, int]) -> None:
        characters = {token: n for token, n in counts.items() if token != EOS}
        self._adopt(
            by_frequency(
                {**characters, EOS: counts[EOS]},
                min_frequency=self.min_frequency,
                size=self.wanted_size,
                specials=(EOS, UNK),
            )
        )

    @classmethod
    def of(cls, vocabulary: Sequence[str]) -> Self:
        """The tokenizer whose ids are the places in `vocabulary`, which has <unk>, and <eos> or a
        newline: then each line is closed with that. What is longer than a character is never read.
        """
        tokenizer = cls()
        tokenizer._adopt(list(vocabulary))
        return tokenizer

    def _adopt(self, vocabulary: list[str]) -> None:
        self.vocabulary = vocabulary
        self.vocabulary_size = len(vocabulary)
        self._closes_lines = EOS not in vocabulary
        self.eos_id = vocabulary.index("\n" if self._closes_lines else EOS)
        self.unk_id = vocabulary.index(UNK)
        self._surfaces = ["" if token == EOS else token for token in vocabulary]
        self._id_of = np.full(0x110000, self.unk_id, np.uint32)
        for i, character in enumerate(vocabulary):
            if len(character) == 1:
                self._id_of[ord(character)] = i

    def encode(self, texts: Sequence[str], by_line: bool = False) -> Encoded:
        if self._closes_lines:  # a last line that has its newline is closed already
            texts = [text.removesuffix("\n") for text in texts]
        return super().encode(texts, by_line)

    def _flat(self, texts: Sequence[str]) -> Flat:
        points = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        ids = self._id_of[points]
        counts = np.fromiter(map(len, texts), np.int64, len(texts))
        newline_ends = np.flatnonzero(points == ord("\n")) + 1
        return Flat(ids, counts, newline_ends, int((ids == self.unk_id).sum()))

    def unknown(self, text: str, by_line: bool = False) -> dict[int, str]:
        ids = self._flat([text]).ids
        return {i: text[i] for i in np.flatnonzero(ids == self.unk_id).tolist()}

    def spans(self, text: str, by_line: bool = False) -> list[tuple[int, int]]:
        closed = self._closes_lines and text.endswith("\n")
        return [*((i, i + 1) for i in range(len(text))), *([] if closed else [(len(text),) * 2])]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._surfaces[i] for i in ids]

    def settings(self) -> dict[str, Any]:
        # Only with a bound, which is a later setting: so the hashes of saved tokenizers stay.
        bound = {} if self.wanted_size is None else {"vocabulary_size": self.wanted_size}
        return {"min_frequency": self.min_frequency, **bound}

    def _state(self) -> dict[str, Any]:
        return {"settings": self.settings(), "vocabulary": self.vocabulary}

    @classmethod
    def _restore(cls, state: dict[str, Any]) -> Self:
        tokenizer = cls(**state["settings"])
        tokenizer._adopt(state["vocabulary"])
        return tokenizer
