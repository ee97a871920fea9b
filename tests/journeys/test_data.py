"""docs/data.md says what is true: each of its commands prepares what a reading by hand counts."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from lmkit.assembly import text_and_tokenizer
from lmkit.config.check import check
from lmkit.config.compose import compose
from lmkit.store import prepare

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL) for line in block.splitlines()
]
# Lines that are paragraphs, lines, rows and fields at once, with what other encodings have too.
TEXTS = [f"# na\u00efve {n}, and more words" for n in range(120)]
BOOK = "\n\n".join(TEXTS) + "\n"


def table(rows: list[list[Any]], delimiter: str = ",", quoting: Any = csv.QUOTE_ALL) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, quoting=quoting, quotechar='"').writerows(rows)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the commands name."""
    place = tmp_path_factory.mktemp("data")
    numbered = list(enumerate(TEXTS))
    texts: dict[str, str | bytes] = {
        "book.txt": BOOK,
        "book.txt.bz2": bz2.compress(BOOK.encode()),
        "book.txt.xz": lzma.compress(BOOK.encode()),
        "old.txt": BOOK.encode("latin-1"),
        "reviews.csv": table([["n", "body"], *numbered]),
        "reviews.tsv": table([["n", "body"], *numbered], "\t"),
        "semicolons.csv": table([["text", "n"], *((text, n) for n, text in numbered)], ";"),
        "nameless.csv": table(numbered),
        "plain.txt": "text\tn\n" + "".join(f"{text}\t{n}\n" for n, text in numbered),
        "exported.csv": table([["text"], *([text] for text in TEXTS)]).encode("utf-16"),
        "dump.jsonl.zst": zstandard.compress(
            "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
        ),
        **{f"texts/{n:03}.txt": text for n, text in numbered},
        "corpus/train.txt": BOOK,
        "corpus/dev.txt": "one paragraph\n\nanother",
        "corpus/test.txt.gz": gzip.compress(b"the test"),
    }
    for name, text in texts.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    parquet.write_table(pyarrow.table({"text": TEXTS}), place / "part.parquet")
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prepares_every_word(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    program, train, *keys = shlex.split(command)
    assert (program, train) == ("lmkit", "train")
    keys += [] if any(key.startswith("tokenizer=") for key in keys) else ["tokenizer=word"]
    config, _ = check(compose(keys))
    prepared = prepare(*text_and_tokenizer(config), place / "cache", workers=1)
    splits: Any = prepared.describe()["splits"]
    found = [
        sum(split[f"num_{name}"] for split in splits.values()) for name in ("documents", "tokens")
    ]
    num_documents, num_tokens = len(TEXTS), sum(len([*text.split(), "<eos>"]) for text in TEXTS)
    num_blank = len(TEXTS) - 1  # lines between the paragraphs of the book
    if "[book.txt,texts/*.txt]" in command:
        num_documents, num_tokens = 2 * num_documents, 2 * num_tokens
    elif "unit=heading" in command:  # whose documents hold all lines
        num_tokens += num_blank
    elif "valid_path=book.txt" in command:
        assert set(splits) == {"train", "valid"}
        num_documents, num_tokens = num_documents + 1, 2 * num_tokens + num_blank
    elif "data.path=corpus" in command:
        assert [splits[name]["num_documents"] for name in ("valid", "test")] == [2, 1]
        num_documents, num_tokens = num_documents + 3, num_tokens + 3 + 2 + 3
    assert found[0] == num_documents
    if "tokenizer=word" in keys:
        assert found[1] == num_tokens
