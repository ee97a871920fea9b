"""The tokenizer of a closed vocabulary, whose tokens a regular expression finds in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from lmkit.errors import UserError
from lmkit.tokenizer.base import DocumentTokenizer, Flat


class Pattern(DocumentTokenizer):
    """Each match of `pattern` in a text is a token, its place in `vocabulary` its id.

    pattern: matches at every place of any text. eos: the token that closes a document. Encoding
    raises UserError for what is not in the vocabulary.
    """

    name = "pattern"
    unk_id = None
    lossless = True

    def __init__(self, pattern: str, vocabulary: Sequence[str], eos: str) -> None:
        self.pattern, self.vocabulary, self.eos = pattern, list(vocabulary), eos
        self.vocabulary_size = len(vocabulary)
        self._match = re.compile(pattern)
        self._index = {token: i for i, token in enumerate(vocabulary)}
        self.eos_id = self._index[eos]

    def train(self, texts: Iterable[str]) -> None:
        """Does nothing: the vocabulary is fixed."""

    def _flat(self, texts: Sequence[str]) -> Flat:
        cut = [self._match.findall(text) for text in texts]
        tokens = [token for each in cut for token in each]
        ids = np.fromiter((self._index.get(token, -1) for token in tokens), np.int64, len(tokens))
        if (ids < 0).any():
            unknown = tokens[int(np.argmax(ids < 0))]
            raise UserError(f"the vocabulary has no {unknown!r}, and no token for unknown text")
        newline_ends = np.flatnonzero([token.endswith("\n") for token in tokens]) + 1
        counts = np.fromiter(map(len, cut), np.int64, len(cut))
        return Flat(ids.astype(np.uint32), counts, newline_ends, 0)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return ["" if i == self.eos_id else self.vocabulary[i] for i in ids]

    def settings(self) -> dict[str, Any]:
        return {"pattern": self.pattern, "vocabulary": self.vocabulary, "eos": self.eos}

    def _state(self) -> dict[str, Any]:
        return self.settings()

    @classmethod
    def _restore(cls, state: dict[str, Any]) -> Self:
        return cls(state["pattern"], state["vocabulary"], state["eos"])
