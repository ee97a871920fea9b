"""Respells the sentences of a suite as the corpus of a word-level model is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Literal

from lmkit.tokenizer import Tokenizer

Punctuation = Literal["as_is", "apart"]

MARKS = '.,;:?!"()'


def respelled(tokenizer: Tokenizer, punctuation: Punctuation, lower: bool) -> Callable[[str], str]:
    """The function that respells a text for a model; it changes what is between spaces only.

    A word that is a token of the vocabulary stays. With `apart`, of any other word

    - marks at its ends are words of their own; if the vocabulary has neither a full stop nor a
      comma, as that of Mikolov's Penn Treebank, they are left out;
    - `isn't` becomes `is n't` if the vocabulary has `n't`, as the Penn Treebank has, else `isn 't`
      if it has `'t`, as WikiText has;
    - `girl's` and `girls'` become `girl 's` and `girls '`;
    - `ex-wife` becomes `ex @-@ wife` if the vocabulary has `@-@`, as WikiText has.
    """

    @cache
    def known(word: str) -> bool:
        before = tokenizer.encode_text("a")
        ids = tokenizer.encode_text(f"a {word}")
        return len(ids) == len(before) + 1 and ids[-1] != tokenizer.unk_id

    has_marks = any(tokenizer.unk_id not in tokenizer.encode_text(mark) for mark in ".,")
    apart = _Apart(known, has_marks) if punctuation == "apart" else None

    @cache
    def word(text: str) -> str:
        text = text.lower() if lower else text
        return text if apart is None else apart.word(text)

    def respell(text: str) -> str:
        return " ".join(filter(None, map(word, text.split())))

    return respell if apart or lower else str


class _Apart:
    """Sets punctuation apart from a word, by what the vocabulary has."""

    def __init__(self, known: Callable[[str], bool], has_marks: bool) -> None:
        self.known = known
        self.has_marks = has_marks
        contraction = "n't" if known("n't") else "'t" if known("'t") else None
        self.endings = [re.compile(r"(.*\w)('\w*)")]
        if contraction:
            self.endings.insert(0, re.compile(rf"(.*\w)({contraction})"))
        self.hyphen = " @-@ " if known("@-@") else "-"

    def word(self, text: str) -> str:
        """What a word becomes: words with spaces between them, or nothing."""
        if self.known(text):
            return text
        for mark in (text[0], text[-1]):
            if mark in MARKS:
                inner = text[1:] if mark == text[0] else text[:-1]
                parts = [self.word(inner)] if inner else []
                marks = [mark] if self.has_marks else []
                return " ".join(marks + parts if mark == text[0] else parts + marks)
        for ending in self.endings:
            if found := ending.fullmatch(text):
                return f"{self.word(found[1])} {found[2]}"
        return re.sub(r"(?<=\w)-(?=\w)", self.hyphen, text)
