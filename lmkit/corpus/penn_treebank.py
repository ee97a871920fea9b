"""The Penn Treebank as language models are compared on it: Mikolov's files of sentences."""

from collections.abc import Iterator

from lmkit.corpus import cutting, finding
from lmkit.corpus.file_source import FileSource, Span
from lmkit.corpus.source import SPLITS


class PennTreebank(FileSource):
    """Mikolov's Penn Treebank (Mikolov et al. 2010): a document is a sentence, which is a line.

    The text has its 10,000 words, `<unk>` and `N` for numbers as it is. It is licensed by the LDC.
    The protocol stream reads the sentences as one text, with an end after each, as published
    results do.
    """

    def __init__(self, path: str) -> None:
        """path: the directory of ptb.train.txt, ptb.valid.txt and ptb.test.txt."""
        names = {split: [f"ptb.{split}.txt", f"{split}.txt"] for split in SPLITS}
        expected = (
            "the directory of Mikolov's ptb.train.txt, ptb.valid.txt and ptb.test.txt, "
            "a sentence a line"
        )
        self._find(finding.published_files(path, names, "data=ptb", expected), {})
        self._where = f"data.path={path}"

    def _records(self, span: Span) -> Iterator[tuple[int, str]]:
        return cutting.documents(span.file, cutting.by_line)
