"""Tiny Shakespeare, or another text of one file, as models of characters are compared on it."""

from __future__ import annotations

from lmkit.corpus.cut_file import CutFile
from lmkit.ranges import Count, Size


class TinyShakespeare(CutFile):
    """input.txt of char-rnn (Karpathy 2015), 1,115,394 characters: the last tenth is valid, as
    nanoGPT cuts it, and there is no test unless `test_bytes` says so. Any other text of one file
    is cut in the same way; a split is one document.

    valid_bytes, test_bytes: of the file.
    """

    file_name = "input.txt"
    option = "shakespeare"
    expected = (
        "a text in one file, such as char-rnn's input.txt of 1,115,394 bytes, or its directory"
    )

    def __init__(self, path: str, *, valid_bytes: Size = 111_540, test_bytes: Count = 0) -> None:
        """path: the file, also compressed, or the directory of input.txt."""
        super().__init__(path, {}, valid_bytes, test_bytes)
