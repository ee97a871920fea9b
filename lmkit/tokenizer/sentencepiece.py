"""The tokenizer that a model of SentencePiece is."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lmkit.errors import UserError
from lmkit.system.regular_file import read_bytes
from lmkit.tokenizer.base import DocumentTokenizer, Flat, in_batches
from lmkit.tokenizer.subword import PROBE, USUAL_EOS, ends_of_lines

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

MAX_MODEL = 1 << 30  # bytes
BATCH = 1 << 20  # characters that the library gets at a time


class SentencePiece(DocumentTokenizer):
    """A model file of SentencePiece (Kudo and Richardson 2018), whose ids it has.

    path: the file. eos: the piece that closes a document; null: the model's own, or a usual one.
    Line ends are found through the library's offsets; a line without tokens is no line. Pieces such
    as `</s>` are never read from a text.
    """

    name = "sentencepiece"
    trainable = False
    lines_alone = False  # the library drops spaces at the ends of what it gets

    def __init__(self, path: str, eos: str | None = None) -> None:
        file = Path(path).expanduser()
        try:
            model = read_bytes(file, MAX_MODEL)
        except OSError as error:
            raise UserError(f"tokenizer.path={path}: cannot read {file}: {error}") from None
        self.path = path
        self._adopt(model, eos, f"tokenizer.path={path}")

    def _adopt(self, model: bytes, eos: str | None, where: str) -> None:
        self._model, self._library = model, _loaded(model, where)
        self.vocabulary_size = self._library.get_piece_size()
        pieces = [self._library.id_to_piece(i) for i in range(self.vocabulary_size)]
        own = [pieces[self._library.eos_id()]] if self._library.eos_id() >= 0 else []
        names = [eos] if eos is not None else [*own, *USUAL_EOS]
        name = next((name for name in names if name in pieces), None)
        if name is None:
            raise UserError(
                f"{where}: a piece that closes a document is needed, none of {', '.join(names)} is "
                "in the vocabulary; name one with tokenizer.eos=PIECE"
            )
        self.eos = name
        self.eos_id, self.unk_id = pieces.index(name), self._library.unk_id()
        self.lossless = self.decode(self.encode_text(PROBE)) == PROBE

    def train(self, texts: Iterable[str]) -> None:
        """Does nothing: the vocabulary is fixed."""

    def _flat(self, texts: Sequence[str]) -> Flat:
        runs, ends = [np.empty(0, np.uint32)], [np.empty(0, np.int64)]
        counts = np.zeros(len(texts), np.int64)
        total = row = 0
        for batch in in_batches(texts, len, BATCH):
            for text in batch:
                encoded = self._encoded(text)
                runs.append(np.array(encoded["ids"], np.uint32))
                ends.append(total + ends_of_lines(text, encoded["offsets"]))
                counts[row] = len(runs[-1])
                total, row = total + len(runs[-1]), row + 1
        ids = np.concatenate(runs)
        return Flat(ids, counts, np.concatenate(ends), int((ids == self.unk_id).sum()))

    def _encoded(self, text: str) -> dict[str, Any]:
        """The library's `ids` and `offsets` of a text."""
        return self._library.encode(text, return_type="offset_mapping")

    def spans(self, text: str, by_line: bool = False) -> list[tuple[int, int]]:
        """As the library's offsets."""
        return self._spans_by(lambda line: self._encoded(line)["offsets"], text, by_line)

    def unknown(self, text: str, by_line: bool = False) -> dict[int, str]:
        spans = self.spans(text, by_line)
        ids = self.encode([text], by_line).ids
        return {i: text[slice(*spans[i])] for i in np.flatnonzero(ids == self.unk_id).tolist()}

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._library.decode([int(i) for i in ids if i != self.eos_id]))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        shown = [int(i) for i in ids if i != self.eos_id]
        decoded = self._library.decode(shown, return_type="offset_mapping")
        surfaces = iter(decoded["text"][first:stop] for first, stop in decoded["offsets"])
        return ["" if i == self.eos_id else next(surfaces) for i in ids]

    def settings(self) -> dict[str, Any]:
        return {"path": self.path, "eos": self.eos}

    def _state(self) -> dict[str, Any]:
        return {"eos": self.eos, "model": base64.b64encode(self._model).decode()}

    @classmethod
    def _restore(cls, state: dict[str, Any]) -> Self:
        tokenizer = cls.__new__(cls)
        tokenizer.path = "tokenizer.json"
        tokenizer._adopt(base64.b64decode(state["model"]), state["eos"], "tokenizer.json")
        return tokenizer


def _loaded(model: bytes, where: str) -> SentencePieceProcessor:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise UserError(
            "tokenizer=sentencepiece needs its package: pip install "
            '"recurrent-lmkit[sentencepiece]"'
        ) from None
    library = SentencePieceProcessor()
    try:
        library.LoadFromSerializedProto(model)
    except RuntimeError:
        raise UserError(f"{where}: no model of SentencePiece, or a damaged one") from None
    return library
