"""Word lists of other programs, as a tokenizer of words: the ids stay theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from lmkit.errors import UserError
from lmkit.system.regular_file import read_bytes
from lmkit.tokenizer import Word
from lmkit.tokenizer.word import EOS, UNK

MAX_VOCABULARY = 1 << 30  # bytes
# What other programs call the end of a sentence and an unknown word.
ENDS = (EOS, "</s>", "<sos/eos>", "<EOS>", "[EOS]")
UNKNOWNS = (UNK, "<UNK>", "[UNK]", "<oov>", "<OOV>")
NUMBERED = re.compile(r"(\S+)[ \t]+(\d+)")  # a line of tokens.txt


def read_vocabulary(path: Path) -> list[str]:
    """The words by id: of a text with a word in each line, or a word and its id; of a JSON list, or
    JSON that gives each word its id; of YAML with a `token_list`, as ESPnet writes it."""
    text = _decoded(path)
    try:
        if path.suffix == ".json":
            return _ordered(path, json.loads(text))
        if path.suffix in (".yaml", ".yml"):
            found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            return _ordered(path, found.get("token_list") if isinstance(found, dict) else found)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: the vocabulary cannot be read: {reason}") from None
    lines = text.removesuffix("\n").split("\n")
    numbered = [NUMBERED.fullmatch(line) for line in lines]
    if all(numbered):
        return _ordered(path, {match[1]: int(match[2]) for match in numbered if match})
    return [line.removesuffix("\r") for line in lines]


def _decoded(path: Path) -> str:
    try:
        return read_bytes(path, MAX_VOCABULARY).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"vocabulary={path}: no such file") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        message = f"{path}: the vocabulary is not UTF-8: byte {error.start:,} is {byte:#x}"
        raise UserError(message) from None


def _ordered(path: Path, found: object) -> list[str]:
    """The words of a list, or of a mapping to ids 0, 1, 2, and so on."""
    if isinstance(found, dict):
        ids = sorted(found.values()) if all(type(i) is int for i in found.values()) else []
        if ids == list(range(len(found))):
            return [str(word) for word, _ in sorted(found.items(), key=lambda item: item[1])]
        raise UserError(f"{path}: expected each word's id, from 0 to {len(found) - 1:,}, once")
    if isinstance(found, list) and all(isinstance(word, str) for word in found):
        return found
    raise UserError(f"{path}: expected a list of words, or each word with its id")


def word_tokenizer(
    path: Path, words: Sequence[str], size: int, eos: str | None, unk: str | None
) -> Word:
    """The tokenizer whose id of each word is that of the list.

    size: rows of the model's matrices. eos, unk: the words that end a sentence and stand for
    unknown ones, if not one of ENDS and UNKNOWNS; they are called <eos> and <unk> then.
    """
    if len(words) != size:
        raise UserError(f"{path} has {len(words):,} words, the model's matrices {size:,} rows")
    first = {word: i for i, word in reversed(list(enumerate(words)))}
    if len(first) != len(words):
        again = next(word for i, word in enumerate(words) if first[word] != i)
        raise UserError(f"{path} has the word {again!r} twice")
    named = list(words)
    for role, given, usual, key in (
        ("ends a sentence", eos, ENDS, EOS),
        ("stands for unknown words", unk, UNKNOWNS, UNK),
    ):
        word = given if given is not None else next((w for w in usual if w in first), None)
        if word not in first:
            found = f"no {word!r}" if word is not None else f"none of {', '.join(usual)}"
            raise UserError(f"{path} has {found}, the word that {role}: name it with {key[1:-1]}=")
        if key in first and word != key:
            raise UserError(f"{path} has {word!r} and {key!r}: one of them {role}, not both")
        named[first[word]] = key
    return Word.of(named)
