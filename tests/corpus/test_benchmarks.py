"""The corpora on which published results are compared: their files, splits, tokens and mistakes."""

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmkit.corpus import Enwik8, PennTreebank, Source, TinyShakespeare
from lmkit.errors import UserError
from lmkit.store import prepare
from lmkit.tokenizer import Bytes, Word

SENTENCES = " no it was n't black monday \n but <unk> shares fell N N \n"


def raises(message: str) -> Any:
    return pytest.raises(UserError, match=f"^{re.escape(message)}$")


def texts(source: Source, split: str) -> list[str]:
    return [document.text for document in source.documents(split)]


# ---- Penn Treebank


@pytest.mark.parametrize("pattern", ["ptb.{}.txt", "{}.txt"])
def test_a_sentence_is_a_document(tmp_path: Path, pattern: str) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / pattern.format(split)).write_text(SENTENCES)
    source = PennTreebank(str(tmp_path))
    assert source.splits == ("train", "valid", "test")
    documents = list(source.documents("test"))
    assert [document.id for document in documents] == [
        f"{pattern.format('test')}:{n}" for n in (1, 2)
    ]
    assert "".join(f"{document.text}\n" for document in documents) == SENTENCES


def test_its_stream_is_that_of_published_results(tmp_path: Path) -> None:
    """`open(file).read().replace("\\n", "<eos>").split()`, with its words, `<unk>` and `N`."""
    for split in ("train", "valid", "test"):
        (tmp_path / f"ptb.{split}.txt").write_text(SENTENCES)
    prepared = prepare(PennTreebank(str(tmp_path)), Word(), tmp_path, workers=1, progress=False)
    words = SENTENCES.replace("\n", "<eos>").split()
    store = prepared.stores["valid"]
    assert [prepared.tokenizer.vocabulary[i] for i in store.tokens.take(range(len(words)))] == words  # type: ignore[attr-defined]
    assert store.num_tokens == len(words)
    assert prepared.tokenizer.vocabulary_size == len({*words})
    assert store.num_unknown == 0


def test_its_files_are_missing(tmp_path: Path) -> None:
    expected = (
        "data=ptb takes the directory of Mikolov's ptb.train.txt, ptb.valid.txt and ptb.test.txt, "
        "a sentence a line"
    )
    (tmp_path / "ptb").mkdir()
    file = tmp_path / "ptb" / "ptb.train.txt"
    file.write_text(SENTENCES)
    with raises(
        f"data.path={tmp_path}/ptb has none of ptb.valid.txt, valid.txt: {tmp_path}/ptb has "
        "ptb.train.txt; data=ptb needs one file for valid"
    ):
        PennTreebank(f"{tmp_path}/ptb")
    with raises(f"data.path={file} is a file: {expected}"):
        PennTreebank(str(file))
    with raises(f"data.path={tmp_path}/pbt does not exist; {tmp_path} has ptb"):
        PennTreebank(f"{tmp_path}/pbt")


# ---- enwik8

PAGES = "".join(
    f"  <page>\n    <title>Straße {n}</title>\n 日本 & 𝔘 \n  </page>\n" for n in range(9)
)


def enwik8(path: Path, **settings: Any) -> Enwik8:
    return Enwik8(str(path), **{"valid_bytes": 100, "test_bytes": 120, **settings})


