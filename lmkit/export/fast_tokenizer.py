"""lmkit's tokenizers as tokenizers of the `tokenizers` library, with the same ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lmkit.errors import UserError
from lmkit.tokenizer import ByteLevelBPE, Bytes, Characters, Pattern, Pretrained, Tokenizer, Word
from lmkit.tokenizer.subword import byte_characters
from lmkit.tokenizer.word import EOS, UNK

if TYPE_CHECKING:
    import tokenizers

# What str.split() cuts at, but for the newline.
SPACES = "".join(chr(point) for point in range(0x110000) if chr(point).isspace() and point != 0x0A)


def fast_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The library's tokenizer that gives `tokenizer.encode_text(text)` for any text, but that it
    reads `<eos>` from the text; raises UserError for a class that it does not know."""
    from tokenizers import AddedToken

    make = {
        Word: _word,
        Characters: _characters,
        Bytes: _bytes,
        ByteLevelBPE: _library,
        Pretrained: _library,
        Pattern: _pattern,
    }.get(type(tokenizer))
    if make is None:
        raise UserError(
            f"tokenizer={type(tokenizer).__name__} has no tokenizer.json: all of lmkit's have one "
            "but that of SentencePiece"
        )
    library = make(tokenizer)
    library.encode_special_tokens = False
    library.add_special_tokens([AddedToken(eos_token(tokenizer), normalized=False)])
    return library


def eos_token(tokenizer: Tokenizer) -> str:
    """What the library calls the token that ends a text."""
    if isinstance(tokenizer, Pretrained | Pattern):
        return tokenizer.eos
    if isinstance(tokenizer, Word | Characters):
        return tokenizer.vocabulary[tokenizer.eos_id]
    return EOS


def unk_token(tokenizer: Tokenizer) -> str | None:
    """What the library calls the token of unknown text, if there is one."""
    if isinstance(tokenizer, Word | Characters):
        return UNK
    if tokenizer.unk_id is None:
        return None
    assert isinstance(tokenizer, Pretrained)
    return tokenizer.name_of(tokenizer.unk_id)


def _word_level(vocabulary: list[str], unk: str | None) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    ids = {token: i for i, token in enumerate(vocabulary)}
    return Tokenizer(models.WordLevel(ids, unk) if unk else models.WordLevel(ids))


def _word(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A newline is <eos>, and words are cut where str.split() cuts."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    assert isinstance(tokenizer, Word)
    library = _word_level(tokenizer.vocabulary, UNK)
    lower = [normalizers.Lowercase()] if tokenizer.lower else []
    library.normalizer = normalizers.Sequence([*lower, normalizers.Replace("\n", f" {EOS} ")])
    library.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{SPACES}]+"), "removed")
    library.decoder = decoders.Sequence(
        [
            decoders.Replace(EOS, "\n"),
            decoders.WordPiece(prefix="\n\n", cleanup=False),  # spaces between words
            decoders.Fuse(),
            decoders.Replace(Regex(" ?\n ?"), "\n"),
        ]
    )
    return library


def _characters(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    assert isinstance(tokenizer, Characters)
    return _matches(tokenizer.vocabulary, r"[\s\S]", UNK)


def _pattern(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    assert isinstance(tokenizer, Pattern)
    return _matches(tokenizer.vocabulary, tokenizer.pattern, None)


def _matches(vocabulary: list[str], pattern: str, unk: str | None) -> tokenizers.Tokenizer:
    """Each match of a pattern is a token."""
    from tokenizers import Regex, decoders, pre_tokenizers

    library = _word_level(vocabulary, unk)
    library.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    library.decoder = decoders.Fuse()
    return library


def _bytes(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    ids: Mapping[str, int] = byte_characters()
    library = Library(models.BPE({**ids, EOS: tokenizer.eos_id}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    return library


def _library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Its own, without what it would put around a text."""
    from tokenizers import Tokenizer as Library

    assert isinstance(tokenizer, ByteLevelBPE | Pretrained)
    library = Library.from_str(tokenizer.library_json())
    library.post_processor = None
    return library
