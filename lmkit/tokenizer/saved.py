"""Loads a tokenizer from the file that it was saved to."""

from __future__ import annotations

import json
from pathlib import Path

from lmkit.errors import UserError
from lmkit.system.allowed import allowed_class, remedy, under, users_prefixes
from lmkit.system.regular_file import read_bytes
from lmkit.tokenizer.base import FILE, FORMAT, AnyTokenizer, Tokenizer
from lmkit.tokenizer.characters import Bytes, Characters
from lmkit.tokenizer.pattern import Pattern
from lmkit.tokenizer.sentencepiece import SentencePiece
from lmkit.tokenizer.subword import ByteLevelBPE, Pretrained
from lmkit.tokenizer.word import Word

MAX_TOKENIZER = 1 << 30  # bytes; a vocabulary of a million words has 20 MiB


class Stored(AnyTokenizer):
    """A tokenizer that has been saved: the one that prepared tokens come with, or `path`'s."""

    is_saved = True

    def __init__(self, path: str | None = None) -> None:
        """path: a directory of `lmkit prepare`, a run, or the file there."""
        self.path = path

    def resolved(self) -> Tokenizer | None:
        return None if self.path is None else load_tokenizer(Path(self.path).expanduser())


KINDS: tuple[type[Tokenizer], ...] = (
    Word,
    ByteLevelBPE,
    Characters,
    Bytes,
    Pretrained,
    SentencePiece,
    Pattern,
)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that `save` wrote; path: the file or its directory."""
    path = Path(path)
    try:
        path = path / FILE if path.is_dir() else path
        state = json.loads(read_bytes(path, MAX_TOKENIZER))
    except OSError as error:
        raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the tokenizer is damaged: not JSON: {error}") from None
    return restored(state, path)


def restored(state: object, path: Path) -> Tokenizer:
    """The tokenizer of which `Tokenizer.saved` gave the state; path: where it was read, for
    messages."""
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f'{path}: not a tokenizer that lmkit saved (no "format": "{FORMAT}"); '
            "another library's tokenizer.json is used with tokenizer=pretrained tokenizer.path=FILE"
        )
    kind = _kind(path, state.get("name"))
    try:
        return kind._restore(state)
    except UserError as error:
        raise UserError(f"{path}: the tokenizer is damaged: {error}") from None
    except Exception as error:  # the library, or a missing key, may raise anything
        raise UserError(f"{path}: the tokenizer is damaged: {error!r}") from None


def _kind(path: Path, name: object) -> type[Tokenizer]:
    """The class of a tokenizer by what its file calls it: lmkit's own, or one of a package that
    the user allows."""
    kinds = {kind.name: kind for kind in KINDS}
    if name in kinds:
        return kinds[str(name)]
    if not isinstance(name, str) or not under(name, users_prefixes()):
        known = f"expected one of {', '.join(kinds)}"
        raise UserError(f"{path}: unknown tokenizer {name!r}, {known}{remedy(str(name))}")
    try:
        found = allowed_class(name, users_prefixes())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not issubclass(found, Tokenizer):
        raise UserError(f"{path}: {name} is no tokenizer")
    return found
