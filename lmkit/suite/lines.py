"""Lines in turn: a good sentence, the bad one, the next good one; a file is a group."""

from __future__ import annotations

from lmkit.corpus.finding import find_files
from lmkit.corpus.reading import text_lines
from lmkit.errors import UserError
from lmkit.suite.items import Item, Suite, pair, sentence
from lmkit.system.wording import counted


def read(path: str) -> Suite:
    """The suite of a text file, or of the .txt files of a directory; raises UserError."""
    items: list[Item] = []
    for name, file in find_files(path, "path", (".txt", ".txt.gz", ".txt.zst")).items():
        texts = [
            sentence(line, file, f"line {number}")
            for number, line in enumerate(text_lines(file), 1)
        ]
        if table := next((number for number, text in enumerate(texts, 1) if "\t" in text), None):
            raise UserError(
                f"{file}, line {table} holds a tab: for a table take suite=table, and a name that "
                "ends in .tsv"
            )
        if len(texts) % 2 or not texts:
            raise UserError(
                f"{file} has {counted(len(texts), 'line')}: suite=lines expects a good sentence "
                "and a bad one in turn, an even number"
            )
        group = name.partition(".")[0]
        items += [
            pair(str(number // 2 + 1), group, *texts[number : number + 2])
            for number in range(0, len(texts), 2)
        ]
    return Suite("lines", tuple(items))
