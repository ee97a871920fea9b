"""Words of texts, whatever the tokenizer, and the measures of their tokens summed for each.

A word is what stands between whitespace. A token belongs to the word of its first character that
is not whitespace; one of whitespace alone belongs to the word after it, or to the last one. What
ends a text, or a line that is read by itself, belongs to no word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmkit.inference.text import Text
from lmkit.tokenizer import Encoded, Tokenizer
from lmkit.tokenizer.base import in_batches

WORD = re.compile(r"\S+")

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Words(NamedTuple):
    """The words of some texts, in order.

    words: as they are spelled. cell: (words,), the number of the cell that each stands in. unit:
    (words,), the number of the text, or of the line under `sentence`: what is read from the zero
    state. token_word: (tokens,), the number of the word that a token belongs to, -1 for none.
    """

    words: list[str]
    cell: Integers
    unit: Integers
    token_word: Integers
    blank: Flags

    @property
    def begins(self) -> Flags:
        """(words,): whether a word is the first of its unit."""
        return np.diff(self.unit, prepend=-1) > 0


def read_words(
    texts: Sequence[Sequence[str]], joint: str, tokenizer: Tokenizer, by_line: bool
) -> tuple[Text, Words]:
    """The tokens and the words of texts, each of one or more cells that `joint`, a space or a
    newline, joins. by_line: read each line by itself."""
    words: list[str] = []
    numbers: list[tuple[Integers, Integers, Integers, Flags]] = []
    encodings: list[Encoded] = []
    num_cells = num_units = 0
    for batch in in_batches(texts, lambda cells: sum(map(len, cells)), 1 << 20):
        joined = [joint.join(cells) for cells in batch]
        encoded = tokenizer.encode(joined, by_line)
        encodings.append(encoded)
        begin = 0
        for text, cells, end in zip(joined, batch, encoded.document_ends.tolist(), strict=True):
            ids = encoded.ids[begin:end].tolist()
            found, cell, unit, token_word, blank = _words_of(text, cells, ids, tokenizer, by_line)
            token_word[token_word >= 0] += len(words)
            numbers.append((num_cells + cell, num_units + unit, token_word, blank))
            words += found
            num_cells += len(cells)
            num_units += 1 + (text.count("\n") if by_line else 0)
            begin = end
    return _together(encodings), Words(words, *map(np.concatenate, zip(*numbers, strict=True)))


def _words_of(
    text: str, cells: Sequence[str], ids: Sequence[int], tokenizer: Tokenizer, by_line: bool
) -> tuple[list[str], Integers, Integers, Integers, Flags]:
    """The words of one text, and what else `Words` has of them and of its tokens."""
    found = [match.span() for match in WORD.finditer(text)]
    begins, stops = np.array(found, np.int64).T
    spans = tokenizer.spans(text, by_line)
    assert len(spans) == len(ids)
    token_begins = np.array([begin for begin, _ in spans], np.int64)
    # The first word that ends after the token begins.
    token_word = np.minimum(np.searchsorted(stops, token_begins, side="right"), len(found) - 1)
    blank = np.array([not text[begin:stop].strip() for begin, stop in spans])
    for i in np.flatnonzero(blank).tolist():  # a literal `<eos>` in the text is a word
        if ids[i] == tokenizer.eos_id or (by_line and "\n" in text[slice(*spans[i])]):
            token_word[i] = -1
    cell_ends = np.cumsum([len(cell) + 1 for cell in cells])
    cell = np.searchsorted(cell_ends, begins, side="right")
    newlines = [i for i, c in enumerate(text) if c == "\n"] if by_line else []
    unit = np.searchsorted(np.array(newlines, np.int64), begins)
    return [text[begin:stop] for begin, stop in found], cell, unit, token_word, blank


def _together(encodings: Sequence[Encoded]) -> Text:
    """Texts that were encoded in several batches."""
    before = np.cumsum([0, *(len(each.ids) for each in encodings)])[:-1]
    pairs = [*zip(before, encodings, strict=True)]
    return Text(
        np.concatenate([each.ids for each in encodings]),
        np.concatenate([start + each.document_ends for start, each in pairs]),
        np.concatenate([start + each.line_ends for start, each in pairs]),
        sum(int(each.num_bytes.sum()) for each in encodings),
        sum(each.num_unknown for each in encodings),
    )


class Measures(NamedTuple):
    """Of each word, (words,); of one without a token of its own those in floats are not a number.

    surprisal: in bits, the sum over its tokens. corrected: the same for the word with its end and
    without the space before it, None where no token holds spaces. entropy: in bits, of the
    prediction of its first token that is not whitespace alone; rank: of that token, 0 for no token.
    unknown: whether a token of it is `<unk>`. num_tokens: that belong to it.
    """

    surprisal: Floats
    corrected: Floats | None
    entropy: Floats
    rank: Integers
    unknown: Flags
    num_tokens: Integers


class TokenMeasures(NamedTuple):
    """Of each token, (tokens,): `bits` of surprisal, `entropy` in bits, `rank`; `shares` (tokens,
    2), of the tokens that may follow a whole word, and of those that may begin a text."""

    bits: Floats
    entropy: Floats
    rank: Integers
    shares: Floats


def sum_up(words: Words, tokens: TokenMeasures, unknown: Flags, starts: Flags | None) -> Measures:
    """The measures of words from those of tokens.

    unknown: (tokens,), whether it is `<unk>`. starts: (tokens,), whether it begins with whitespace,
    None where no token holds spaces.

    The correction is that of Pimentel and Meister (2024, for tokens that mark where a word begins)
    and of Oh and Schuler (2024): with B the share of the tokens that begin with whitespace, and
    `<eos>`, p(word) is the product of its tokens' probabilities times B after the word, divided by
    B before the word; before a first word without a space, by the share of all other tokens.
    """
    num_words = len(words.words)
    owned = np.flatnonzero(words.token_word >= 0)
    owner = words.token_word[owned]
    num_tokens = np.bincount(owner, minlength=num_words)
    there = num_tokens > 0
    first, last, letter = np.zeros((3, num_words), np.int64)
    first[owner[::-1]], last[owner] = owned[::-1], owned
    letters = owned[~words.blank[owned]]
    letter[:] = first
    letter[words.token_word[letters[::-1]]] = letters[::-1]
    surprisal = np.bincount(owner, tokens.bits[owned], num_words)
    corrected = None
    if starts is not None:
        with np.errstate(divide="ignore"):
            log_shares = np.log2(tokens.shares)
        before = np.where(starts[first], log_shares[first, 0], log_shares[first, 1])
        corrected = np.where(there, surprisal + before - log_shares[last + 1, 0], np.nan)
    return Measures(
        np.where(there, surprisal, np.nan),
        corrected,
        np.where(there, tokens.entropy[letter], np.nan),
        np.where(there, tokens.rank[letter], 0),
        np.bincount(owner, unknown[owned], num_words) > 0,
        num_tokens,
    )


def reductions(entropy: Floats, begins: Flags) -> Floats:
    """The entropy reduction of each word, in bits: max(0, H of the word before - H of the word), 0
    for the first word of a unit; as neural-complexity computes it (van Schijndel and Linzen 2018,
    after Hale 2006)."""
    before = np.concatenate([entropy[:1], entropy[:-1]])
    return np.where(begins, entropy - entropy, np.maximum(before - entropy, 0))


def previous(numbers: Integers, begins: Flags) -> Integers:
    """The number of the word before each of these words of its unit, -1 where there is none.

    numbers: (words,), of a word, or -1."""
    return np.where((numbers < 0) | begins[numbers], -1, numbers - 1)
