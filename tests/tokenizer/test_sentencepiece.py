"""Models of SentencePiece: the library's own ids, with ends of documents and lines."""

import io
import json
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit import cli
from lmkit.errors import UserError
from lmkit.tokenizer import SentencePiece, load_tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

TRAINING = ["the cat sat on the mat", "a dog ran over the mat", "naïve 你好 cats", "The End."]
KINDS = {
    "unigram": {"model_type": "unigram"},
    "bpe": {"model_type": "bpe"},
    "bytes": {"model_type": "unigram", "byte_fallback": True, "vocab_size": 300},
    "exact": {
        **{"model_type": "bpe", "byte_fallback": True, "vocab_size": 300},
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        "add_dummy_prefix": False,
    },
}
ATOMS = [
    *("the", "cat", " ", "  ", "\n", "\n", "\t", "é", "Z", "你好", "🙂", "</s>", "<unk>", "."),
]
texts = st.lists(st.sampled_from(ATOMS), max_size=12).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    model = io.BytesIO()
    given = {"vocab_size": 40, **KINDS[request.param]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING * 30),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **given,
    )
    path = tmp_path_factory.mktemp("spm") / "spm.model"
    path.write_bytes(model.getvalue())
    return SentencePiece(str(path))


@given(st.lists(texts, min_size=1, max_size=3), st.booleans())
@settings(deadline=None, max_examples=60)
def test_ids_and_ends(tokenizer, documents, by_line):
    library = tokenizer._library
    encoded = tokenizer.encode(documents, by_line)
    expected, ends = [], []
    for text in documents:
        lines = text.split("\n") if by_line else [text]
        for place, line in enumerate(lines):
            expected += library.encode(line)
            expected += tokenizer.newline if place < len(lines) - 1 else []
        expected.append(2)
        ends.append(len(expected))
    assert encoded.ids.tolist() == expected
    assert encoded.document_ends.tolist() == ends
    assert (np.diff(encoded.line_ends, prepend=0) > 0).all()
    assert set(ends) <= set(encoded.line_ends.tolist())


@given(texts)
@settings(deadline=None, max_examples=60)
def test_pieces_spans_and_unknown_text(tokenizer, text):
    ids = tokenizer.encode([text]).ids.tolist()
    assert "".join(tokenizer.pieces(ids)) == tokenizer.decode(ids)
    spans = tokenizer.spans(text)
    assert len(spans) == len(ids)
    assert all(0 <= first <= stop <= len(text) for first, stop in spans)
    assert all(first <= after for (first, _), (after, _) in pairwise(spans))
    covered = {i for first, stop in spans for i in range(first, stop)}
    assert all(i in covered or text[i].isspace() for i in range(len(text)))
    unknown = tokenizer.unknown(text)
    assert sorted(unknown) == [i for i, token in enumerate(ids) if token == tokenizer.unk_id]
    assert all(own in text for own in unknown.values())
    if tokenizer.lossless:
        assert tokenizer.decode(ids) == text


def test_it_is_saved_with_a_run(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is SentencePiece
    assert loaded.hash() == tokenizer.hash()
    assert (
        loaded.encode(["the cat\nZ"]).ids.tolist() == tokenizer.encode(["the cat\nZ"]).ids.tolist()
    )


def test_a_run_is_trained_with_it(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "\n\n".join(f"the cat {i}" for i in range(200))
    (tmp_path / "text.txt").write_text(text)
    data = ["data=files", "data.path=text.txt", "data.unit=paragraph", "trainer.accelerator=cpu"]
    given = ["tokenizer=sentencepiece", f"tokenizer.path={tokenizer.path}"]
    small = ["trainer.max_steps=2", "data.batch_size=2", "model.hidden_size=4", "threads=1"]
    arguments = [*data, *given, *small, "model.embedding_size=4", "run_id=one"]
    assert cli.main(["train", *arguments]) == 0
    assert cli.main(["score", "one", "text=the cat"]) == 0
    lines = capsys.readouterr().out.splitlines()
    scored = [json.loads(line)["token"] for line in lines if line.startswith('{"token"')]
    assert scored == tokenizer.encode(["the cat"]).ids.tolist()
    assert cli.main(["export", "one", "path=there"]) == 2
    assert "tokenizer=SentencePiece" in capsys.readouterr().err


def test_files_of_no_use(tmp_path, tokenizer, monkeypatch):
    with pytest.raises(UserError, match=r"tokenizer\.path=none: cannot read none"):
        SentencePiece("none")
    (tmp_path / "bad.model").write_bytes(b"abc")
    with pytest.raises(UserError, match=r"bad\.model: no model of SentencePiece, or a damaged one"):
        SentencePiece(str(tmp_path / "bad.model"))
    with pytest.raises(UserError, match=r"none of <x> is in the vocabulary; name one with"):
        SentencePiece(tokenizer.path, eos="<x>")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="tokenizer=sentencepiece needs its package: pip install"):
        SentencePiece(tokenizer.path)
