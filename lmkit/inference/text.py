"""A text from the command line or a single file, with the interface of a token store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from lmkit.corpus import reading
from lmkit.errors import UserError
from lmkit.system import paths
from lmkit.tokenizer import Tokenizer
from lmkit.tokenizer.base import Ids, Positions


@dataclass(frozen=True)
class Text:
    """One document as tokens, with ids (num_tokens,), ends and counts as a store has them.

    num_documents, num_lines: how many ends there are of each.
    unknown: the text that each `<unk>` stands for, by the token's position.
    """

    tokens: Ids
    document_ends: Positions
    line_ends: Positions
    num_bytes: int
    num_unknown: int
    unknown: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, by_line: bool = False) -> Self:
        """Raises UserError for a text that is empty or not Unicode.

        by_line: encode each line by itself, as protocol `sentence` reads them.
        """
        text = text.replace("\r\n", "\n")
        if not text or text.isspace():
            raise UserError("the text is empty: give one that has words")
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError as error:  # what the shell passed was not UTF-8
            raise UserError(
                f"the text is not Unicode: {text[error.start]!a} at character {error.start}; "
                "give it as UTF-8"
            ) from None
        encoded = tokenizer.encode([text], by_line)
        ends = (encoded.document_ends, encoded.line_ends)
        unknown = tokenizer.unknown(text, by_line) if encoded.num_unknown else {}
        return cls(encoded.ids, *ends, num_bytes, encoded.num_unknown, unknown)

    def pieces(self, tokenizer: Tokenizer) -> list[str]:
        """The surface of each token, with an unknown word's own text in place of `<unk>`."""
        surfaces = tokenizer.pieces(self.tokens.tolist())
        if self.unknown and tokenizer.unk_id is not None:
            mark = "".join(tokenizer.pieces([tokenizer.unk_id])).strip()
            for position, own in self.unknown.items():
                # A space may come before the mark, and a decoder may leave the mark out.
                shown = mark and mark in surfaces[position]
                surfaces[position] = surfaces[position].replace(mark, own) if shown else own
        return surfaces

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return len(self.document_ends)

    @property
    def num_lines(self) -> int:
        return len(self.line_ends)

    def document_id(self, index: int) -> str:
        """Its number."""
        return str(index)

    def release(self) -> None:
        """Does nothing: a text in memory stays there."""


def read_text(text: str | None, file: str | None) -> str:
    """`text` itself, or all of a UTF-8 file (also .gz and .zst); exactly one must be given."""
    if text is not None and file is not None:
        raise UserError("text and file are both given: leave one of them out")
    if text is not None:
        return text
    if file is None:
        raise UserError("nothing to read: give text=... or file=...")
    path = paths.found_at(file, "file")
    if not path.exists():
        raise UserError(f"file={file} does not exist; {paths.nearby(path)}")
    if not path.is_file():
        raise UserError(f"file={file} is not a file; {paths.nearby(path / '*')}")
    return "".join(reading.text_lines(path))
