"""Subword tokenizers of the `tokenizers` library: trained byte-level BPE, or any tokenizer.json.

The library is set never to read a special token from the text of a document.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lmkit.errors import UserError
from lmkit.tokenizer.base import (
    ByteSurfaces,
    DocumentTokenizer,
    Flat,
    Positions,
    at_least,
    in_batches,
)

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)

EOS = "<eos>"
USUAL_EOS = (EOS, "</s>", "<|endoftext|>", "<|end_of_text|>", "[EOS]", "<EOS>", "[SEP]")
# No match of the byte-level pattern crosses the start of a space after a word: cut there.
SAFE_CUT = re.compile(r"(?<=\S) ")
CHUNK = 1 << 16  # characters that the library gets at a time
MOST_IDS = 1 << 24  # of a vocabulary; the largest in use have a million
MOST_COUNTED = (1 << 64) - 1  # the library's largest count; no text has so many pairs
# Ids may have gaps: so many for each token, and so many besides.
MOST_GAPS, MANY_GAPS = 10, 1000
# A text that a tokenizer which loses anything (case, spaces, accents, ...) does not give back.
PROBE = (
    "A  b\t\n\n c\r\n \u00a0don't \u00dcn\u00ef e\u0301 \u4f60\u597d \U0001f642 \x00 <eos> </s>\n"
)


class ByteLevelBPE(ByteSurfaces):
    """Byte-level byte-pair encoding (Sennrich et al. 2016, over bytes as in GPT-2), no losses.

    vocabulary_size: at most so many ids, `<eos>` counted, met where the text has pairs enough.
    min_frequency: pairs rarer than this in the train split are not merged.
    """

    name = "bpe"
    trainable = True
    lines_alone = False  # blanks around a newline may be one token with it
    unk_id = None

    def __init__(self, vocabulary_size: int = 8000, min_frequency: int = 2) -> None:
        at_least("vocabulary_size", vocabulary_size, 257, "all bytes and <eos>")
        at_least("min_frequency", min_frequency, 1, "every pair of the text occurs once")
        if vocabulary_size > MOST_IDS:  # the library takes memory for all of them at once
            raise UserError(f"tokenizer.vocabulary_size={vocabulary_size}: at most {MOST_IDS:,}")
        self.wanted_size = vocabulary_size
        self.min_frequency = min_frequency

    def train(self, texts: Iterable[str]) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        library = Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.wanted_size,
            min_frequency=min(self.min_frequency, MOST_COUNTED),
            special_tokens=[EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(chain.from_iterable(map(_cut_safely, texts)), trainer)
        self._adopt(library)

    def _adopt(self, library: tokenizers.Tokenizer) -> None:
        library.encode_special_tokens = True
        self._library = library
        vocabulary = library.get_vocab()
        self.eos_id = vocabulary[EOS]
        self.vocabulary_size = len(vocabulary)
        byte_of = byte_characters()
        self.surfaces = [
            b"" if token == EOS else bytes(byte_of[character] for character in token)
            for token in sorted(vocabulary, key=vocabulary.__getitem__)
        ]
        self._lengths = np.array([len(surface) for surface in self.surfaces])

    def _flat(self, texts: Sequence[str]) -> Flat:
        runs, counts = [], np.zeros(len(texts), np.int64)
        chunks = ((row, chunk) for row, text in enumerate(texts) for chunk in _cut_safely(text))
        # An Encoding needs a hundred times the memory of its ids: few at once.
        for batch in in_batches(chunks, lambda item: len(item[1]), 1 << 20):
            encodings = self._library.encode_batch_fast([chunk for _, chunk in batch])
            for (row, _), encoding in zip(batch, encodings, strict=True):
                runs.append(np.array(encoding.ids, np.uint32))
                counts[row] += len(runs[-1])
        ids = np.concatenate(runs) if runs else np.empty(0, np.uint32)
        data = np.frombuffer("".join(texts).encode(), np.uint8)
        newlines = np.flatnonzero(data == ord("\n")) + 1
        newline_ends = np.searchsorted(np.cumsum(self._lengths[ids]), newlines) + 1
        return Flat(ids, counts, newline_ends, 0)

    def settings(self) -> dict[str, Any]:
        return {"vocabulary_size": self.wanted_size, "min_frequency": self.min_frequency}

    def library_json(self) -> str:
        """Its tokenizer.json, in the form of the `tokenizers` library."""
        return self._library.to_str()

    def _state(self) -> dict[str, Any]:
        return {"settings": self.settings(), "tokenizer": json.loads(self.library_json())}

    @classmethod
    def _restore(cls, state: dict[str, Any]) -> Self:
        tokenizer = cls(**state["settings"])
        tokenizer._adopt(_library(json.dumps(state["tokenizer"])))
        return tokenizer


class Pretrained(DocumentTokenizer):
    """A tokenizer.json of the `tokenizers` library.

    path: the file, or its directory. eos: the token that closes a document; null: the usual one.
    Its vocabulary is what it is: vocabulary_size is the highest id there is, and one more.
    Line ends are found through the library's offsets; a line without tokens is no line.
    """

    name = "pretrained"
    trainable = False
    lines_alone = False

    def __init__(self, path: str, eos: str | None = None) -> None:
        file = Path(path)
        try:
            file = file / "tokenizer.json" if file.is_dir() else file
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"tokenizer.path={path}: cannot read {file}: {error}") from None
        self.path, self._where = path, f"tokenizer.path={path}"
        what = f"{self._where}: not a tokenizer.json of the tokenizers library"
        self._adopt(_library(text, what), eos)

    def _adopt(self, library: tokenizers.Tokenizer, eos: str | None) -> None:
        vocabulary = library.get_vocab(with_added_tokens=True)
        names = USUAL_EOS if eos is None else (eos,)
        name = next((name for name in names if name in vocabulary), None)
        if name is None:
            special = [t.content for t in library.get_added_tokens_decoder().values() if t.special]
            raise UserError(
                f"{self._where}: a token that closes a document is needed, none of "
                f"{', '.join(names)} is in the vocabulary; name one with tokenizer.eos=TOKEN "
                f"(its special tokens: {', '.join(special) or 'none'})"
            )
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True
        self._library = library
        self.eos = name
        self.eos_id = vocabulary[name]
        self.unk_id = _unk_id(library)
        self._check_ids(vocabulary)
        self.vocabulary_size = max(vocabulary.values()) + 1  # ids may have gaps
        if getattr(library.model, "dropout", None):
            log.warning(
                "%s: encoded without the dropout of its model, with which no text has the same "
                "tokens twice",
                self._where,
            )
            library.model.dropout = None
        self.lossless = self.decode(self.encode_text(PROBE)) == PROBE

    def _check_ids(self, vocabulary: Mapping[str, int]) -> None:
        """Refuse a vocabulary in which two tokens share an id, or ids have large gaps."""
        token_of: dict[int, str] = {}
        for token, i in vocabulary.items():
            if (other := token_of.setdefault(i, token)) != token:
                raise UserError(f"{self._where}: {other!r} and {token!r} have one id, {i}")
        if (highest := max(token_of)) >= MOST_GAPS * len(vocabulary) + MANY_GAPS:
            raise UserError(
                f"{self._where}: its highest id is {highest:,} for {len(vocabulary):,} tokens, and "
                "each id takes a row of the model: number them anew"
            )

    def train(self, texts: Iterable[str]) -> None:
        """Does nothing: the vocabulary is fixed."""

    def _flat(self, texts: Sequence[str]) -> Flat:
        runs = [np.empty(0, np.uint32)]
        newline_ends = [np.empty(0, np.int64)]
        counts = np.zeros(len(texts), np.int64)
        total = row = 0
        for batch in in_batches(texts, len, 1 << 20):
            with self._encoding():
                encodings = self._library.encode_batch(batch, add_special_tokens=False)
            for text, encoding in zip(batch, encodings, strict=True):
                runs.append(np.array(encoding.ids, np.uint32))
                newline_ends.append(total + ends_of_lines(text, encoding.offsets))
                counts[row] = len(runs[-1])
                total, row = total + len(runs[-1]), row + 1
        ids = np.concatenate(runs)
        unknown = 0 if self.unk_id is None else int((ids == self.unk_id).sum())
        return Flat(ids, counts, np.concatenate(newline_ends), unknown)

    def unknown(self, text: str, by_line: bool = False) -> dict[int, str]:
        texts, begin = {}, 0
        for line in text.split("\n") if by_line else [text]:
            with self._encoding():
                encoding = self._library.encode(line, add_special_tokens=False)
            for position, i in enumerate(encoding.ids, begin):
                if i == self.unk_id:
                    texts[position] = line[slice(*encoding.offsets[position - begin])]
            begin += len(encoding.ids) + len(self.newline)
        return texts

    def spans(self, text: str, by_line: bool = False) -> list[tuple[int, int]]:
        """As the library's offsets: where a token's space is not in them, it is not in a span."""

        def offsets(line: str) -> Iterable[tuple[int, int]]:
            with self._encoding():
                return self._library.encode(line, add_special_tokens=False).offsets

        return self._spans_by(offsets, text, by_line)

    def decode(self, ids: Sequence[int]) -> str:
        text = [i for i in ids if i != self.eos_id]
        with self._decoding():
            return str(self._library.decode(text, skip_special_tokens=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        with self._decoding():
            surfaces = [
                "" if i == self.eos_id else stream.step(self._library, i) or "" for i in ids
            ]
        if surfaces:  # characters that are never completed
            surfaces[-1] += self.decode(ids)[len("".join(surfaces)) :]
        return surfaces

    @property
    def decoder(self) -> Any:
        """How the library makes text of tokens, as in its file; None: by spaces between them."""
        return json.loads(self._library.to_str())["decoder"]

    def _encoding(self) -> AbstractContextManager[None]:
        # Such a tokenizer has a vocabulary without an unknown token.
        return _named(f"{self._where}: it cannot encode every text")

    def _decoding(self) -> AbstractContextManager[None]:
        return _named(f"{self._where}: it cannot decode")

    def settings(self) -> dict[str, Any]:
        return {"path": self.path, "eos": self.eos}

    def library_json(self) -> str:
        """Its tokenizer.json, in the form of the `tokenizers` library."""
        return self._library.to_str()

    def name_of(self, token: int) -> str:
        """What the library calls a token."""
        return str(self._library.id_to_token(token))

    def _state(self) -> dict[str, Any]:
        return {"eos": self.eos, "tokenizer": json.loads(self.library_json())}

    @classmethod
    def _restore(cls, state: dict[str, Any]) -> Self:
        tokenizer = cls.__new__(cls)
        tokenizer.path = tokenizer._where = "tokenizer.json"
        tokenizer._adopt(_library(json.dumps(state["tokenizer"])), state["eos"])
        return tokenizer


def ends_of_lines(text: str, offsets: Sequence[tuple[int, int]]) -> Positions:
    """The number of tokens up to the end of each line that has any.

    A newline that is not a token of its own belongs to the line of the token that it completes.
    But if it begins the token of a word, as in SentencePiece, this token is in the next line.
    """
    starts, stops = np.array(offsets, np.int64).reshape(-1, 2).T
    newlines = np.array([match.start() for match in re.finditer("\n", text)], np.int64)
    ends = np.searchsorted(np.maximum.accumulate(starts), newlines, side="right")
    ends, newlines = ends[ends > 0], newlines[ends > 0]
    for line in np.flatnonzero(stops[ends - 1] > newlines + 1).tolist():
        newline, last = newlines[line], ends[line] - 1
        before, behind = text[starts[last] : newline], text[newline + 1 : stops[last]]
        if not before.strip() and behind.strip():
            ends[line] = last
    return ends[ends > 0]


def _unk_id(library: tokenizers.Tokenizer) -> int | None:
    if token := getattr(library.model, "unk_token", None):
        return library.get_vocab(with_added_tokens=True).get(token)
    # A Unigram model has no attribute for it.
    unk_id: int | None = json.loads(library.to_str())["model"].get("unk_id")
    return unk_id


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn what the library raises, a plain Exception, into a UserError about its file.

    A panic of Rust is a BaseException, of a class that cannot be imported.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {error}") from None


def _library(text: str, what: str = "not the library's") -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    with _named(what):
        return Tokenizer.from_str(text)


def _cut_safely(text: str) -> Iterator[str]:
    """Chunks of a text that have the same tokens as the whole, so that memory is bounded."""
    start = 0
    while len(text) - start > CHUNK and (space := SAFE_CUT.search(text, start + CHUNK)):
        yield text[start : space.start()]
        start = space.start()
    yield text[start:]


def byte_characters() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the rest for U+0100 onwards."""
    printable = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    rest = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + n): byte for n, byte in enumerate(rest)
    }
