"""Which tokens begin a word, for tokenizers whose tokens hold the space before a word."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from lmkit.tokenizer.base import ByteSurfaces, Tokenizer
from lmkit.tokenizer.characters import Characters
from lmkit.tokenizer.subword import Pretrained

METASPACE = "\u2581"  # what SentencePiece writes for a space


def word_starts(tokenizer: Tokenizer) -> npt.NDArray[np.bool_] | None:
    """(vocabulary_size,): true for tokens that begin with whitespace, so that after a word they
    begin the next one. None if tokens do not hold the space before a word: where spaces are in no
    token, or where a token may go on after a space.

    A token with only the first bytes of a whitespace character does not count.
    """
    if isinstance(tokenizer, ByteSurfaces):
        surfaces = [surface.decode(errors="replace") for surface in tokenizer.surfaces]
    elif _holds_spaces(tokenizer):
        surfaces = _surfaces(tokenizer)
    else:
        return None
    if any(len(surface.split()) > 1 or surface.lstrip()[-1:].isspace() for surface in surfaces):
        return None
    return np.fromiter((surface[:1].isspace() for surface in surfaces), bool, len(surfaces))


def _holds_spaces(tokenizer: Tokenizer) -> bool:
    if isinstance(tokenizer, Pretrained):
        # WordPiece, and BPE with a mark at the end of a word, write spaces that no token holds.
        decoder = json.dumps(tokenizer.decoder, ensure_ascii=False)
        return tokenizer.lossless or '"ByteLevel"' in decoder or METASPACE in decoder
    return isinstance(tokenizer, Characters) or tokenizer.lossless


def _surfaces(tokenizer: Tokenizer) -> list[str]:
    """The surface of each token after another: at the start of a text a space may be left out."""
    ids = range(tokenizer.vocabulary_size)
    first = next(i for i in ids if tokenizer.pieces([i])[0].strip())
    return [tokenizer.pieces([first, i])[1] for i in ids]
