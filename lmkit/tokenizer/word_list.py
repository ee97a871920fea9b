"""Words of a list that another program has made: `vocab.txt`, `tokens.txt`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmkit.errors import UserError
from lmkit.system.regular_file import read_bytes
from lmkit.tokenizer.base import AnyTokenizer
from lmkit.tokenizer.word import EOS, UNK, Word

MAX_LIST = 1 << 30  # bytes
NUMBERED = re.compile(r"(\S+)[ \t]+(\d+)")  # a line of tokens.txt
# What other programs call the end of a text and an unknown word.
ENDS = (EOS, "</s>", "<sos/eos>", "<EOS>", "[EOS]")
UNKNOWNS = (UNK, "<UNK>", "[UNK]", "<oov>", "<OOV>")


class WordList(AnyTokenizer):
    """Words between spaces, as `word`, with the ids of a list.

    path: a text with a word in each line, or a word and its id.
    eos, unk: the words that end a line and stand for unknown ones; null: those of a usual name.
    lower: read all text in lower case.
    """

    def __init__(
        self, path: str, eos: str | None = None, unk: str | None = None, lower: bool = False
    ) -> None:
        file = Path(path).expanduser()
        try:
            text = decoded(file, read_bytes(file, MAX_LIST))
        except OSError as error:
            raise UserError(f"tokenizer.path={path}: cannot read {file}: {error}") from None
        self.words = read_words(file, text)
        roles = word_roles(file, self.words, eos, unk)
        self._word = Word.of([roles.get(word, word) for word in self.words], lower)

    def resolved(self) -> Word:
        return self._word


def decoded(path: Path, data: bytes) -> str:
    """The text of a list."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        message = f"{path}: the vocabulary is not UTF-8: byte {error.start:,} is {byte:#x}"
        raise UserError(message) from None


def read_words(path: Path, text: str) -> tuple[str, ...]:
    """The words of a list by id: one in each line, or a word and its id."""
    lines = text.removesuffix("\n").split("\n")
    numbered = [NUMBERED.fullmatch(line) for line in lines]
    if all(numbered):
        return by_id(path, {match[1]: int(match[2]) for match in numbered if match})
    return tuple(line.removesuffix("\r") for line in lines)


def by_id(path: Path, ids: Mapping[str, int]) -> tuple[str, ...]:
    """The words of a mapping to the ids 0, 1, 2, and so on."""
    are_numbers = all(type(i) is int for i in ids.values())
    if not are_numbers or sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{path}: expected each word's id, from 0 to {len(ids) - 1:,}, once")
    return tuple(str(word) for word, _ in sorted(ids.items(), key=lambda item: item[1]))


def word_roles(
    path: object, words: Sequence[str], eos: str | None, unk: str | None
) -> dict[str, str]:
    """What the words that end a text and stand for unknown ones are called here: <eos>, <unk>."""
    check_once(path, words)
    return {
        role(path, words, eos, ENDS, "eos", "ends a sentence"): EOS,
        role(path, words, unk, UNKNOWNS, "unk", "stands for unknown words"): UNK,
    }


def check_once(path: object, words: Sequence[str]) -> None:
    """Raise UserError for a word that is there twice."""
    if len(set(words)) != len(words):
        again, _ = Counter(words).most_common(1)[0]
        raise UserError(f"{path} has the word {again!r} twice")


def role(
    path: object, words: Sequence[str], given: str | None, usual: Sequence[str], key: str, what: str
) -> str:
    """The word that has a role: the one that is given, or else the first of the usual ones."""
    word = given if given is not None else next((w for w in usual if w in words), None)
    if word is None or word not in words:
        found = f"no {word!r}" if word is not None else f"none of {', '.join(usual)}"
        remedy = f": name it with {key}=" if given is None else ""
        raise UserError(f"{path} has {found}, the word that {what}{remedy}")
    name = f"<{key}>"
    if name in words and word != name:
        raise UserError(f"{path} has {word!r} and {name!r}: one of them {what}, not both")
    return word
