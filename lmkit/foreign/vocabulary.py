"""Vocabularies of other programs: the tokens of a model by their ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lmkit.errors import UserError
from lmkit.foreign.file import read
from lmkit.foreign.unpickler import Record
from lmkit.system.regular_file import read_bytes
from lmkit.tokenizer.word_list import by_id, decoded, read_words

MAX_VOCABULARY = 1 << 30  # bytes
PICKLED = (b"PK", b"\x80\x02")  # how files of torch.save begin
# What the objects of other programs call their lists of tokens, or mappings from id to token.
LISTS = ("idx2word", "idx2item", "itos", "i2c", "_tokens")

Unit = Literal["word", "character", "smiles"]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model by id.

    where: the file that has them. unit: what a token is, where the file's kind says it. bos, eos:
    the tokens before which and with which a text begins and ends, where it says them. library: it
    is a tokenizer.json of the `tokenizers` library, which says all of this itself.
    """

    where: Path
    tokens: tuple[str, ...] = ()
    unit: Unit | None = None
    bos: str | None = None
    eos: str | None = None
    library: bool = False


def held_vocabulary(value: Any, where: Path) -> Vocabulary | None:
    """The vocabulary in what a file of `torch.save` holds: a model of Flair or REINVENT, a
    vocabulary of MOSES, or the dictionary of pytorch/examples; None if there is none."""
    held = _attributes(value)
    if tokens := _listed(where, held):
        return Vocabulary(where, tokens, unit="character" if "i2c" in held else None)
    if tokens := _listed(where, _attributes(held.get("dictionary"))):  # Flair
        end = held.get("document_delimiter", "\n")
        return Vocabulary(where, tokens, unit="character", bos=end, eos=end)
    reinvent = _attributes(held.get("vocabulary"))
    if reinvent and (tokens := _listed(where, {"_tokens": reinvent, **reinvent})):
        return Vocabulary(where, tokens, unit="smiles", bos="^", eos="$")
    return None


def _attributes(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Record):
        return value.attributes()
    return value if isinstance(value, dict) else {}


def _listed(where: Path, holder: Mapping[str, Any]) -> tuple[str, ...]:
    """The tokens that it has under one of LISTS, by id; REINVENT's mapping goes both ways."""
    found = next(
        (holder[name] for name in LISTS if isinstance(holder.get(name), list | dict)), None
    )
    if found is None:
        return ()
    if isinstance(found, list):
        tokens = [item.decode() if isinstance(item, bytes) else item for item in found]
        return _ordered(where, tokens)
    by_id = {token: i for i, token in found.items() if type(i) is int}
    return _ordered(where, by_id or found)


def read_vocabulary(path: Path) -> Vocabulary:
    """The tokens by id: of a text with a word in each line, or a word and its id; of a JSON list,
    or JSON that gives each word its id; of YAML with a `token_list`, as ESPnet writes it; of a
    tokenizer.json; of a vocabulary or dictionary that `torch.save` has written."""
    data = _bytes(path)
    if data.startswith(PICKLED):
        found = held_vocabulary(read(path), path)
        if found is None:
            raise UserError(f"{path}: no vocabulary that can be read: none of {', '.join(LISTS)}")
        return found
    text = decoded(path, data)
    try:
        if path.suffix == ".json":
            found = json.loads(text)
            if isinstance(found, dict) and isinstance(found.get("model"), dict):
                return Vocabulary(path, library=True)
            return Vocabulary(path, _ordered(path, found))
        if path.suffix in (".yaml", ".yml"):
            found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            tokens = found.get("token_list") if isinstance(found, dict) else found
            return Vocabulary(path, _ordered(path, tokens))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: the vocabulary cannot be read: {reason}") from None
    return Vocabulary(path, read_words(path, text))


def _bytes(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_VOCABULARY)
    except FileNotFoundError:
        raise UserError(f"vocabulary={path}: no such file") from None


def _ordered(path: Path, found: object) -> tuple[str, ...]:
    """The words of a list, or of a mapping to ids 0, 1, 2, and so on."""
    if isinstance(found, dict):
        return by_id(path, found)
    if isinstance(found, list) and all(isinstance(word, str) for word in found):
        return tuple(found)
    raise UserError(f"{path}: expected a list of words, or each word with its id")