def test_pages_of_a_file_cut_by_bytes(tmp_path: Path) -> None:
    file = tmp_path / "enwik8"
    file.write_text(PAGES)
    for source in (enwik8(file), enwik8(tmp_path)):
        whole = [texts(source, split) for split in ("train", "valid", "test")]
        assert "".join(text for split in whole for text in split) == PAGES
        assert whole[0][1] == PAGES[: len(PAGES) // 9].replace("Straße 0", "Straße 1")
    with gzip.open(tmp_path / "enwik8.gz", "wt") as stream:
        stream.write(PAGES)
    packed = enwik8(tmp_path / "enwik8.gz", unit="split")
    assert ["".join(split) for split in whole] == [
        text for split in packed.splits for text in texts(packed, split)
    ]


def test_its_tokens_are_the_bytes_that_published_results_cut(tmp_path: Path) -> None:
    text = PAGES.encode().replace("日本".encode(), b"-----")  # ASCII where it is cut
    (tmp_path / "enwik8").write_bytes(text)
    source = enwik8(tmp_path, unit="split")
    stores = prepare(source, Bytes(), tmp_path, workers=1, progress=False).stores
    cuts = {"train": text[:-220], "valid": text[-220:-120], "test": text[-120:]}
    for split, data in cuts.items():
        tokens = stores[split].tokens.take(range(stores[split].num_tokens))
        assert np.array_equal(tokens[:-1], np.frombuffer(data, np.uint8))
        assert tokens[-1] == Bytes.eos_id


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=3, max_size=40),
    valid=st.integers(1, 20),
    test=st.integers(1, 20),
)
def test_no_cut_loses_or_divides_a_character(
    tmp_path_factory: pytest.TempPathFactory, text: str, valid: int, test: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "enwik8"
    data = text.encode()
    file.write_bytes(data)
    if len(data) <= valid + test:
        with pytest.raises(UserError, match="leave nothing to train on"):
            enwik8(file, valid_bytes=valid, test_bytes=test)
        return
    source = enwik8(file, unit="split", valid_bytes=valid, test_bytes=test)
    parts = ["".join(document.text for document in source._read(split)) for split in source.splits]
    assert "".join(parts) == text
    for part, wanted in zip(parts[1:], (valid, test), strict=True):
        assert abs(len(part.encode()) - wanted) <= 3


def test_mistakes_of_enwik8(tmp_path: Path) -> None:
    takes = "the file enwik8 of 100,000,000 bytes (unpack enwik8.zip), or its directory"
    with raises(
        f"data.path={tmp_path} does not exist or has no file enwik8; {tmp_path} has nothing in it; "
        f"data=enwik8 takes {takes}"
    ):
        Enwik8(str(tmp_path))
    (tmp_path / "enwik8").write_bytes(b"short")
    with raises(
        f"data.path={tmp_path} has 5 bytes, of which data.valid_bytes=5000000 and "
        f"data.test_bytes=5000000 leave nothing to train on: data=enwik8 takes {takes}"
    ):
        Enwik8(str(tmp_path))
    (tmp_path / "enwik8.zip").write_bytes(b"PK")
    with raises(f"data.path={tmp_path}/enwik8.zip is an archive: data=enwik8 takes {takes}"):
        Enwik8(f"{tmp_path}/enwik8.zip")
    (tmp_path / "enwik8").write_bytes(b"a" * 300 + b"\xff" + b"b" * 220)
    with raises(
        f"{tmp_path}/enwik8 is not UTF-8: byte 0xff (invalid start byte); data=enwik8 takes {takes}"
    ):
        texts(enwik8(tmp_path), "train")


# ---- Tiny Shakespeare


def test_the_last_bytes_of_a_text_are_valid_and_test_only_if_asked(tmp_path: Path) -> None:
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 9
    (tmp_path / "input.txt").write_text(text)
    source = TinyShakespeare(str(tmp_path), valid_bytes=50)
    assert [texts(source, split) for split in source.splits] == [[text[:-50]], [text[-50:]]]
    source = TinyShakespeare(f"{tmp_path}/input.txt", valid_bytes=50, test_bytes=20)
    cuts = [text[:-70], text[-70:-20], text[-20:]]
    assert [texts(source, split) for split in source.splits] == [[part] for part in cuts]


def test_the_cut_is_that_of_nanogpt(tmp_path: Path) -> None:
    text = "a" * 1_115_394
    (tmp_path / "input.txt").write_text(text)
    cut = int(len(text) * 0.9)  # data/shakespeare_char/prepare.py
    source = TinyShakespeare(str(tmp_path))
    assert [texts(source, split) for split in source.splits] == [[text[:cut]], [text[cut:]]]


def test_mistakes_of_a_text_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_bytes(b"short")
    with raises(
        f"data.path={tmp_path} has 5 bytes, of which data.valid_bytes=111540 and "
        "data.test_bytes=0 leave nothing to train on: data=shakespeare takes a text in one file, "
        "such as char-rnn's input.txt of 1,115,394 bytes, or its directory"
    ):
        TinyShakespeare(str(tmp_path))
