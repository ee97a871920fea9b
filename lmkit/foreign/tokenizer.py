"""From another program's vocabulary to a tokenizer: the ids stay theirs."""

from __future__ import annotations

from collections.abc import Sequence

from lmkit.errors import UserError
from lmkit.foreign.vocabulary import Unit, Vocabulary
from lmkit.tokenizer import Characters, Pattern, Pretrained, Tokenizer, Word
from lmkit.tokenizer.word import EOS, UNK
from lmkit.tokenizer.word_list import ENDS, UNKNOWNS, check_once, role

# What other programs call the beginning of a text, and a space.
STARTS = ("<bos>", "<BOS>", "<s>", "<sos>", "[BOS]")
SPACE = "<space>"
# REINVENT's tokens: an atom in brackets, a ring of two digits, the two atoms of two letters.
SMILES = r"\[[^\]]*\]|%\d{2}|Br|Cl|[\s\S]"


def foreign_tokenizer(vocabulary: Vocabulary, size: int, unk: str | None) -> Tokenizer:
    """The tokenizer whose id of each token is that of the vocabulary.

    size: rows of the model's matrices. unk: the token that stands for unknown ones, if not one of
    UNKNOWNS. It and the one that ends a text are called <unk> and <eos> then.
    """
    path, tokens = vocabulary.where, vocabulary.tokens
    if vocabulary.library:
        pretrained = Pretrained(str(path), vocabulary.eos)
        _check_size(path, pretrained.vocabulary_size, size)
        return pretrained
    blank = [number for number, token in enumerate(tokens, 1) if not token.strip(" ")]
    _check_size(path, len(tokens), size, f"; line {blank[0]:,} is empty" if blank else "")
    check_once(path, tokens)
    unit = vocabulary.unit or _unit(tokens)
    eos = role(path, tokens, vocabulary.eos, ENDS, "eos", "ends a sentence")
    if unit == "smiles":
        return Pattern(SMILES, tokens, eos)
    unk = role(path, tokens, unk, UNKNOWNS, "unk", "stands for unknown words")
    roles = {eos: EOS, unk: UNK}
    if unit == "character":
        roles = {**roles, eos: eos if eos == "\n" else EOS, SPACE: " "}
    renamed = [roles.get(token, token) for token in tokens]
    return Characters.of(renamed) if unit == "character" else Word.of(renamed)


def start_id(vocabulary: Vocabulary, tokenizer: Tokenizer) -> int:
    """The id before which a text begins: that of `bos`, or of a usual name of it; else <eos>."""
    tokens, bos = vocabulary.tokens, vocabulary.bos
    if bos is None:
        bos = next((name for name in STARTS if name in tokens), None)
    if bos is None or bos == vocabulary.eos:
        return tokenizer.eos_id
    if bos not in tokens:
        raise UserError(f"{vocabulary.where} has no {bos!r}, the word before which a text begins")
    return tokens.index(bos)


def _check_size(path: object, words: int, rows: int, more: str = "") -> None:
    if words != rows:
        raise UserError(f"{path} has {words:,} words, the model's matrices {rows:,} rows{more}")


def _unit(tokens: Sequence[str]) -> Unit:
    """Characters if all tokens are, but for those with names such as <eos>."""
    plain = [token for token in tokens if not (len(token) > 2 and token[0] in "<[")]
    return "character" if plain and all(len(token) == 1 for token in plain) else "word"
