"""Shards: cut by the source alone and joined without a trace."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import jsonl, written
from pyarrow import parquet

from lmkit.corpus import Files, Parquet
from lmkit.errors import UserError
from lmkit.store import prepare
from lmkit.store.token_store import JoinedTokens
from lmkit.tokenizer import Bytes, Word
from lmkit.windows import WindowLoader
from lmkit.windows.lanes import Protocol

WORDS = ["a", "b", "cc", "<eos>", "é\u2003x", "<unk>", "The", "the\r"]


texts = st.lists(
    st.lists(st.sampled_from([*WORDS, "\n", " "]), min_size=1, max_size=9).map(" ".join),
    max_size=5,
)
corpora = st.lists(texts, min_size=1, max_size=6).filter(
    lambda files: any(row.strip() for rows in files for row in rows)
)


@settings(max_examples=50)
@given(
    corpora,
    st.integers(1, 400),
    st.sampled_from(get_args(Protocol)),
    st.integers(1, 4),
    st.booleans(),
)
def test_shards_do_not_show_in_documents_tokens_or_windows(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[str]],
    piece_bytes: int,
    protocol: Any,
    num_lanes: int,
    trains: bool,
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    text = written(directory / "text", files)
    whole, cut = (jsonl(text, size) for size in (1 << 28, piece_bytes))
    assert list(cut.documents("train")) == list(whole.documents("train"))
    assert cut.fingerprint() == whole.fingerprint()
    one, many = (
        prepare(source, Word(), directory / "cache", workers=1).stores["train"]
        for source in (whole, cut)
    )
    assert len(one.parts) == 1
    assert len(many.parts) == len(cut.pieces("train"))
    assert isinstance(one.tokens, np.memmap)
    for name in ("document_ends", "line_ends", "document_bytes"):
        np.testing.assert_array_equal(getattr(many, name), getattr(one, name))
    for name in ("num_tokens", "num_documents", "num_lines", "num_bytes", "num_unknown"):
        assert getattr(many, name) == getattr(one, name)
    ids = [[store.document_id(n) for n in range(store.num_documents)] for store in (one, many)]
    assert ids[0] == ids[1]
    settings = {"eos_id": 0, "protocol": protocol, "num_lanes": num_lanes, "bptt": 3}
    loaders = [WindowLoader(s, seed=1 if trains else None, **settings) for s in (one, many)]
    for first, second in zip(*loaders, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first[:5], second[:5], strict=True))


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=7).filter(any),
    st.lists(st.integers(-3, 40), max_size=12),
    st.slices(30),
)
def test_joined_tokens_are_one_array(lengths: list[int], indices: list[int], part: slice) -> None:
    class Memory:
        dtype = np.dtype(np.uint16)

        def __init__(self, begin: int, number: int) -> None:
            self.num_tokens = number
            self.tokens = np.arange(begin, begin + number, dtype=self.dtype)

        def map(self, name: str) -> np.ndarray:
            return self.tokens

    starts = np.cumsum([0, *lengths])
    joined = JoinedTokens([Memory(s, n) for s, n in zip(starts[:-1], lengths, strict=True)])
    plain = np.arange(starts[-1], dtype=np.uint16)
    assert (len(joined), joined.shape, joined.dtype) == (len(plain), plain.shape, plain.dtype)
    for shape in ((-1,), (-1, 1), (1, -1)):
        asked = np.array(indices, np.int64).reshape(shape) if indices else np.empty((0,), int)
        found = joined.take(asked, mode="clip")
        np.testing.assert_array_equal(found, plain.take(asked, mode="clip"))
        assert found.dtype == plain.dtype
    for key in (part, slice(None, None, -2)):
        np.testing.assert_array_equal(joined[key], plain[key])
    assert joined[-1] == plain[-1]
    with pytest.raises(IndexError):
        joined[len(plain)]
    np.testing.assert_array_equal(np.asarray(joined), plain)
    joined.release()
    np.testing.assert_array_equal(joined[:], plain)


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_few_files_are_open_however_many_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmkit.store.token_store.NUM_MAPPED", 3)
    text = written(tmp_path / "text", [[f"file {n}"] for n in range(40)])
    before = num_open()
    store = prepare(jsonl(text, 1), Bytes(), tmp_path / "cache", workers=1).stores["train"]
    assert len(store.parts) == 40
    assert store.document_ends[-1] == store.num_tokens
    found = store.tokens.take(np.arange(store.num_tokens), mode="clip")
    assert Bytes().decode(found.tolist()) == "".join(f"file {n}" for n in range(40))
    assert num_open() <= before + 4
    store.release()
    assert num_open() <= before + 1


def test_pieces_go_by_files_and_their_size_alone(tmp_path: Path) -> None:
    text = written(tmp_path / "text", [["x" * n] for n in (10, 10, 90, 5, 5)])
    sizes = [file.stat().st_size for file in sorted(text.iterdir())]
    source = jsonl(text, sizes[0] + sizes[1])
    names = [[span.name for span in piece.spans] for piece in source.pieces("train")]
    assert names == [["000.jsonl", "001.jsonl"], ["002.jsonl"], ["003.jsonl", "004.jsonl"]]
    assert [piece.num_bytes for piece in source.pieces("train")] == [
        *(sum(sizes[:2]), sizes[2], sum(sizes[3:]))
    ]
    with pytest.raises(UserError, match="has no split 'test': it has train"):
        source.pieces("test")


@pytest.mark.parametrize("rows_a_group", [1, 7, 1000])
def test_a_large_parquet_file_is_cut_at_its_row_groups(tmp_path: Path, rows_a_group: int) -> None:
    rows = [f"row {n}" for n in range(40)]
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": rows}), file, row_group_size=rows_a_group)
    source = Parquet(str(file), valid_fraction=0, test_fraction=0)
    whole = list(source.documents("train"))
    assert [document.text for document in whole] == rows
    source.piece_bytes = file.stat().st_size // 3
    assert len(source.pieces("train")) == min(4, -(-40 // rows_a_group))
    assert list(source.documents("train")) == whole


def test_a_piece_without_a_document_of_the_split(tmp_path: Path) -> None:
    text = written(tmp_path / "text", [[f"document {n}"] for n in range(30)])
    source = jsonl(text, 1, valid_fraction=0.2, test_fraction=0.2)
    whole = jsonl(text, 1 << 28, valid_fraction=0.2, test_fraction=0.2)
    stores, expected = (
        prepare(each, Bytes(), tmp_path / "cache", workers=1).stores for each in (source, whole)
    )
    assert any(part.num_tokens == 0 for part in stores["valid"].parts)
    for split, store in stores.items():
        assert store.tokens[:].tolist() == expected[split].tokens.tolist()
    assert sum(store.num_documents for store in stores.values()) == 30


def test_a_cut_that_leaves_nothing_is_told_of_all_pieces(tmp_path: Path) -> None:
    text = written(tmp_path / "text", [["one"], ["one"], [" "]])
    source = jsonl(text, 1, valid_fraction=0.1)
    for workers in (1, 2):
        with pytest.raises(UserError) as caught:
            prepare(source, Bytes(), tmp_path / "cache", workers=workers)
        assert str(caught.value).startswith(
            f"data.path={text}: 2 documents are too few to cut by their hash (2 train, 0 valid): "
        )


def test_files_are_read_by_the_line_too(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    source = Files(str(tmp_path / "*.txt"), unit="line", valid_fraction=0, test_fraction=0)
    source.piece_bytes = 1
    assert len(source.pieces("train")) == 3
    documents = [(document.id, document.text) for document in source.documents("train")]
    assert documents == [(f"{n}.txt:{k}", f"{n}{k}") for n in "abc" for k in (1, 2)]
